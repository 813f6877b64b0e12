package reservation

import "time"

// Anomaly is one word for what is wrong with a row: it is reported (a metric's label, a log attribute) and never acted
// on. Empty where nothing is.
type Anomaly string

// The anomalies of an active reservation's deadline, and of a waiting one's age.
const (
	NoAnomaly              Anomaly = ""
	DeadlineNull           Anomaly = "deadline_null"
	DeadlineInfinite       Anomaly = "deadline_infinite"
	DeadlineTooOld         Anomaly = "deadline_too_old"
	DeadlineTooFar         Anomaly = "deadline_too_far"
	CreatedAbsurd          Anomaly = "created_absurd"
	DeadlineBeforeCreated  Anomaly = "deadline_before_created"
	LaunchedAbsurd         Anomaly = "launched_absurd"
	DeadlineBeforeLaunched Anomaly = "deadline_before_launched"
	MasterDeadlineUnsound  Anomaly = "master_deadline_unsound"
	StateAgeUnknown        Anomaly = "state_age_unknown"
)

var anomalySentences = map[Anomaly]string{
	DeadlineNull:           "expires_at is NULL: the reservation has no deadline and never ends by itself",
	DeadlineInfinite:       "expires_at is infinite",
	DeadlineTooOld:         "expires_at lies before the year 2000",
	DeadlineTooFar:         "expires_at lies more than two years ahead",
	CreatedAbsurd:          "created_at is infinite or lies before the year 2000",
	DeadlineBeforeCreated:  "expires_at lies before created_at",
	LaunchedAbsurd:         "launched_at is infinite or lies before the year 2000",
	DeadlineBeforeLaunched: "expires_at lies before launched_at",
	MasterDeadlineUnsound:  "the deadline of the set's live master is missing or absurd, so the set's is unknown",
	StateAgeUnknown:        "no date tells since when the reservation is in its state",
}

// Sentence says for people what is wrong.
func (a Anomaly) Sentence() string { return anomalySentences[a] }

// Horizon is how far ahead a deadline may lie before it is taken for a mistake. Reservations last hours.
const Horizon = 2 * 365 * 24 * time.Hour

// Epoch is the earliest date that is taken seriously: the platform is younger.
var Epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// absurd reports that a date is there but cannot be true. SQL: `d < '2000-01-01 00:00:00Z' or d = 'infinity'`.
func absurd(d Instant) bool { return d.shape == futureInfinity || d.before(At(Epoch)) }

// DeadlineAnomaly returns the first thing wrong with a row's own deadline, judged by the dates of that row alone.
//
// In SQL a row is sound where
//
//	expires_at >= '2000-01-01 00:00:00Z' and expires_at <= now + interval '17520 hours'
//	and not coalesce(created_at  < '2000-01-01 00:00:00Z' or created_at  = 'infinity' or expires_at < created_at,  false)
//	and not coalesce(launched_at < '2000-01-01 00:00:00Z' or launched_at = 'infinity' or expires_at < launched_at, false)
//
// (interval '17520 hours', not '730 days': a day's length depends on the session's time zone.) A NULL created_at or
// launched_at contradicts nothing.
func DeadlineAnomaly(r Reservation, now time.Time) Anomaly {
	switch {
	case r.ExpiresAt.IsNull():
		return DeadlineNull
	case r.ExpiresAt.shape != finite:
		return DeadlineInfinite
	case absurd(r.ExpiresAt):
		return DeadlineTooOld
	case At(now.Add(Horizon)).before(r.ExpiresAt):
		return DeadlineTooFar
	case absurd(r.CreatedAt):
		return CreatedAbsurd
	case r.ExpiresAt.before(r.CreatedAt):
		return DeadlineBeforeCreated
	case absurd(r.LaunchedAt):
		return LaunchedAbsurd
	case r.ExpiresAt.before(r.LaunchedAt):
		return DeadlineBeforeLaunched
	}
	return NoAnomaly
}

// EffectiveDeadline returns when a reservation ends: by the latest of its own and its master's deadline where it is
// one node of a set. master is the row that master_reservation_id names, nil where there is none. The time is
// meaningless unless the anomaly is NoAnomaly.
//
//   - A row that names no master, or itself, is judged by its own deadline.
//   - No such master row: its own. The primary key of the truth was asked, so this absence is known.
//   - A master with a sound deadline counts whatever its status: a node outlives a cancelled master until the set's end.
//   - An ended master with an unsound deadline (one that failed before its launch never got any) counts for nothing:
//     nobody can extend it any more.
//   - A live master with an unsound deadline makes the set's end unknown: reported, nothing ends.
//
// In SQL, with r left joined to m on m.reservation_id = r.master_reservation_id and m.reservation_id <> r.reservation_id:
//
//	greatest(r.expires_at, case when sound(m) then m.expires_at end)
//	where sound(r) and (m.reservation_id is null or sound(m) or coalesce(m.status, '') in ('expired', 'cancelled', 'failed'))
func EffectiveDeadline(own Reservation, master *Reservation, now time.Time) (time.Time, Anomaly) {
	if anomaly := DeadlineAnomaly(own, now); anomaly != NoAnomaly {
		return time.Time{}, anomaly
	}
	deadline := own.ExpiresAt
	if master != nil && own.MasterID != "" && own.MasterID != own.ID {
		switch {
		case DeadlineAnomaly(*master, now) == NoAnomaly:
			deadline = later(deadline, master.ExpiresAt)
		case !master.Status.Ended():
			return time.Time{}, MasterDeadlineUnsound
		}
	}
	return deadline.at, NoAnomaly
}

// Overdue reports whether a reservation is to be expired: active, its effective deadline known, and more than grace
// past. SQL: `status = 'active' and deadline + grace < now`.
func Overdue(own Reservation, master *Reservation, now time.Time, grace time.Duration) bool {
	if own.Status != Active {
		return false
	}
	deadline, anomaly := EffectiveDeadline(own, master, now)
	return anomaly == NoAnomaly && deadline.Add(grace).Before(now)
}
