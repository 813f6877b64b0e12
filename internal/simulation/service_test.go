package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"

	"gpudev.internal/reservation-expiry/internal/availability"
	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/warning"
)

// The rules that the simulated service runs by.
const (
	grace   = 2 * time.Minute
	confirm = 4 * time.Minute
	zone    = "dev.example.com"
)

// service is the whole service as function/ wires it, without HTTP: what a delivery does here is what its handler does.
type service struct {
	w          *world
	store      store
	sweeper    *sweep.Sweeper
	runner     *followup.Runner
	dispatcher *dispatch.Dispatcher
	announcer  *dispatch.Announcer
	own        bool // it is its own sink: rows are sent as they become due
	keep       bool // KEEP_VOLUMES
	polling    bool
	stale      bool       // due is
	due        *time.Time // of the row that comes next
	begun      int        // processes
}

func newService(w *world) *service {
	log := slog.New(slog.DiscardHandler)
	s := &service{w: w, store: store{w.data.db, w}, own: w.oneIn(2), keep: w.oneIn(10)}
	kube := newCluster(w)
	ec2, aws := amazon{w, w.outside.EC2}, services{w, w.outside.Network}
	sleep := func(ctx context.Context, d time.Duration) error {
		if p := processOf(ctx); p.dead {
			return errDead
		}
		w.outside.Advance(d)
		if end, ok := ctx.Deadline(); ok && w.now().After(end) {
			return context.DeadlineExceeded
		}
		return ctx.Err()
	}
	inTurn := func(tracks []func()) {
		for _, i := range w.rand.Perm(len(tracks)) {
			tracks[i]()
		}
	}
	lag := disk.Lag
	if w.sabotaged(heardOfNever) {
		lag = 5 * time.Hour
	}
	world := snapshot.World{Store: s.store, EC2: ec2, Cluster: kube, Identity: aws}
	disks := snapshot.Options{Interval: 4 * time.Second, Now: w.now, Sleep: sleep, NewID: w.uuid, KeepVolumes: s.keep, Lag: lag, Log: log}
	s.sweeper = sweep.New(s.store, sweep.Outside{Cluster: kube, EC2: ec2, Account: aws}, sweep.Options{
		Grace: s.grace(), WarningMinutes: 30, BrakePercent: 20, BrakeMin: 5, MissingConfirm: confirm,
		Spot: func(gpu string) bool { return gpu == "t4" }, Holder: "simulation", Now: w.now, NewID: w.uuid, Log: log,
	})
	s.runner = followup.NewRunner(s.store, map[postgres.FollowUpKind]followup.Action{
		postgres.Warning: warning.NewWarnings(s.store, kube, warning.Options{Log: log}),
		postgres.Notice:  warning.NewNotices(s.store, kube, warning.Options{Log: log}),
		postgres.Cleanup: cleanup.New(cleanup.World{
			Store: s.store, Cluster: kube, EC2: ec2, Identity: aws, Router: aws, Disk: snapshot.NewKeeper(world, disks), DNS: aws, Bucket: aws,
		}, cleanup.Options{Domain: zone, Lag: lag, Interval: 3 * time.Second, Now: w.now, Sleep: sleep, Tracks: inTurn, Log: log}),
		postgres.SnapshotSync:       snapshot.NewSync(world, disks),
		postgres.SnapshotPurge:      snapshot.NewPurge(world, disks),
		postgres.AvailabilityUpdate: availability.New(aws, availability.Options{Log: log}),
	}, followup.Options{NewID: w.uuid, Jitter: func() float64 { return 0 }, Log: log})
	build := event.Builder{Now: w.now}
	s.dispatcher = dispatch.New(s.store, build, sink{w, w.bus.send}, dispatch.Options{AtOnce: 1, Log: log})
	s.announcer = dispatch.NewAnnouncer(s.store, build, sink{w, w.checks.heard}, dispatch.AnnouncerOptions{
		AtOnce: 1, NewID: w.uuid, Jitter: func() float64 { return 0 }, Log: log,
	})
	w.bus.w = w
	return s
}

// process begins the work on one delivery.
func (s *service) process(name string) *process {
	s.begun++
	p := &process{name: fmt.Sprintf("%s#%d", name, s.begun), began: s.w.now(), known: map[string]bool{}}
	p.ctx, p.stop = context.WithCancel(context.WithValue(context.Background(), processKey{}, p))
	return p
}

// timed is a context whose deadline is by the world's clock.
type timed struct {
	context.Context
	end time.Time
}

func (t timed) Deadline() (time.Time, bool) { return t.end, true }

// tick is what the handler does with a ping.
func (s *service) tick(p *process) {
	defer p.stop()
	s.w.say(p.name, "tick")
	clean := s.w.faults.wrong()
	r, err := s.sweeper.Sweep(p.ctx, event.Ping, event.SweepRequest{})
	if errors.Is(err, postgres.ErrLeaseLost) {
		err = nil
	}
	for _, d := range r.Decided {
		s.w.say(p.name, "decided: %s %s%s: %s", d.Action, d.ReservationID, d.Subject, d.Reason)
	}
	s.w.say(p.name, "sweep %s %v %v", r.Outcome, r.Failures, err)
	s.w.checks.paused(r)
	if err == nil && r.Outcome != sweep.Skipped && clean == s.w.faults.wrong() {
		s.w.checks.swept(r)
	}
	if err == nil {
		_, _ = s.dispatcher.SendDue(p.ctx)
		_, _ = s.announcer.Drain(p.ctx)
	}
}

