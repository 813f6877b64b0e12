package sweep

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// part is one concern of a sweep. The parts run one after another; the failure, panic or hanging of one stops no
// other.
type part struct {
	name string
	// new: it decides something new, and so rests while paused. The others carry on what was begun.
	new bool
	// everything: it is not about single reservations, and so rests in a sweep that was asked for some of them only.
	everything bool
	// first: decided before the others share what time is left.
	first bool
	// plan looks at the world and decides, and changes nothing. It obeys ctx, whose deadline is its share of the time.
	plan func(ctx context.Context, p *pass) (plan, error)
}

// pass is what the parts of one sweep have in common.
type pass struct {
	lease postgres.SweepLease // a dry run's is zero: nothing can be written with it
	now   time.Time           // the database's clock, read once
	last  time.Time           // when the last sweep that could decide began; zero: there was none
	only  []string            // the reservations asked for; empty: all
	// paused: parts that carry on what was begun begin nothing.
	paused bool
	// planned is what the parts before have decided, in a dry run: the rows do not show it.
	planned []Decision
	brake   *brake
	// listing is what the cluster shows, read at first need and once for all parts.
	listing func(context.Context) (*listing, error)
	// snapshots is what EC2 shows of the disks' snapshots, likewise.
	snapshots func(context.Context) (*snapshotList, error)
}

// spared is a reservation that a sweep leaves as it is although something is to be done about it.
type spared struct {
	id, reason string
	since      time.Time // when that began; zero: nobody knows
}

// plan is what a part has decided.
type plan struct {
	decisions []Decision
	spared    []spared
	anomalies anomalies
	counts    map[string]int // of what was seen
	failures  error          // what could not be looked at; of the rest it was decided all the same
	// apply carries the decisions out, each guarded by what was believed when it was decided. It is not called in a dry
	// run, and may be nil. With an error comes what was done all the same.
	apply func(ctx context.Context) (done, error)
}

// done is what became of a plan.
type done struct {
	decisions []Decision // those that were carried out; the others were overtaken by somebody's change
	counts    map[string]int
}

// carriedOut returns the decisions about the reservations with these ids.
func carriedOut(decisions []Decision, ids []string) []Decision {
	wanted := make(map[string]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	var out []Decision
	for _, d := range decisions {
		if wanted[d.ReservationID] {
			out = append(out, d)
		}
	}
	return out
}

// report is how a part went.
type report struct {
	plan plan
	done done
	err  error
	took time.Duration
}

// patience is how long a part may take to stop when its time is over, before the sweep goes on without it.
const patience = time.Second

var errOutOfTime = errors.New("its share of the sweep's time is over; the next tick goes on")

// run lets a part decide and, unless it is a dry run, act, within the given time.
func (pt part) run(ctx context.Context, p *pass, dryRun bool, limit time.Duration) report {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errOutOfTime)
	defer cancel()
	// One that does not stop is left behind. It cannot do harm later: what it writes needs the lease.
	result := make(chan report, 1)
	go func() { result <- pt.do(ctx, p, dryRun) }()
	var r report
	select {
	case r = <-result:
	case <-ctx.Done():
		select {
		case r = <-result:
		case <-time.After(patience):
			r.err = fmt.Errorf("does not stop: %w", context.Cause(ctx))
		}
	}
	r.took = time.Since(began)
	if r.err != nil && ctx.Err() != nil && !errors.Is(r.err, context.Cause(ctx)) {
		r.err = fmt.Errorf("%w: %w", context.Cause(ctx), r.err)
	}
	return r
}

func (pt part) do(ctx context.Context, p *pass, dryRun bool) (r report) {
	defer func() {
		if panicked := recover(); panicked != nil {
			r.err = fmt.Errorf("panic: %v\n%s", panicked, debug.Stack())
		}
	}()
	var err error
	r.plan, err = pt.plan(ctx, p)
	if err == nil && !dryRun && r.plan.apply != nil {
		if err = context.Cause(ctx); err == nil {
			r.done, err = r.plan.apply(ctx)
		}
	}
	r.err = errors.Join(r.plan.failures, err)
	return r
}
