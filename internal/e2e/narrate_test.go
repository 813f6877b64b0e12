//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"
)

var begun = time.Now()

// say tells at once what happens: a test that waits for minutes and prints nothing until its end looks hung.
func say(t *testing.T, format string, args ...any) {
	t.Helper()
	fmt.Fprintf(os.Stdout, "%6.1fs  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
}

// eventually waits until ask returns nil, and says in the end what it returned last.
func eventually(t *testing.T, within time.Duration, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("waited %s until %s: %v", within, what, err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
