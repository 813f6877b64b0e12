package sweep

import (
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Outcome is one word for how a sweep went.
type Outcome string

// The outcomes of a sweep.
const (
	Completed Outcome = "completed"
	Partial   Outcome = "partial" // some parts failed, the others did their work
	Failed    Outcome = "failed"  // no part did its work, or the end could not be recorded
	Skipped   Outcome = "skipped" // another sweep was running: nothing was done
)

// Result is what a sweep did, or in a dry run would do.
type Result struct {
	SweepID    string    `json:"sweepId,omitempty"` // empty for a dry run and a skipped tick
	Trigger    string    `json:"trigger"`
	StartedAt  time.Time `json:"startedAt,omitzero"`  // the one clock reading that everything was decided by
	FinishedAt time.Time `json:"finishedAt,omitzero"` // by the database's clock, too; zero for a dry run
	Outcome    Outcome   `json:"outcome"`
	DryRun     bool      `json:"dryRun,omitempty"`

	Unknown   []string            `json:"unknownReservationIds,omitempty"` // asked for, but there is no such row
	Paused    *postgres.Pause     `json:"paused,omitempty"`                // nothing new was decided
	Counts    map[string]int      `json:"counts"`
	Failures  []event.PartFailure `json:"failures,omitempty"`
	Brake     *Brake              `json:"brake,omitempty"`
	Anomalies []Anomaly           `json:"anomalies,omitempty"`
	Durations map[string]int64    `json:"durationsMs"`       // by part
	Decided   []Decision          `json:"decided,omitempty"` // and carried out
	Planned   []Decision          `json:"planned,omitempty"` // a dry run's alone
}

// Action is what a decision does to its subject.
type Action string

// The actions on reservations. Other parts have their own.
const (
	Expire Action = "expire"
	Warn   Action = "warn"
	Fail   Action = "fail"
	Cancel Action = "cancel"
)

// Decision is one thing that a sweep decided, and why.
type Decision struct {
	ReservationID string `json:"reservationId,omitempty"`
	Subject       string `json:"subject,omitempty"` // the disk or snapshot, where it is not about a reservation
	Action        Action `json:"action"`
	Reason        string `json:"reason"` // one plain sentence
}

// Anomaly reports rows that were left alone because they make no sense.
type Anomaly struct {
	Kind           reservation.Anomaly `json:"kind"`
	Sentence       string              `json:"sentence"`
	Count          int                 `json:"count"`
	ReservationIDs []string            `json:"reservationIds,omitempty"` // the first of them
	Subjects       []string            `json:"subjects,omitempty"`       // the first of them, where they are disks
}

const (
	anomalyIDs = 20    // listed for each kind of anomaly
	errorMost  = 1_000 // characters kept of an error
)

// anomalies collects what is wrong with rows, by kind.
type anomalies []Anomaly

func (a *anomalies) add(kind reservation.Anomaly, reservationID string) {
	found := a.of(kind, kind.Sentence())
	if len(found.ReservationIDs) < anomalyIDs {
		found.ReservationIDs = append(found.ReservationIDs, reservationID)
	}
}

// leave reports a row that makes no sense. It did not before somebody wrote it, or its master.
func (pl *plan) leave(kind reservation.Anomaly, r reservation.Reservation, master *reservation.Reservation) {
	pl.anomalies.add(kind, r.ID)
	since, _ := r.UpdatedAt.Time()
	if master != nil {
		if at, _ := master.UpdatedAt.Time(); at.After(since) {
			since = at
		}
	}
	pl.spared = append(pl.spared, spared{r.ID, kind.Sentence(), since})
}

// about is add for what is no reservation.
func (a *anomalies) about(kind reservation.Anomaly, sentence, subject string) {
	found := a.of(kind, sentence)
	if len(found.Subjects) < anomalyIDs {
		found.Subjects = append(found.Subjects, subject)
	}
}

// of counts one more anomaly of a kind.
func (a *anomalies) of(kind reservation.Anomaly, sentence string) *Anomaly {
	i := slices.IndexFunc(*a, func(seen Anomaly) bool { return seen.Kind == kind && seen.Sentence == sentence })
	if i < 0 {
		i = len(*a)
		*a = append(*a, Anomaly{Kind: kind, Sentence: sentence})
	}
	found := &(*a)[i]
	found.Count++
	return found
}
