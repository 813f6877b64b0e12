package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// announcements is FACTS_SINK: it takes what the service announces to others.
type announcements struct {
	mu       sync.Mutex
	received map[string]bool // by event id
	latest   map[string]int  // sequence by subject
	early    []string        // those that have overtaken another of their subject
	server   *http.Server
	address  string
}

// listenForFacts takes announcements on a loopback address, "127.0.0.1:0" for any port.
func listenForFacts(ctx context.Context, address string) (*announcements, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for announcements: %w", err)
	}
	a := &announcements{received: map[string]bool{}, latest: map[string]int{}, address: listener.Addr().String()}
	a.server = &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := a.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("announcements:", err)
		}
	}()
	return a, nil
}

func (a *announcements) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var fact struct{ ID, Subject, Sequence string } // extensions are text
	if err := json.NewDecoder(r.Body).Decode(&fact); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.received[fact.ID] = true
	if sequence, _ := strconv.Atoi(fact.Sequence); sequence > a.latest[fact.Subject]+1 {
		a.early = append(a.early, fact.Subject+" "+fact.Sequence)
	} else {
		a.latest[fact.Subject] = max(sequence, a.latest[fact.Subject])
	}
	w.WriteHeader(http.StatusAccepted)
}

// missing returns which of the announcements have not come, or have come before an earlier one of the same subject.
func (a *announcements) missing(ids []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := slices.Clone(a.early)
	for _, id := range ids {
		if !a.received[id] {
			missing = append(missing, id)
		}
	}
	return missing
}
