package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Outbox holds the facts that are not announced yet; *postgres.DB is one.
type Outbox interface {
	ClaimFacts(ctx context.Context, limit int, token uuid.UUID, lease time.Duration) ([]postgres.Fact, error)
	FactPublished(ctx context.Context, f postgres.Fact) error
	FactFailed(ctx context.Context, f postgres.Fact, cause error, pause time.Duration) error
}

// AnnouncerOptions tune an Announcer. The zero value is right for production.
type AnnouncerOptions struct {
	Within time.Duration    // one Drain takes no longer; 0: 10 s
	Lease  time.Duration    // of the facts being sent; 0: a minute. Longer than Within and one send
	AtOnce int              // facts sent at a time, all of different subjects; 0: 8
	NewID  func() uuid.UUID // of leases; nil: random
	Jitter func() float64   // in [0, 1); nil: random
	Log    *slog.Logger     // nil: slog.Default
}

// Announcer sends facts to others, each at least once and those of one subject in order.
type Announcer struct {
	outbox Outbox
	build  event.Builder
	sender Sender
	opts   AnnouncerOptions
}

// NewAnnouncer returns an Announcer; without a sender the facts stay recorded.
func NewAnnouncer(outbox Outbox, build event.Builder, sender Sender, opts AnnouncerOptions) *Announcer {
	if opts.Within == 0 {
		opts.Within = 10 * time.Second
	}
	if opts.Lease == 0 {
		opts.Lease = time.Minute
	}
	if opts.AtOnce == 0 {
		opts.AtOnce = 8
	}
	if opts.NewID == nil {
		opts.NewID = uuid.New
	}
	if opts.Jitter == nil {
		opts.Jitter = rand.Float64
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &Announcer{outbox: outbox, build: build, sender: sender, opts: opts}
}

// Drain sends the facts whose time has come and returns how many. Where the sink is not to be reached it gives up:
// what was tried waits for a growing pause, the others for the next Drain. Several may run at once.
func (a *Announcer) Drain(ctx context.Context) (int, error) {
	if a.sender == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.opts.Within)
	defer cancel()
	var sent atomic.Int64
	for {
		facts, err := a.outbox.ClaimFacts(ctx, a.opts.AtOnce, a.opts.NewID(), a.opts.Lease)
		if err != nil || len(facts) == 0 {
			return int(sent.Load()), err
		}
		var group errgroup.Group
		for _, f := range facts {
			group.Go(func() error {
				switch err := a.announce(ctx, f); {
				case err == nil:
					sent.Add(1)
				case !fault.Is(err, fault.Permanent): // one that is refused stops no other
					return err
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return int(sent.Load()), fmt.Errorf("announce facts: %w", err)
		}
	}
}

func (a *Announcer) announce(ctx context.Context, f postgres.Fact) error {
	e, err := a.build.Fact(event.Fact{
		ID: f.ID.String(), Type: f.Type, Subject: f.Subject, Sequence: f.Sequence, Data: f.Data, OccurredAt: f.OccurredAt,
		Traceparent: f.Traceparent,
	})
	if err == nil {
		err = a.sender.Send(ctx, e)
	}
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err == nil {
		return a.outbox.FactPublished(recording, f)
	}
	// Never for an hour: that a sink was away for long says nothing against the fact.
	pause := followup.Pause(min(f.Attempts+1, followup.StuckAfter-1), a.opts.Jitter())
	a.opts.Log.WarnContext(ctx, "fact not announced", "type", f.Type, "subject", f.Subject, "attempt", f.Attempts+1, "again_in", pause, "error", err)
	if failure := a.outbox.FactFailed(recording, f, err, pause); failure != nil {
		a.opts.Log.ErrorContext(ctx, "cannot record that a fact was not announced: it is sent again later", "error", failure)
	}
	return err
}
