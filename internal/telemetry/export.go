package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Record is a span written from the database after the fact: a phase, or the root. Its id is derived, so that
// the same record made twice is the same span.
type Record struct {
	Reservation Reservation // Phase is the phase it hangs below, empty: the root
	Phase       Phase       // which phase this is; empty: this is the root itself
	Start, End  time.Time
	Outcome     string // reservation.outcome
	Error       string // what went wrong, if something did
	Attributes  []attribute.KeyValue
	Links       []trace.Link
}

// SpanID returns the id under which the record is written.
func (r Record) SpanID() trace.SpanID {
	if r.Phase == "" {
		return RootSpanID(r.Reservation.ID)
	}
	return PhaseSpanID(r.Reservation.ID, r.Phase)
}

// Exporting reports whether spans go anywhere: without a collector there is nothing to claim or mark.
func (t *Telemetry) Exporting() bool { return t.spans != nil }

// Export sends records in one request and returns nil once the collector has acknowledged them, at most 0.35 s
// later. After any other error than ErrUnconfirmed they certainly did not arrive and may be sent again. Like
// Flush it does not heed ctx being cancelled.
func (t *Telemetry) Export(ctx context.Context, records ...Record) error {
	if t.spans == nil || len(records) == 0 {
		return nil
	}
	spans := make([]sdktrace.ReadOnlySpan, len(records))
	for i, r := range records {
		spans[i] = t.write(r)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.exportWithin)
	defer cancel()
	return exportSpans(ctx, t.spans, spans)
}

func (t *Telemetry) write(r Record) sdktrace.ReadOnlySpan {
	id := r.Reservation.ID
	name, parent := string(r.Phase), parentOf(r.Reservation)
	if r.Phase == "" {
		name = "reservation"
		// A trace id with an invalid span id: the trace is given, and there is no parent.
		parent = trace.NewSpanContext(trace.SpanContextConfig{TraceID: TraceID(id), TraceFlags: trace.FlagsSampled})
	}
	attrs := append(r.Reservation.attributes(), r.Attributes...)
	if r.Outcome != "" {
		attrs = append(attrs, KeyReservationOutcome.String(r.Outcome))
	}
	ctx := withSpanID(trace.ContextWithRemoteSpanContext(context.Background(), parent), r.SpanID())
	_, span := t.writer.Start(ctx, name, trace.WithTimestamp(r.Start), trace.WithAttributes(attrs...), trace.WithLinks(r.Links...))
	if r.Error != "" {
		span.SetStatus(codes.Error, r.Error)
	}
	span.End(trace.WithTimestamp(after(r.Start, r.End)))
	return span.(sdktrace.ReadOnlySpan) // the sampler records whatever has a reservation.id
}
