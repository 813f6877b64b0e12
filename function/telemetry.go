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
	h.telemetry.Metrics.EventAnswered(ctx, knownType(t.event.Type()), status)
	writer, also := h.lives, []string(nil)
	if kind, ok := event.KindOf(t.event.Type()); ok && kind == string(postgres.Cleanup) { // its steps are over one by one
		also = append(also, t.event.Subject())
	}
	if t.dryRun {
		writer = nil // what was written into traces is remembered in rows
	}
	tell(ctx, h.telemetry, writer, h.log, also...)
}

// tell flushes telemetry and writes what is over of reservations' lives, side by side: the sender waits for both. Which
// arrives first does not matter.
func tell(ctx context.Context, t *telemetry.Telemetry, writer lives, log *slog.Logger, also ...string) {
	var both sync.WaitGroup
	if writer != nil {
		both.Go(func() {
			if _, err := writer.Write(ctx, also...); err != nil {
				log.WarnContext(ctx, "phases are not written into their traces", "error", err)
			}
		})
	}
	if err := t.Flush(ctx); err != nil {
		log.WarnContext(ctx, "telemetry is lost", "error", err)
	}
	both.Wait()
}