// rehearse is what the command does with --dry-run.
func (s *service) rehearse(p *process) {
	defer p.stop()
	s.w.say(p.name, "begins")
	s.w.checks.rehearsed(func() {
		r, err := s.sweeper.Sweep(p.ctx, event.Ping, event.SweepRequest{DryRun: !s.w.sabotaged(rehearsalReal)})
		s.w.say(p.name, "would make %d decisions: %v %v", len(r.Planned), r.Failures, err)
	})
}

// deliver is what the handler does with a follow-up. An error means that the bus tries again.
func (s *service) deliver(p *process, e ce.Event) error {
	defer p.stop()
	name, key, err := event.KeyOf(e.Type(), e.Data())
	if err != nil {
		s.w.say(p.name, "refused: %v", err)
		return nil
	}
	s.w.say(p.name, "delivery of %s for %s %s", e.ID(), name, key)
	kind := postgres.FollowUpKind(name)
	if s.w.sabotaged(eventsBelieved) {
		s.believe(p, e)
	}
	ctx := timed{p.ctx, s.w.now().Add(followup.Limit(kind))}
	report, err := s.runner.Run(ctx, kind, key)
	if err == nil && report.State == followup.StateAbsent && kind == postgres.Cleanup {
		var due bool
		if due, err = s.store.EnsureCleanup(p.ctx, key); err == nil && due {
			report, err = s.runner.Run(ctx, kind, key)
		}
	}
	s.w.say(p.name, "→ %s %s %s %v", report.State, report.Outcome, report.Error, err)
	if err != nil || report.State == followup.StateHandedBack {
		return errLost
	}
	_, _ = s.announcer.Share(p.ctx, report.About)
	_, _ = s.dispatcher.SendDue(p.ctx)
	return nil
}

// poll sends what has become due, where the service is its own sink. again says that this may have changed.
func (s *service) poll(again bool) {
	s.stale = s.stale || again
	if !s.own || s.polling {
		return
	}
	if s.stale {
		s.stale = false
		s.due = column[*time.Time](s.w.data, `
			select min(greatest(due_at, ask_again_at, lease_expires_at)) from expiry.follow_ups where state = 'due'`)[0]
	}
	if s.due == nil || s.due.Sub(s.w.now()) > tickEvery {
		return
	}
	s.polling = true
	s.w.in(max(s.due.Sub(s.w.now()), 250*time.Millisecond), "poll", func() {
		s.polling = false
		p := s.process("dispatcher")
		defer p.stop()
		_, _ = s.dispatcher.SendDue(p.ctx)
	})
}

// sink is where events go.
type sink struct {
	w    *world
	take func(e ce.Event)
}

func (s sink) Send(ctx context.Context, e ce.Event) error {
	what := "send " + e.ID()
	if strings.HasPrefix(e.Type(), "dev.gpudev.reservation.") || strings.HasPrefix(e.Type(), "dev.gpudev.disk.") {
		what = fmt.Sprintf("announce %s of %s", e.Type(), e.Subject())
	}
	return s.w.call(ctx, sinks, what, func() error { s.take(e); return nil })
}

// bus carries events. It loses, doubles and delays them.
type bus struct {
	w      *world
	flying []*flight
}

type flight struct {
	event  ce.Event
	tries  int
	landed bool
}

func (b *bus) send(e ce.Event) {
	w := b.w
	switch {
	case w.sabotaged(cleanupsLost) && strings.HasPrefix(e.ID(), "cleanup/"):
	case w.quiet:
		b.fly(20*time.Millisecond, &flight{event: e})
	case w.oneIn(15):
		w.faults.count("bus: event lost")
		w.say("bus", "loses %s", e.ID())
	case w.oneIn(12):
		w.faults.count("bus: event doubled")
		b.fly(w.between(0, time.Second), &flight{event: e})
		b.fly(w.between(0, 3*time.Minute), &flight{event: e})
	case w.oneIn(10):
		w.faults.count("bus: event late")
		b.fly(w.between(10*time.Second, 20*time.Minute), &flight{event: e})
	default:
		b.fly(w.between(5*time.Millisecond, 600*time.Millisecond), &flight{event: e})
	}
}

func (b *bus) fly(d time.Duration, f *flight) {
	b.flying = append(b.flying, f)
	b.w.in(d, "deliver", func() { b.land(f) })
}

func (b *bus) land(f *flight) {
	if f.landed {
		return
	}
	f.landed = true
	for i := range b.flying {
		if b.flying[i] == f {
			b.flying = append(b.flying[:i], b.flying[i+1:]...)
			break
		}
	}
	w := b.w
	p := w.service.process("delivery")
	if err := w.service.deliver(p, f.event); err != nil && f.tries < 3 {
		w.say("bus", "tries %s again", f.event.ID())
		b.fly(w.between(time.Second, 20*time.Second), &flight{event: f.event, tries: f.tries + 1})
	}
}

// deliverNow lands one event at once, or reports that none is on its way.
func (b *bus) deliverNow(w *world) bool {
	if len(b.flying) == 0 {
		return false
	}
	b.land(b.flying[w.rand.IntN(len(b.flying))])
	return true
}

func (s *service) grace() time.Duration {
	if s.w.sabotaged(earlyGrace) {
		return -20 * time.Minute
	}
	return grace
}
