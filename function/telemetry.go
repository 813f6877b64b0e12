package main

import (
	"context"
	"log/slog"
	"net/http"
	"sync"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/lifecycle"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// newLives makes the writer of what outlasts deliveries.
func newLives(db *postgres.DB, t *telemetry.Telemetry, c config.Traces, log *slog.Logger) *lifecycle.Writer {
	options := lifecycle.Options{Log: log}
	if c.JaegerQueryURL != "" {
		if viewer, err := jaeger.New(c.JaegerQueryURL, &http.Client{}); err == nil { // the address was checked
			options.Viewer = viewer
		}
	}
	return lifecycle.New(db, t, options)
}

// tell pushes what a delivery has recorded, before its answer, since nothing may run after it.
func (h *handler) tell(ctx context.Context, t taken, status int) {
	log := h.logOf(t)
	h.telemetry.Metrics.EventAnswered(ctx, knownType(t.event.Type()), status)
	switch kind, ok := event.KindOf(t.event.Type()); {
	case t.dryRun: // what was written into traces is remembered in rows
		t.written = func() {}
	case ok && kind == string(postgres.Cleanup): // its steps are over one by one
		t.written = write(ctx, h.lives, log, t.event.Subject())
	case t.written == nil:
		t.written = write(ctx, h.lives, log)
	}
	flush(ctx, h.telemetry, log)
	t.written()
}

// tellAhead begins to send what has ended so far and to write what is over of reservations' lives, while the delivery
// goes on, and returns what waits for both.
func (h *handler) tellAhead(ctx context.Context, t taken) (told func()) {
	log := h.logOf(t)
	written := write(ctx, h.lives, log)
	var flushing sync.WaitGroup
	flushing.Go(func() {
		if err := h.telemetry.FlushSpans(ctx); err != nil {
			log.WarnContext(ctx, "telemetry is lost", "error", err)
		}
	})
	return func() { written(); flushing.Wait() }
}

// write begins to write what is over of reservations' lives, and returns what waits until that is done. It need not wait
// for a flush: which arrives first does not matter.
func write(ctx context.Context, writer lives, log *slog.Logger, also ...string) (written func()) {
	if writer == nil {
		return func() {}
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := writer.Write(ctx, also...); err != nil {
			log.WarnContext(ctx, "phases are not written into their traces", "error", err)
		}
	})
	return writing.Wait
}

func flush(ctx context.Context, t *telemetry.Telemetry, log *slog.Logger) {
	if err := t.Flush(ctx); err != nil {
		log.WarnContext(ctx, "telemetry is lost", "error", err)
	}
}
