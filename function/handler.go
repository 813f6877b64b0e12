package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// sweeper runs one sweep. The trigger is the type of the event that asked for it.
type sweeper interface {
	Sweep(ctx context.Context, trigger string, request event.SweepRequest) (sweep.Result, error)
}

// followUps carries out one follow-up and records how that ended.
type followUps interface {
	Run(ctx context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error)
}

// store is what the handler itself asks of the database.
type store interface {
	// EnsureCleanup makes the cleanup of an ended reservation due if the rows want one and none is asked for.
	EnsureCleanup(ctx context.Context, reservationID string) (bool, error)
	Reservation(ctx context.Context, id string) (r reservation.Reservation, found bool, err error)
	StoreDeadLetter(ctx context.Context, d postgres.DeadLetter) (int64, error)
}

// announcer sends the facts that deliveries made true; *dispatch.Announcer is one.
type announcer interface {
	Drain(ctx context.Context) (int, error)
	Share(ctx context.Context, subject string) (int, error)
}

// lives writes what is over of reservations' lives into their traces; *lifecycle.Writer does.
type lives interface {
	Write(ctx context.Context, also ...string) (int, error)
}

// handler answers deliveries. Its fields are set before the first.
type handler struct {
	sweeper   sweeper
	followUps followUps
	store     store
	announcer announcer
	// sendDue has what became due dispatched: at once where there is a sink, else by waking whoever does.
	sendDue   func(ctx context.Context) error
	ready     func(ctx context.Context) error
	telemetry *telemetry.Telemetry
	lives     lives // nil: nobody writes them
	log       *slog.Logger
	// readWithin bounds the reading of a body.
	readWithin time.Duration

	door  door
	slots slots
	warm  atomic.Bool // a delivery was taken before
}

// slots bound the work at a time; ticks and follow-ups do not take each other's.
type slots struct{ ticks, followUps, deadLetters chan struct{} }

const (
	ticksAtOnce = 4 // all but one are skipped, in no time
	// No fewer than Knative lets in at a time (containerConcurrency): what is more waits there, and brings another
	// instance. Refused here, it would cost the Trigger's retries, and the autoscaler would see nothing of it.
	followUpsAtOnce   = 10
	deadLettersAtOnce = 10
)

func newSlots() slots {
	return slots{
		ticks: make(chan struct{}, ticksAtOnce), followUps: make(chan struct{}, followUpsAtOnce), deadLetters: make(chan struct{}, deadLettersAtOnce),
	}
}

var errFull = &unavailable{reason: "too much is under way", after: 5 * time.Second}

// within runs work if there is a free slot.
func within(slot chan struct{}, work func() (any, error)) (any, error) {
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
		return work()
	default:
		return nil, errFull
	}
}

func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/{$}", h.post(h.deliver))
	mux.Handle("/dead-letter", h.post(h.deadLetter))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, nil, refuse(http.StatusNotFound, "there is nothing here: POST events to /"))
	})
	return mux
}

// taken is what became of a request, for the log and the answer.
type taken struct {
	event  ce.Event
	result any
	dryRun bool // nothing may be changed by it
	// trace is of who asked, for the log; a sweep's own where there is one.
	trace         trace.SpanContext
	reservationID string // that the event names
	// written waits for what is being written of reservations' lives; nil: nobody has begun to.
	written func()
}

// post answers a POST with what take makes of it: counted while the process shuts down, safe from panics, told to the
// log and the metrics, and with telemetry flushed before the answer, since nothing may run after it.
func (h *handler) post(take func(w http.ResponseWriter, r *http.Request, t *taken) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			answer(w, r, nil, refuse(http.StatusMethodNotAllowed, "events are POSTed"))
			return
		}
		if h.door.isClosing() {
			w.Header().Set("Connection", "close") // the next try had better find another instance
		}
		if !h.door.enter() {
			h.telemetry.Metrics.EventAnswered(r.Context(), telemetry.Unknown, http.StatusServiceUnavailable)
			answer(w, r, nil, errDraining)
			return
		}
		defer h.door.leave()

		began := time.Now()
		t := taken{event: ce.New()}
		err := h.safely(r.Context(), &t, func() error { return take(w, r, &t) })
		status, _ := statusOf(r, err)
		log := h.logOf(t).With("path", r.URL.Path, "type", t.event.Type(), "id", t.event.ID(), "subject", t.event.Subject(),
			"status", status, "took", time.Since(began).Round(time.Millisecond))
		if err != nil {
			log.WarnContext(r.Context(), "delivery not taken", "error", err)
		} else {
			log.InfoContext(r.Context(), "delivery taken")
		}
		h.tell(r.Context(), t, status)
		answer(w, r, t.result, err)
	})
}

// logOf returns the log in which every line says of which delivery it is.
func (h *handler) logOf(t taken) *slog.Logger {
	log := h.log
	if t.trace.IsValid() {
		log = log.With("trace_id", t.trace.TraceID().String(), "span_id", t.trace.SpanID().String())
	}
	if t.reservationID != "" {
		log = log.With("reservation_id", t.reservationID)
	}
	return log
}

// safely turns a panic into an error that may pass: the broker tries again, and gives up in the end.
func (h *handler) safely(ctx context.Context, t *taken, take func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.logOf(*t).ErrorContext(ctx, "delivery panicked", "panic", p, "stack", string(debug.Stack()))
			err = errors.New("panic")
		}
	}()
	return take()
}

