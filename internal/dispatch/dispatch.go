// Package dispatch sends what the rows ask for: due follow-ups to a sink or to the service itself, and facts to
// others. What is not sent stays due, and is found again.
package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store is the queue with what becomes of a dispatch; *postgres.DB is one.
type Store interface {
	Queue
	UndoDispatch(ctx context.Context, f postgres.FollowUp, pause time.Duration) error
	RefuseDispatch(ctx context.Context, f postgres.FollowUp, cause error) error
}

// Options tune a Dispatcher. The zero value is right for production.
type Options struct {
	AtOnce int           // sends at a time; 0: 8
	Pause  time.Duration // until a follow-up that found no taker is sent again by Run; 0: 2 s
	// Grace is how long Run waits for sends under way when it is to end, before it cuts them off; 0: 18 s.
	Grace time.Duration
	Log   *slog.Logger // nil: slog.Default
}

// Dispatcher sends the events of due follow-ups.
type Dispatcher struct {
	store  Store
	build  event.Builder
	sender Sender
	opts   Options
	wake   chan struct{}
}

// New returns a Dispatcher that sends through sender.
func New(store Store, build event.Builder, sender Sender, opts Options) *Dispatcher {
	opts.AtOnce = cmp.Or(opts.AtOnce, 8)
	opts.Pause = cmp.Or(opts.Pause, 2*time.Second)
	opts.Grace = cmp.Or(opts.Grace, 18*time.Second)
	opts.Log = cmp.Or(opts.Log, slog.Default())
	return &Dispatcher{store: store, build: build, sender: sender, opts: opts, wake: make(chan struct{}, 1)}
}

// Sent counts what SendDue did.
type Sent struct {
	Sent    int `json:"sent"`
	Refused int `json:"refused,omitempty"` // recorded as failures on their rows
	Failed  int `json:"failed,omitempty"`  // due as before
}

// SendDue sends every follow-up that is due, for a sink that takes events at once. It stops at the first that the
// sink does not take, and when ctx ends; what was not sent stays due. The error says that something did.
func (d *Dispatcher) SendDue(ctx context.Context) (Sent, error) {
	picking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var sent, refused, failed atomic.Int64
	err := drain(picking, d.store, d.opts.AtOnce, func(f postgres.FollowUp) {
		switch err := d.send(ctx, f, 0); {
		case err == nil:
			sent.Add(1)
		case fault.Is(err, fault.Permanent):
			refused.Add(1)
		default:
			failed.Add(1)
			stop(err)
		}
	})
	count := Sent{Sent: int(sent.Load()), Refused: int(refused.Load()), Failed: int(failed.Load())}
	if cause := context.Cause(picking); cause != nil {
		err = cause
	}
	if err != nil {
		return count, fmt.Errorf("send due follow-ups: %w", err)
	}
	return count, nil
}

// Run sends follow-ups as they become due until ctx ends, for a service that is its own sink.
func (d *Dispatcher) Run(ctx context.Context) {
	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d.opts.Grace, cut) })
	defer stop()
	failed := func(err error) { d.opts.Log.ErrorContext(ctx, "cannot look for due follow-ups", "error", err) }
	follow(ctx, d.store, d.opts.AtOnce, d.wake, failed, func(f postgres.FollowUp) { _ = d.send(sending, f, d.opts.Pause) })
}

// Wake makes Run look at once. It never waits.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// recordWithin bounds the writing of what became of a dispatch, which goes on while the process shuts down.
const recordWithin = 5 * time.Second

// send sends the event of one row and records on it where that failed. What failed is logged here.
func (d *Dispatcher) send(ctx context.Context, f postgres.FollowUp, pause time.Duration) error {
	parent := f.Traceparent
	if parent == "" {
		parent = telemetry.TraceParent(ctx)
	}
	e, err := d.build.FollowUp(event.FollowUp{
		Kind: string(f.Kind), Key: f.Key, ReservationID: f.ReservationID, Subject: f.Subject, Dispatch: f.Dispatch, Traceparent: parent,
	})
	if err != nil {
		err = fault.Errorf(fault.Permanent, "%w", err)
	} else {
		err = d.sender.Send(ctx, e)
	}
	if err == nil {
		return nil
	}
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	log := d.opts.Log.With("follow_up", f.Kind, "key", f.Key, "reservation_id", f.ReservationID, "dispatch", f.Dispatch)
	record := d.store.UndoDispatch
	if fault.Is(err, fault.Permanent) {
		log.ErrorContext(ctx, "follow-up cannot be sent", "error", err)
		record = func(ctx context.Context, f postgres.FollowUp, _ time.Duration) error {
			return d.store.RefuseDispatch(ctx, f, err)
		}
	} else {
		log.WarnContext(ctx, "follow-up found no taker and stays due", "error", err)
	}
	if failure := record(recording, f, pause); failure != nil {
		log.ErrorContext(ctx, "cannot record that a follow-up was not sent: it is asked for again later", "error", failure)
	}
	return err
}

// Runner carries out one follow-up; *followup.Runner is one.
type Runner interface {
	Run(ctx context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error)
}

// RunDue carries out in this process, without events, every follow-up that is due or becomes so meanwhile, at most
// eight at a time, and passes each report to each, one after the other. It ends when nothing is due any more, or with ctx. Rows that
// could not be read or written are reported with their error.
func RunDue(ctx context.Context, queue Queue, runner Runner, each func(followup.Report, error)) error {
	var telling sync.Mutex
	err := drain(ctx, queue, 8, func(f postgres.FollowUp) {
		report, err := runner.Run(telemetry.WithTraceParent(ctx, f.Traceparent), f.Kind, f.Key)
		telling.Lock()
		defer telling.Unlock()
		each(report, err)
	})
	if err != nil {
		return fmt.Errorf("run due follow-ups: %w", err)
	}
	return nil
}
