// Package followup carries out a follow-up: it takes the row under lease, lets the action of its kind do the work,
// and records how that ended.
package followup

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Action does the work of one kind of follow-up. It reads the rows again and acts on what they say now. Every step
// of it is idempotent: the same follow-up may come twice, late, or after a crash in its middle.
//
// A returned error is a failure: it is kept on the row and the work is tried again after a growing pause. The
// context ends before the lease does, and early where the process shuts down or the sender has gone away: the
// work is then handed back as it was, whatever the action returns with its error.
type Action interface {
	Handle(ctx context.Context, f postgres.FollowUp) (Result, error)
}

// Result says how the work stands. The zero value is Done("done").
type Result struct {
	Outcome   string        // one word; the work is done
	LookAgain time.Duration // the world needs time: look again after this, it is no failure

	recorded bool
}

// Done is the result of work that is over; outcome is one word, such as "sent" or "superseded".
func Done(outcome string) Result { return Result{Outcome: outcome} }

// LookAgain is the result of work that waits for the world.
func LookAgain(after time.Duration) Result { return Result{LookAgain: after} }

// Recorded is Done for work whose end the action has itself recorded on the row, in one transaction with what it
// changed elsewhere.
func Recorded(outcome string) Result { return Result{Outcome: outcome, recorded: true} }

// IsRecorded reports whether the result is Recorded's.
func (r Result) IsRecorded() bool { return r.recorded }
