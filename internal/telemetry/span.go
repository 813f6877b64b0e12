package telemetry

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// Phase is a stretch of a reservation's life that has a span of its own, written from the database once when it is
// over, since it may outlast the process in which it began.
type Phase string

// StepPhase is the phase that a cleanup step lasts, from its first attempt to its last.
func StepPhase(step string) Phase { return Phase("step " + step) }

// The phases, in order. Cleanup, snapshot and disk held overlap.
const (
	PhaseQueued    Phase = "queued"
	PhasePreparing Phase = "preparing"
	PhaseActive    Phase = "active"
	PhaseCleanup   Phase = "cleanup"
	PhaseSnapshot  Phase = "snapshot"
	PhaseDiskHeld  Phase = "disk held"
)

// Unknown is what a span says of whatever nobody knows: a search finds such spans, too.
const Unknown = "unknown"

// Interrupted is the outcome of work that was called off and is done by a later delivery.
const Interrupted = "interrupted"

// Reservation is what every span of a reservation's trace says about it. Only ID is required.
type Reservation struct {
	ID      string
	UserID  string
	Status  string
	GPUType string
	// Deadline is when it ends, or was to end, as this piece of work believes.
	Deadline time.Time
	// Phase files the work below that phase's span, which somebody must write in the end (Export) or the work
	// stays without its parent. Empty: directly below the root.
	Phase Phase
}

func (r Reservation) attributes() []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, 8)
	attrs = append(attrs, KeyReservationID.String(r.ID), semconv.UserID(cmp.Or(r.UserID, Unknown)),
		KeyReservationStatus.String(cmp.Or(r.Status, Unknown)), KeyGPUType.String(cmp.Or(r.GPUType, Unknown)))
	if !r.Deadline.IsZero() {
		attrs = append(attrs, KeyReservationDeadline.String(r.Deadline.UTC().Format(time.RFC3339)))
	}
	return attrs
}

// Span is a unit of work under way.
type Span struct {
	span       trace.Span
	t          *Telemetry
	began      time.Time
	outcomeKey attribute.Key
}

// StartDelivery starts a trace of its own for one delivery or command, a sweep above all, or for work that is of no
// reservation's life. It links to the span in ctx (Extract) that asked for it.
func (t *Telemetry) StartDelivery(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	cause, _ := ctx.Value(deliveryKey{}).([]attribute.KeyValue)
	attrs = slices.Concat(cause, attrs)
	return t.start(ctx, name, KeyDeliveryOutcome, attrs, trace.WithNewRoot(), linkTo(ctx), trace.WithSpanKind(trace.SpanKindConsumer))
}

// StartAction starts a span in the trace of reservation r, whichever process works on it and however many hours
// after the others, and puts r into the context for StartStep and for the log. Inside an action for the same
// reservation and phase it starts a child. What ctx holds besides, the sweep or delivery that asked, is linked
// both ways.
func (t *Telemetry) StartAction(ctx context.Context, name string, r Reservation, attrs ...attribute.KeyValue) (context.Context, *Span) {
	asked := trace.SpanFromContext(ctx)
	within, _ := ctx.Value(reservationKey{}).(Reservation)
	ctx = context.WithValue(ctx, reservationKey{}, r)
	cause, _ := ctx.Value(deliveryKey{}).([]attribute.KeyValue)
	attrs = slices.Concat(r.attributes(), cause, attrs)
	if sc := asked.SpanContext(); sc.TraceID() == TraceID(r.ID) && !sc.IsRemote() && within.Phase == r.Phase {
		return t.start(ctx, name, KeyReservationOutcome, attrs)
	}
	// A span of another process may never be exported, so it is linked to and not taken as the parent.
	link := linkTo(ctx)
	ctx, s := t.start(trace.ContextWithRemoteSpanContext(ctx, parentOf(r)), name, KeyReservationOutcome, attrs, link)
	if asked.IsRecording() {
		asked.AddLink(trace.Link{SpanContext: s.span.SpanContext(), Attributes: []attribute.KeyValue{KeyReservationID.String(r.ID)}})
	}
	return ctx, s
}

