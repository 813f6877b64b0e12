package reservation

import (
	"fmt"
	"time"
)

// How long a reservation may stay in a state before it is stuck.
const (
	PreparingLimit = time.Hour
	WaitingLimit   = 48 * time.Hour // queued or pending
)

// Ending is a decision to end a reservation that never got to run.
type Ending struct {
	Status Status    // what it becomes: Failed or Cancelled
	Since  time.Time // when it entered the state it is stuck in
	Reason string    // for failure_reason, the log and the user
}

// Stuck decides whether a reservation has been on its way for too long: preparing for over an hour fails, queued or
// pending for over 48 hours is cancelled. stuck is false for every other status. The anomaly is StateAgeUnknown where
// nothing tells since when: then nothing is decided.
//
// Since is the entry into the present state by status_history, where it tells a time that is possible: not before the
// year 2000, not before created_at, not after now. Otherwise it is the newest of launched_at, updated_at and created_at
// that is not NULL. All three apply in each state, for each of them can only be too late, which postpones the end,
// never too early: updated_at moves with every write, launched_at is set at the end of preparing, if at all, and stays
// when a reservation goes back into the queue. A newest date in the future or at infinity postpones the end, too.
func Stuck(r Reservation, now time.Time) (ending Ending, stuck bool, anomaly Anomaly) {
	ending, at, anomaly := StuckFrom(r, now)
	if at.IsZero() || !at.Before(now) {
		return Ending{}, false, anomaly
	}
	return ending, true, NoAnomaly
}

// StuckFrom returns how a reservation ends that stays in its present state, and the moment after which it counts as
// stuck in it: zero for a status in which nothing gets stuck, and where the anomaly is StateAgeUnknown.
func StuckFrom(r Reservation, now time.Time) (ending Ending, at time.Time, anomaly Anomaly) {
	var limit time.Duration
	switch r.Status {
	case Preparing:
		limit, ending.Status = PreparingLimit, Failed
	case Queued, Pending:
		limit, ending.Status = WaitingLimit, Cancelled
	default:
		return Ending{}, time.Time{}, NoAnomaly
	}
	since, source := enteredState(r, now)
	if since.shape != finite || absurd(since) {
		return Ending{}, time.Time{}, StateAgeUnknown
	}
	ending.Since = since.at
	ending.Reason = fmt.Sprintf("%s for over %s: since %s by %s",
		r.Status, hours(limit), since.at.Format("2006-01-02 15:04:05 UTC"), source)
	return ending, since.at.Add(limit), NoAnomaly
}

func enteredState(r Reservation, now time.Time) (since Instant, source string) {
	if t, ok := stateEntered(r.StatusHistory, r.Status); ok {
		entered := At(t)
		if !absurd(entered) && !entered.before(r.CreatedAt) && !At(now).before(entered) {
			return entered, "status_history"
		}
	}
	for _, column := range []struct {
		at   Instant
		name string
	}{{r.LaunchedAt, "launched_at"}, {r.UpdatedAt, "updated_at"}, {r.CreatedAt, "created_at"}} {
		if newest := later(since, column.at); newest != since {
			since, source = newest, column.name
		}
	}
	return since, source
}

func hours(d time.Duration) string {
	if d == time.Hour {
		return "an hour"
	}
	return fmt.Sprintf("%d hours", int(d.Hours()))
}
