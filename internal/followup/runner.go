package followup

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Store keeps the rows of follow-ups; *postgres.DB is one.
type Store interface {
	ClaimFollowUp(ctx context.Context, kind postgres.FollowUpKind, key string, token uuid.UUID, lease time.Duration) (postgres.FollowUp, bool, error)
	FollowUpStanding(ctx context.Context, kind postgres.FollowUpKind, key string) (postgres.Standing, error)
	FinishFollowUp(ctx context.Context, f postgres.FollowUp, outcome string) (bool, error)
	PostponeFollowUp(ctx context.Context, f postgres.FollowUp, pause time.Duration) (bool, error)
	FailFollowUp(ctx context.Context, f postgres.FollowUp, cause error, pause time.Duration) (bool, error)
	HandBackFollowUp(ctx context.Context, f postgres.FollowUp) (bool, error)
}

// Options tune a Runner. The zero value is right for production.
type Options struct {
	Lease    time.Duration    // 0: 2 minutes
	Deadline time.Duration    // of one action; 0: the Limit of its kind
	NewID    func() uuid.UUID // of leases; nil: random
	Jitter   func() float64   // in [0, 1); nil: random
	Log      *slog.Logger     // nil: slog.Default
}

// Limit is how long an action of a kind may take: shorter than the lease by more than any single outside call takes, and
// than its Trigger's timeout (knative/base/triggers.yaml) by the time in which the result is recorded.
func Limit(kind postgres.FollowUpKind) time.Duration {
	switch kind {
	case postgres.Cleanup, postgres.SnapshotSync: // they wait for the world for up to a minute
		return 100 * time.Second
	case postgres.AvailabilityUpdate: // one call
		return 22 * time.Second
	case postgres.Warning, postgres.Notice, postgres.SnapshotPurge:
	}
	return 50 * time.Second
}

// recordWithin bounds the writing of a result, which goes on while the process shuts down.
const recordWithin = 5 * time.Second

// Runner runs actions on rows under lease. It is safe for concurrent use.
type Runner struct {
	store   Store
	actions map[postgres.FollowUpKind]Action
	opts    Options
}

// NewRunner returns a Runner with an action for each kind it is to carry out.
func NewRunner(store Store, actions map[postgres.FollowUpKind]Action, opts Options) *Runner {
	opts.Lease = cmp.Or(opts.Lease, 2*time.Minute)
	opts.Log = cmp.Or(opts.Log, slog.Default())
	if opts.NewID == nil {
		opts.NewID = uuid.New
	}
	if opts.Jitter == nil {
		opts.Jitter = rand.Float64
	}
	return &Runner{store: store, actions: actions, opts: opts}
}

// State says what became of a follow-up in one Run.
type State string

// What may become of a follow-up.
const (
	StateDone       State = "done"
	StatePostponed  State = "postponed"   // waits for the world
	StateFailed     State = "failed"      // and will be tried again
	StateHandedBack State = "handed back" // interrupted: due as before
	StateHeld       State = "held"        // somebody else works on it
	StateNotDue     State = "not due"
	StateAbsent     State = "absent"       // nobody asked for it
	StateAlready    State = "already done" // nothing was left to do
)

// Report is what a Run did.
type Report struct {
	Kind    postgres.FollowUpKind `json:"kind"`
	Key     string                `json:"key"`
	State   State                 `json:"state"`
	Outcome string                `json:"outcome,omitempty"`
	Next    time.Duration         `json:"-"` // until it is looked at again, for StatePostponed and StateFailed
	Error   string                `json:"error,omitempty"`
	// About is the reservation, or else what the row is about; "" where it was not claimed.
	About string `json:"-"`
}

// Run carries out one follow-up if it is due and nobody else does. How that ended is on the row when Run returns; an
// error means that the row could not be read or written, and that nothing is known.
func (r *Runner) Run(ctx context.Context, kind postgres.FollowUpKind, key string) (Report, error) {
	report := Report{Kind: kind, Key: key}
	f, claimed, err := r.store.ClaimFollowUp(ctx, kind, key, r.opts.NewID(), r.opts.Lease)
	if err != nil {
		return report, err
	}
	if !claimed {
		report.State, err = r.whyNot(ctx, kind, key)
		return report, err
	}

	report.About = cmp.Or(f.ReservationID, f.Subject)
	log := r.opts.Log.With("follow_up", kind, "key", key, "reservation_id", f.ReservationID)
	work, cancel := context.WithTimeout(ctx, cmp.Or(r.opts.Deadline, Limit(kind)))
	result, failure := r.handle(work, f)
	cancel()

	// The result is written although the process shuts down or the sender has gone away.
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	held := true
	switch {
	case failure != nil && ctx.Err() != nil:
		report.State = StateHandedBack
		held, err = r.store.HandBackFollowUp(recording, f)
		log.WarnContext(ctx, "follow-up interrupted and handed back", "cause", context.Cause(ctx), "error", failure)
	case failure != nil:
		report.State, report.Error, report.Next = StateFailed, oneLine(failure), Pause(f.Attempts+1, r.opts.Jitter())
		held, err = r.store.FailFollowUp(recording, f, failure, report.Next)
		log.ErrorContext(ctx, "follow-up failed", "attempt", f.Attempts+1, "again_in", report.Next.Round(time.Second), "error", failure)
	case result.recorded:
		report.State = StateDone
	case result.LookAgain > 0:
		report.State, report.Next = StatePostponed, result.LookAgain
		held, err = r.store.PostponeFollowUp(recording, f, result.LookAgain)
	default:
		report.State, report.Outcome = StateDone, cmp.Or(result.Outcome, "done")
		held, err = r.store.FinishFollowUp(recording, f, report.Outcome)
	}
	if err == nil && !held {
		report.State = StateHeld
		log.WarnContext(ctx, "the lease lapsed before the result could be recorded; somebody else carries on")
	}
	return report, err
}

func (r *Runner) whyNot(ctx context.Context, kind postgres.FollowUpKind, key string) (State, error) {
	standing, err := r.store.FollowUpStanding(ctx, kind, key)
	switch standing {
	case postgres.Absent:
		return StateAbsent, err
	case postgres.Finished:
		return StateAlready, err
	case postgres.NotDue:
		return StateNotDue, err
	default: // held, or given back since the claim: due, and found again
		return StateHeld, err
	}
}

// handle calls the action; a panic in it is a failure like any other, so that the row does not stay under lease.
func (r *Runner) handle(ctx context.Context, f postgres.FollowUp) (result Result, err error) {
	action, ok := r.actions[f.Kind]
	if !ok {
		return Result{}, fmt.Errorf("no action carries out %s", f.Kind)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			r.opts.Log.ErrorContext(ctx, "action panicked", "follow_up", f.Kind, "key", f.Key, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return action.Handle(ctx, f)
}

// oneLine is an error's text for people: some drivers' errors have several lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