// StartStep starts a child of the span in ctx. Inside an action it is as searchable as the action itself.
func (t *Telemetry) StartStep(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	if r, ok := ctx.Value(reservationKey{}).(Reservation); ok {
		return t.StartAction(ctx, name, r, attrs...)
	}
	return t.start(ctx, name, KeyDeliveryOutcome, attrs)
}

func (t *Telemetry) start(ctx context.Context, name string, outcome attribute.Key, attrs []attribute.KeyValue, options ...trace.SpanStartOption) (context.Context, *Span) {
	began := t.now()
	options = append(options, trace.WithAttributes(attrs...), trace.WithTimestamp(began))
	ctx, span := t.tracer.Start(ctx, name, options...)
	return ctx, &Span{span: span, t: t, began: began, outcomeKey: outcome}
}

// linkTo links to the span in ctx, where there is one that somebody can look up.
func linkTo(ctx context.Context) trace.SpanStartOption {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && sc.IsSampled() {
		return trace.WithLinks(trace.Link{SpanContext: sc})
	}
	return trace.WithLinks()
}

// Set adds attributes, or replaces those of the same key.
func (s *Span) Set(attrs ...attribute.KeyValue) { s.span.SetAttributes(attrs...) }

// Event records a moment within the span.
func (s *Span) Event(name string, attrs ...attribute.KeyValue) {
	s.span.AddEvent(name, trace.WithTimestamp(s.t.now()), trace.WithAttributes(attrs...))
}

// LinkReservation links to the root of a reservation's trace: a sweep does it for each that it acted on.
func (s *Span) LinkReservation(id string) {
	s.span.AddLink(trace.Link{SpanContext: parentOf(Reservation{ID: id}), Attributes: []attribute.KeyValue{KeyReservationID.String(id)}})
}

// LinkReservation links the span in ctx, if there is one, to the root of a reservation's trace.
func LinkReservation(ctx context.Context, id string) {
	s := Span{span: trace.SpanFromContext(ctx)}
	s.LinkReservation(id)
}

// End ends the span. The outcome is one word to search by ("warned", "superseded", "waiting"); with an error it
// may be empty and is then "error", and error.type says of what kind (package fault). Work that was called off, since
// the process stops or the sender has gone away, is Interrupted and has not failed.
func (s *Span) End(outcome string, err error) {
	if errors.Is(err, context.Canceled) {
		outcome, err = cmp.Or(outcome, Interrupted), nil
	}
	if err != nil {
		if outcome == "" {
			outcome = "error"
		}
		s.span.SetStatus(codes.Error, err.Error())
		s.span.SetAttributes(semconv.ErrorTypeKey.String(fault.KindOf(err).String()))
	}
	if outcome != "" {
		s.span.SetAttributes(s.outcomeKey.String(outcome))
	}
	s.span.End(trace.WithTimestamp(after(s.began, s.t.now())))
}

// EndOr is End for work whose result names its outcome only where it did not go as usual. A failure is never usual.
func (s *Span) EndOr(outcome, usual string, err error) {
	if err == nil {
		outcome = cmp.Or(outcome, usual)
	}
	s.End(outcome, err)
}

// after returns end, or the next moment after begin where the clock stood still or was turned back: viewers
// take a span without a duration for a broken one.
func after(begin, end time.Time) time.Time {
	if end.After(begin) {
		return end
	}
	return begin.Add(time.Microsecond)
}

// TraceID returns the span's trace id in hex, for answers and tables.
func (s *Span) TraceID() string { return s.span.SpanContext().TraceID().String() }

type (
	reservationKey struct{}
	deliveryKey    struct{}
)

// WithDelivery has every delivery and every span of a reservation that is started below carry the event that caused it
// (Delivery).
func WithDelivery(ctx context.Context, attrs []attribute.KeyValue) context.Context {
	return context.WithValue(ctx, deliveryKey{}, attrs)
}

// WithReservation puts a reservation into the context, so that log lines carry its id without a span of its own.
func WithReservation(ctx context.Context, r Reservation) context.Context {
	return context.WithValue(ctx, reservationKey{}, r)
}
