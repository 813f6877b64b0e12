// Package sweep is one pass over all reservations: it reads, decides and records what is due. It sends nothing and
// waits for nothing: what it asks for, follow-ups carry out.
package sweep

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store keeps the lease and the record of sweeps, and what the parts need; *postgres.DB is one.
type Store interface {
	Observe(ctx context.Context) (postgres.Observation, error)
	BeginSweep(ctx context.Context, sweepID uuid.UUID, trigger, holder string, ttl time.Duration) (postgres.SweepLease, postgres.Observation, bool, error)
	RenewSweep(ctx context.Context, lease postgres.SweepLease, ttl time.Duration) error
	UnknownReservations(ctx context.Context, ids []string) ([]string, error)
	FinishSweep(ctx context.Context, lease postgres.SweepLease, end postgres.SweepEnd) (time.Time, error)

	telemetryStore
	deadlineStore
	warningStore
	stuckStore
	listingStore
	podStore
	leftoverStore
	snapshotStore
	lockStore
	historyStore
}

// Outside is what a sweep looks at besides the database. Where something is nil the parts that need it are left out.
type Outside struct {
	Cluster Cluster
	EC2     EC2
	Account Account
}

// Options are a sweep's rules, as configured, and what tests and simulations replace.
type Options struct {
	Grace          time.Duration             // GRACE_PERIOD_SECONDS
	WarningMinutes int                       // WARNING_MINUTES
	BrakePercent   int                       // BRAKE_PERCENT
	BrakeMin       int                       // BRAKE_MIN
	MissingConfirm time.Duration             // MISSING_CONFIRM
	Spot           func(gpuType string) bool // SPOT_GPU_TYPES; nil: none
	Timeout        time.Duration             // SWEEP_TIMEOUT; 0: 60 s

	LeaseFor    time.Duration        // 0: 30 s
	RenewEvery  time.Duration        // 0: a third of LeaseFor
	KeepHistory time.Duration        // of what is over and announced; 0: 30 days
	Holder      string               // who sweeps, for people; "": the host's name
	Now         func() time.Time     // this machine's clock, which is only ever compared with the database's
	NewID       func() uuid.UUID     // of sweeps; nil: random
	Log         *slog.Logger         // nil: slog.Default
	Trace       *telemetry.Telemetry // nil: disabled
}

// Sweeper runs sweeps. It is safe for concurrent use: at most one sweep runs at a time, wherever it was asked for.
type Sweeper struct {
	store   Store
	outside Outside
	opts    Options
	parts   []part
}