// knownType keeps what strangers send out of the metrics' attributes.
func knownType(eventType string) string {
	if _, ok := event.KindOf(eventType); ok || event.IsFact(eventType) || eventType == event.Ping || eventType == event.SweepRequested {
		return eventType
	}
	return telemetry.Unknown
}

// deliver takes a tick or a follow-up.
func (h *handler) deliver(w http.ResponseWriter, r *http.Request, t *taken) error {
	e, err := receive(w, r, maxEvent, h.readWithin)
	if err != nil {
		return err
	}
	t.event = e
	if e.SpecVersion() != ce.CloudEventsVersionV1 {
		return refuse(http.StatusBadRequest, "specversion %q is not taken: send 1.0", e.SpecVersion())
	}
	if err := e.Validate(); err != nil {
		return refuse(http.StatusBadRequest, "malformed event: %s", oneLine(err))
	}
	ctx := telemetry.Extract(r.Context(), e)
	t.trace = trace.SpanContextFromContext(ctx)
	_, isFollowUp := event.KindOf(e.Type())
	switch {
	case e.Type() == event.Ping || e.Type() == event.SweepRequested:
		t.result, err = h.tick(r.Context(), t)
	case isFollowUp:
		t.result, err = within(h.slots.followUps, func() (any, error) { return h.followUp(ctx, t) })
	case event.IsFact(e.Type()):
		// Our own, which no trigger should bring. Refusing it would only fill the dead letters.
		t.result = map[string]string{"state": "ignored", "why": "it is a fact of this service"}
		h.log.WarnContext(ctx, "received a fact of our own: a trigger's filter is too wide", "type", e.Type())
	default:
		err = refuse(http.StatusBadRequest, "events of type %q are not taken", e.Type())
	}
	return err
}

func (h *handler) announced(ctx context.Context, err error) {
	if err != nil {
		h.log.WarnContext(ctx, "facts could not be announced and stay recorded", "error", err)
	}
}

// followUpResult is a report for people.
type followUpResult struct {
	followup.Report
	Again string `json:"again,omitempty"` // in how long it is looked at again
	Why   string `json:"why,omitempty"`   // nothing was done
}

var errHandedBack = &unavailable{reason: "interrupted: it is due as before", after: time.Second}

// followUp carries out the row that the event names. A failure that is on the row counts as taken: the row says when
// it is tried again, and until then a redelivery would find nothing to do.
func (h *handler) followUp(ctx context.Context, t *taken) (any, error) {
	e := t.event
	data, err := dataOf(e)
	if err != nil {
		return nil, err
	}
	t.reservationID = event.ReservationOf(data)
	name, key, err := event.KeyOf(e.Type(), data)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%s", oneLine(err))
	}
	ctx = telemetry.WithDelivery(ctx, telemetry.Delivery(e, !h.warm.Swap(true)))
	kind := postgres.FollowUpKind(name)
	report, err := h.followUps.Run(ctx, kind, key)
	if err == nil && report.State == followup.StateAbsent && kind == postgres.Cleanup {
		var due bool
		if due, err = h.store.EnsureCleanup(ctx, key); err == nil && due {
			report, err = h.followUps.Run(ctx, kind, key)
		}
	}
	if err != nil {
		return nil, err
	}
	if report.State == followup.StateHandedBack {
		return nil, errHandedBack
	}
	_, err = h.announcer.Share(ctx, report.About)
	h.announced(ctx, err)
	if err := h.sendDue(ctx); err != nil {
		h.log.WarnContext(ctx, "follow-ups could not be sent and stay due", "error", err)
	}
	result := followUpResult{Report: report, Why: h.whyNothing(ctx, report)}
	if report.Next > 0 {
		result.Again = report.Next.Round(time.Second).String()
	}
	return result, nil
}

// whyNothing says for people why a follow-up found nothing to do.
func (h *handler) whyNothing(ctx context.Context, report followup.Report) string {
	switch report.State {
	case followup.StateHeld:
		return "another delivery is at it"
	case followup.StateNotDue:
		return "it waits for its next try: explain says when that is"
	case followup.StateAbsent:
	default:
		return ""
	}
	if report.Kind != postgres.Cleanup {
		return "no sweep has asked for it"
	}
	switch r, found, err := h.store.Reservation(ctx, report.Key); {
	case err != nil: // it was there a moment ago
		h.log.WarnContext(ctx, "cannot tell why a cleanup was not asked for", "error", err)
		return "no sweep has asked for it"
	case !found:
		return "there is no such reservation"
	default:
		return fmt.Sprintf("the reservation is %s: nothing is to be cleaned up", r.Status)
	}
}

// dataOf returns JSON data that is as its type's schema wants it. No data is an empty object.
func dataOf(e ce.Event) ([]byte, error) {
	data := e.Data()
	if len(data) == 0 {
		data = []byte("{}")
	} else if media := strings.ToLower(e.DataMediaType()); media != "" && !strings.HasSuffix(media, "json") {
		return nil, refuse(http.StatusBadRequest, "data of %s must be JSON, not %s", e.Type(), media)
	}
	if err := event.ValidateData(e.Type(), data); err != nil {
		return nil, refuse(http.StatusBadRequest, "%s", oneLine(err))
	}
	return data, nil
}
