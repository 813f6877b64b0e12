package dispatch

import (
	"cmp"
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
	ClaimFacts(ctx context.Context, subject string, limit int, token uuid.UUID, lease time.Duration) ([]postgres.Fact, error)
	FactPublished(ctx context.Context, f postgres.Fact) error
	FactFailed(ctx context.Context, f postgres.Fact, cause error, pause time.Duration) error
}

// AnnouncerOptions tune an Announcer. The zero value is right for production.
type AnnouncerOptions struct {
	Within time.Duration    // after that no more is begun; 0: 10 s
	Each   time.Duration    // the sending of one fact takes no longer, tries and pauses included; 0: 10 s
	Lease  time.Duration    // of the facts being sent; 0: a minute. Longer than Each
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
	opts.Within = cmp.Or(opts.Within, 10*time.Second)
	opts.Each = cmp.Or(opts.Each, 10*time.Second)
	opts.Lease = cmp.Or(opts.Lease, time.Minute)
	opts.AtOnce = cmp.Or(opts.AtOnce, 8)
	opts.Log = cmp.Or(opts.Log, slog.Default())
	if opts.NewID == nil {
		opts.NewID = uuid.New
	}
	if opts.Jitter == nil {
		opts.Jitter = rand.Float64
	}
	return &Announcer{outbox: outbox, build: build, sender: sender, opts: opts}
}

// Drain sends the facts whose time has come and returns how many. Where the sink is not to be reached it gives up:
// what was tried waits for a growing pause, the others for the next Drain. Several may run at once.
func (a *Announcer) Drain(ctx context.Context) (int, error) { return a.drain(ctx, "") }

// Share is Drain for the facts of one subject, and for as many of others' as go at once: so each of many deliveries
// sends what it made true, and none of them all that is left. Without a subject it sends only others'.
func (a *Announcer) Share(ctx context.Context, subject string) (int, error) {
	own := 0
	if subject != "" {
		var err error
		if own, err = a.drain(ctx, subject); err != nil {
			return own, err
		}
	}
	_, others, err := a.some(ctx, "")
	return own + others, err
}

// drain sends the facts of one subject, or of all, until there are none or its time is over.
func (a *Announcer) drain(ctx context.Context, subject string) (int, error) {
	all := 0
	for began := time.Now(); ; {
		claimed, sent, err := a.some(ctx, subject)
		all += sent
		if err != nil || claimed == 0 || time.Since(began) >= a.opts.Within {
			return all, err
		}
	}
}

// some sends as many facts as go at once, and returns how many it claimed and how many of these were taken.
func (a *Announcer) some(ctx context.Context, subject string) (claimed, taken int, err error) {
	if a.sender == nil {
		return 0, 0, nil
	}
	facts, err := a.outbox.ClaimFacts(ctx, subject, a.opts.AtOnce, a.opts.NewID(), a.opts.Lease)
	if err != nil {
		return 0, 0, err
	}
	var sent atomic.Int64
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
		return len(facts), int(sent.Load()), fmt.Errorf("announce facts: %w", err)
	}
	return len(facts), int(sent.Load()), nil
}

func (a *Announcer) announce(ctx context.Context, f postgres.Fact) error {
	e, err := a.build.Fact(event.Fact{
		ID: f.ID.String(), Type: f.Type, Subject: f.Subject, Sequence: f.Sequence, Data: f.Data, OccurredAt: f.OccurredAt,
		Traceparent: f.Traceparent,
	})
	if err == nil {
		sending, cancel := context.WithTimeout(ctx, a.opts.Each)
		err = a.sender.Send(sending, e)
		cancel()
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