// New returns a Sweeper. It touches nothing.
func New(store Store, outside Outside, opts Options) *Sweeper {
	if opts.Timeout == 0 {
		opts.Timeout = time.Minute
	}
	if opts.LeaseFor == 0 {
		opts.LeaseFor = 30 * time.Second
	}
	if opts.RenewEvery == 0 {
		opts.RenewEvery = opts.LeaseFor / 3
	}
	if opts.KeepHistory == 0 {
		opts.KeepHistory = 30 * 24 * time.Hour
	}
	if opts.Holder == "" {
		opts.Holder, _ = os.Hostname() // for people only
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.NewID == nil {
		opts.NewID = uuid.New
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Trace == nil {
		opts.Trace = telemetry.Disabled()
	}
	if opts.Spot == nil {
		opts.Spot = func(string) bool { return false }
	}
	s := &Sweeper{store: store, outside: outside, opts: opts, parts: []part{
		deadlines(store, opts.Grace),
		warnings(store, reservation.Levels(opts.WarningMinutes)),
		stuck(store),
		cleanups(store),
	}}
	if outside.Cluster != nil {
		s.parts = append(s.parts,
			pods{store, outside.Cluster, outside.EC2, opts.MissingConfirm, opts.Spot}.part(),
			strays(store))
	}
	if outside.EC2 != nil {
		s.parts = append(s.parts, syncs(store), retention(store, outside.EC2))
	}
	s.parts = append(s.parts, locks(store, outside.EC2), history(store, opts.KeepHistory))
	return s
}

// Sweep runs one sweep, or in a dry run says what one would do and changes nothing. trigger is the type of the event
// that asked for it, or "shell". Where another sweep is running the outcome is Skipped and nothing was done.
//
// Parts that failed are in the result, which is not an error. An error means that the sweep could not begin, that its
// end could not be recorded, or, as postgres.ErrLeaseLost, that another one has taken over. What was decided before is
// committed with its follow-ups; sending them is the caller's.
func (s *Sweeper) Sweep(ctx context.Context, trigger string, req event.SweepRequest) (Result, error) {
	began := time.Now()
	r := Result{Trigger: trigger, DryRun: req.DryRun, Counts: map[string]int{}, Durations: map[string]int64{}}
	lease, seen, ok, err := s.begin(ctx, trigger, req.DryRun)
	if err != nil {
		s.opts.Trace.Metrics.SweepDone(ctx, time.Since(began), string(Failed))
		return r, fmt.Errorf("begin a sweep: %w", err)
	}
	if !ok {
		r.Outcome = Skipped
		s.opts.Trace.Metrics.SweepSkipped(ctx, "lease held")
		s.opts.Log.InfoContext(ctx, "tick skipped: another sweep is running", "trigger", trigger)
		return r, nil
	}
	r.StartedAt, r.Paused = seen.Now, seen.Pause
	if len(req.ReservationIDs) > 0 {
		if r.Unknown, err = s.store.UnknownReservations(ctx, req.ReservationIDs); err != nil { // it decides nothing
			s.opts.Log.WarnContext(ctx, "cannot tell which of the reservations asked for are unknown", "error", err)
		}
	}
	p := s.newPass(lease, seen, req.ReservationIDs)
	held, stop := ctx, func() {}
	if !req.DryRun {
		r.SweepID = lease.SweepID().String()
		held, stop = s.keepLease(ctx, lease, began)
	}
	s.runParts(held, p, &r, began)
	stop()
	if r.Brake = p.brake.report(); r.Brake.Engaged() {
		s.opts.Log.WarnContext(ctx, "the brake holds endings back", "state", r.Brake.State, "reason", r.Brake.Reason)
	}
	if req.DryRun {
		s.opts.Trace.Metrics.SweepDone(ctx, time.Since(began), "dry-run")
		return r, nil
	}
	err = s.finish(ctx, lease, &r)
	s.measure(ctx, r, time.Since(began))
	return r, err
}

type observation struct {
	postgres.Observation
	skew time.Duration // the database's clock minus this machine's
}

func (s *Sweeper) begin(ctx context.Context, trigger string, dryRun bool) (lease postgres.SweepLease, seen observation, ok bool, err error) {
	before := s.opts.Now()
	if dryRun {
		seen.Observation, err = s.store.Observe(ctx)
		ok = err == nil
	} else {
		lease, seen.Observation, ok, err = s.store.BeginSweep(ctx, s.opts.NewID(), trigger, s.opts.Holder, s.opts.LeaseFor)
	}
	between := before.Add(s.opts.Now().Sub(before) / 2)
	seen.skew = seen.Now.Sub(between)
	return lease, seen, ok, err
}

func (s *Sweeper) newPass(lease postgres.SweepLease, seen observation, only []string) *pass {
	return &pass{
		lease: lease, now: seen.Now, last: seen.Last, only: only, paused: seen.Pause != nil,
		listing:   listPods(s.store, s.outside.Cluster, seen.Now),
		snapshots: listSnapshots(s.outside.EC2, s.outside.Account),
		brake: &brake{input: reservation.BrakeInput{
			Active: seen.Active, Percent: s.opts.BrakePercent, Min: s.opts.BrakeMin, ClockSkew: seen.skew,
		}},
	}
}

// runParts runs the parts that are not at rest, each within its share of the time, and stops early only where the
// sweep itself is over.
func (s *Sweeper) runParts(ctx context.Context, p *pass, r *Result, began time.Time) {
	var awake []part
	for _, pt := range s.parts {
		if (pt.new && r.Paused != nil) || (pt.everything && len(p.only) > 0) {
			continue
		}
		awake = append(awake, pt)
	}
	budget := s.opts.Timeout - s.opts.Timeout/10 // the rest is for recording the end
	failed := 0
	for i, pt := range awake {
		left := budget - time.Since(began)
		if left <= 0 || ctx.Err() != nil {
			why := errOutOfTime
			if ctx.Err() != nil {
				why = context.Cause(ctx)
			}
			s.failed(ctx, r, pt, fmt.Errorf("not begun: %w", why))
			failed++
			continue
		}
		limit := left / time.Duration(len(awake)-i)
		if pt.first {
			limit = max(limit, left/2)
		}
		one := *p // a part that hangs may still look at its own
		one.planned = r.Planned
		report := pt.run(ctx, &one, r.DryRun, limit)
		if report.err != nil {
			s.failed(ctx, r, pt, report.err)
			failed++
		}
		s.keep(ctx, p, r, pt, report)
	}
	switch {
	case failed == 0:
		r.Outcome = Completed
	case failed < len(awake):
		r.Outcome = Partial
	default:
		r.Outcome = Failed
	}
}

func (s *Sweeper) failed(ctx context.Context, r *Result, pt part, err error) {
	s.opts.Log.ErrorContext(ctx, "a part of the sweep failed", "sweep_id", r.SweepID, "part", pt.name, "error", err)
	r.Failures = append(r.Failures, event.PartFailure{Part: pt.name, Error: storable(err)})
}

// storable is an error's text as a row takes it: in one line, without the stack of a panic.
func storable(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\ngoroutine ")
	text = strings.Join(strings.Fields(strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "�")), " ")
	if runes := []rune(text); len(runes) > errorMost {
		text = string(runes[:errorMost]) + "…"
	}
	return text
}

// keep takes over what a part reports, and logs each decision with its reason: one to leave a reservation as it is only
// when that is new, since it is the same at each tick.
func (s *Sweeper) keep(ctx context.Context, p *pass, r *Result, pt part, report report) {
	r.Durations[pt.name] = report.took.Milliseconds()
	r.Anomalies = append(r.Anomalies, report.plan.anomalies...)
	maps.Copy(r.Counts, report.plan.counts)
	maps.Copy(r.Counts, report.done.counts)
	for _, a := range report.plan.anomalies {
		s.opts.Log.WarnContext(ctx, "rows left alone", "sweep_id", r.SweepID, "anomaly", a.Kind, "what", a.Sentence,
			"count", a.Count, "reservation_ids", a.ReservationIDs, "subjects", a.Subjects)
	}
	for _, left := range report.plan.spared {
		if !left.since.IsZero() && left.since.Before(p.last) {
			continue
		}
		s.opts.Log.InfoContext(ctx, "left as it is", "sweep_id", r.SweepID, "reservation_id", left.id, "reason", left.reason)
	}
	if r.DryRun {
		r.Planned = append(r.Planned, report.plan.decisions...)
		return
	}
	r.Decided = append(r.Decided, report.done.decisions...)
	s.trace(ctx, pt, report.done.decisions)
	for _, d := range report.done.decisions {
		s.opts.Log.InfoContext(ctx, "decided", "sweep_id", r.SweepID, "reservation_id", d.ReservationID, "subject", d.Subject,
			"action", d.Action, "reason", d.Reason)
	}
}

// recordWithin bounds the recording of a sweep's end, which goes on while the process shuts down.
const recordWithin = 5 * time.Second

func (s *Sweeper) finish(ctx context.Context, lease postgres.SweepLease, r *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	end := postgres.SweepEnd{
		Outcome: string(r.Outcome), Braked: r.Brake.Engaged(), Counts: r.Counts, Failures: r.Failures,
		Brake: r.Brake, Anomalies: append([]Anomaly{}, r.Anomalies...), Durations: r.Durations,
	}
	var err error
	if r.FinishedAt, err = s.store.FinishSweep(ctx, lease, end); err != nil {
		r.Outcome = Failed
		return fmt.Errorf("finish sweep %s: %w", r.SweepID, err)
	}
	s.opts.Log.InfoContext(ctx, "sweep finished", "sweep_id", r.SweepID, "trigger", r.Trigger, "outcome", r.Outcome,
		"paused", r.Paused != nil, "counts", r.Counts, "took", r.FinishedAt.Sub(r.StartedAt))
	return nil
}
