package main

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// door counts the deliveries that are inside and can be shut.
type door struct {
	mu      sync.Mutex
	inside  int
	closing bool // soon it will be shut: whoever asks is told to go elsewhere, and whoever comes is let in
	shut    bool
	empty   chan struct{} // closed once shut and nobody is inside
}

var errDraining = &unavailable{reason: "shutting down", after: time.Second}

func (d *door) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return false
	}
	d.inside++
	return true
}

func (d *door) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	if d.shut && d.inside == 0 {
		close(d.empty)
	}
}

// close lets nobody in any more. The channel tells when the last one has left. It is called once.
func (d *door) close() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closing, d.shut = true, true
	d.empty = make(chan struct{})
	if d.inside == 0 {
		close(d.empty)
	}
	return d.empty
}

// announce says that the door will be closed.
func (d *door) announce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closing = true
}

func (d *door) isClosing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closing
}

// readyWithin bounds a readiness probe; Kubernetes waits for a second unless told otherwise.
const readyWithin = 3 * time.Second

// readyz says whether deliveries would be taken, and if not what to do about it.
func (h *handler) readyz(w http.ResponseWriter, r *http.Request) {
	err := error(errDraining)
	if !h.door.isClosing() {
		ctx, cancel := context.WithTimeout(r.Context(), readyWithin)
		defer cancel()
		err = h.ready(ctx)
	}
	var away *unavailable
	switch {
	case err == nil:
		w.WriteHeader(http.StatusOK)
		return
	case errors.As(err, &away):
	case errors.Is(err, postgres.ErrSchema):
		err = &unavailable{reason: err.Error()}
	default:
		h.log.WarnContext(r.Context(), "not ready", "error", err)
		err = &unavailable{reason: "the database cannot be reached"}
	}
	answer(w, r, nil, err)
}
