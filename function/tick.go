package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// tick runs one sweep, sends what it made due and announces what it made true. One that is skipped leaves that to the
// sweep that runs.
func (h *handler) tick(untraced context.Context, t *taken) (any, error) {
	e := t.event
	request, err := sweepAskedFor(e)
	if err != nil {
		return nil, err
	}
	t.dryRun = request.DryRun
	cause := telemetry.Delivery(e, !h.warm.Swap(true))
	ctx, span := h.telemetry.StartDelivery(telemetry.WithDelivery(telemetry.Extract(untraced, e), cause), "sweep")
	t.trace = trace.SpanContextFromContext(ctx)
	result, err := h.sweep(ctx, e.Type(), request)
	if errors.Is(err, postgres.ErrLeaseLost) {
		h.log.WarnContext(ctx, "another sweep has taken over and carries on", "error", err)
		err = nil
	}
	span.End(string(result.Outcome), err)
	if err == nil && !request.DryRun && result.Outcome != sweep.Skipped {
		t.written = h.tellAhead(untraced, *t) // meanwhile
		err = h.afterwards(ctx)
	}
	return result, err
}

func sweepAskedFor(e ce.Event) (request event.SweepRequest, err error) {
	if e.Type() != event.SweepRequested {
		return request, nil // a ping's data is ignored
	}
	data, err := dataOf(e)
	if err != nil {
		return request, err
	}
	if err := json.Unmarshal(data, &request); err != nil {
		return request, refuse(http.StatusBadRequest, "data of %s: %s", e.Type(), oneLine(err))
	}
	return request, nil
}

// sweep runs one if there is a free slot. A tick for which there is none has nothing to add to those that have theirs,
// of which all but one wait for the lease only to be skipped themselves.
func (h *handler) sweep(ctx context.Context, trigger string, request event.SweepRequest) (sweep.Result, error) {
	select {
	case h.slots.ticks <- struct{}{}:
		defer func() { <-h.slots.ticks }()
		return h.sweeper.Sweep(ctx, trigger, request)
	default:
		h.telemetry.Metrics.SweepSkipped(ctx, "too many ticks")
		h.log.InfoContext(ctx, "tick skipped: enough others are under way", "trigger", trigger)
		return sweep.Result{Trigger: trigger, DryRun: request.DryRun, Outcome: sweep.Skipped, Counts: map[string]int{}, Durations: map[string]int64{}}, nil
	}
}

// afterwards sends what became due and announces what became true. What could not be sent is worth the tick again:
// the next one may be too late for a warning. It has a span of its own, since the sweep's is on its way already.
func (h *handler) afterwards(ctx context.Context) error {
	ctx, span := h.telemetry.StartStep(ctx, "send")
	err := h.sendDue(ctx)
	_, failure := h.announcer.Drain(ctx)
	h.announced(ctx, failure)
	span.EndOr("", "sent", err)
	if err != nil {
		h.log.ErrorContext(ctx, "follow-ups could not be sent and stay due", "error", err)
		return &unavailable{reason: "the sweep is done, but not all follow-ups could be sent; they stay due", after: retryAfter}
	}
	return nil
}
