// Command bare is what a Go HTTP server needs at least to start: the measure for this service's own start.
package main

import (
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	_ = http.ListenAndServe(":"+os.Getenv("PORT"), nil)
}
