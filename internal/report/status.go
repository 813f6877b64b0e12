package report

import (
	"encoding/json"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// Standing is what the rows say of the service, its lists cut to what is shown.
type Standing struct {
	Backlog     postgres.Backlog
	Pause       *postgres.Pause
	Forecast    sweep.Forecast
	Sweeps      []postgres.SweepRow
	Past        []postgres.SetMember // deadlines that are past, or unknown
	Cleanups    []postgres.UnfinishedCleanup
	Snapshots   []postgres.SnapshotRecord
	Stuck       []postgres.FollowUpRecord
	DeadLetters []postgres.DeadLetter
}

// Overview says how the service stands.
type Overview struct {
	At           time.Time       `json:"at"` // the database's clock
	Paused       *postgres.Pause `json:"paused,omitempty"`
	NextTick     sweep.Forecast  `json:"nextTick"` // once resumed, where it is paused
	Reservations map[string]int  `json:"reservations"`
	Sweeps       []Sweep         `json:"sweeps"`
	Overdue      []Overdue       `json:"overdue"`
	Unsound      []Unsound       `json:"unsound,omitempty"`
	Cleanups     Cleanups        `json:"cleanups"`
	DisksHeld    int             `json:"disksHeldByEnded"`
	Snapshots    Snapshots       `json:"snapshots"`
	FollowUps    FollowUps       `json:"followUps"`
	Outbox       Outbox          `json:"outbox"`
	DeadLetters  Letters         `json:"deadLetters"`
}

// Sweep is a sweep as recorded.
type Sweep struct {
	SweepID    string            `json:"sweepId"`
	Trigger    string            `json:"trigger"`
	StartedAt  time.Time         `json:"startedAt"`
	FinishedAt *time.Time        `json:"finishedAt,omitempty"` // nil while it runs
	Outcome    string            `json:"outcome"`
	Braked     bool              `json:"braked,omitempty"`
	Paused     bool              `json:"paused,omitempty"`
	Counts     map[string]int    `json:"counts"`
	Failures   map[string]string `json:"failures,omitempty"` // by part
	Brake      *sweep.Brake      `json:"brake,omitempty"`
	Anomalies  []sweep.Anomaly   `json:"anomalies,omitempty"`
}

// Overdue is an active reservation that should have ended.
type Overdue struct {
	ReservationID string    `json:"reservationId"`
	UserID        string    `json:"userId,omitempty"`
	Deadline      time.Time `json:"deadline"`
}

// Unsound is an active reservation that never ends by itself.
type Unsound struct {
	ReservationID string `json:"reservationId"`
	Anomaly       string `json:"anomaly"`
	Sentence      string `json:"sentence"`
}

// Cleanups are the unfinished ones.
type Cleanups struct {
	Unfinished int                 `json:"unfinished"`
	Stuck      int                 `json:"stuck"`
	Since      *time.Time          `json:"oldestSince,omitempty"`
	Oldest     []UnfinishedCleanup `json:"oldest"`
}

// UnfinishedCleanup is one of them.
type UnfinishedCleanup struct {
	ReservationID string     `json:"reservationId"`
	UserID        string     `json:"userId,omitempty"`
	DiskName      string     `json:"diskName,omitempty"`
	Since         time.Time  `json:"since"`
	Begun         bool       `json:"begun"`
	StepsDone     int        `json:"stepsDone"`
	OpenStep      string     `json:"openStep,omitempty"`
	WaitsFor      string     `json:"waitsFor,omitempty"`
	Next          *time.Time `json:"nextLook,omitempty"` // nil: the next tick asks for it
	UnderWay      bool       `json:"underWay,omitempty"`
	Failures      int        `json:"failures,omitempty"`
	LastError     string     `json:"lastError,omitempty"`
}

// Snapshots are those that have neither completed nor been given up.
type Snapshots struct {
	Pending int               `json:"pending"`
	Since   *time.Time        `json:"oldestSince,omitempty"`
	Oldest  []PendingSnapshot `json:"oldest"`
}

// PendingSnapshot is one of them.
type PendingSnapshot struct {
	SnapshotID    string    `json:"snapshotId,omitempty"` // empty: EC2 has not answered yet
	State         string    `json:"state"`
	UserID        string    `json:"userId"`
	DiskName      string    `json:"diskName"`
	VolumeID      string    `json:"volumeId,omitempty"`
	ReservationID string    `json:"reservationId,omitempty"`
	Since         time.Time `json:"since"`
}

// FollowUps are those that are not done, and of these the stuck ones.
type FollowUps struct {
	UnderWay int     `json:"underWay"`
	Due      int     `json:"due"`
	Waiting  int     `json:"waiting"`
	Failing  int     `json:"failing"`
	Stuck    int     `json:"stuck"`
	Worst    []Stuck `json:"worst,omitempty"`
}

// Stuck is a follow-up that has failed often in a row.
type Stuck struct {
	Kind          string    `json:"kind"`
	Key           string    `json:"key"`
	ReservationID string    `json:"reservationId,omitempty"`
	Failures      int       `json:"failures"`
	Next          time.Time `json:"nextTry"`
	LastError     string    `json:"lastError"`
}

// Outbox holds the facts that are not announced.
type Outbox struct {
	Facts     int        `json:"facts"`
	Failing   int        `json:"failing"`
	Since     *time.Time `json:"oldestSince,omitempty"`
	LastError string     `json:"lastError,omitempty"`
}

// Letters are the dead letters that nobody has sent again.
type Letters struct {
	Open   int          `json:"open"`
	Newest []DeadLetter `json:"newest,omitempty"`
}

// Status says what the rows mean; grace is how long past its deadline a reservation is left alone.
func Status(in Standing, grace time.Duration) Overview {
	b := in.Backlog
	o := Overview{
		At: b.Now, Paused: utc(in.Pause), NextTick: in.Forecast, Reservations: b.Reservations, DisksHeld: b.DisksHeld,
		Sweeps: []Sweep{}, Overdue: []Overdue{},
		Cleanups:  Cleanups{Unfinished: b.Cleanups, Stuck: b.CleanupsStuck, Since: known(b.OldestCleanup), Oldest: []UnfinishedCleanup{}},
		Snapshots: Snapshots{Pending: b.Snapshots, Since: known(b.OldestSnapshot), Oldest: []PendingSnapshot{}},
		FollowUps: FollowUps{
			UnderWay: b.FollowUps.UnderWay, Due: b.FollowUps.Due, Waiting: b.FollowUps.Waiting, Failing: b.FollowUps.Failing, Stuck: b.FollowUps.Stuck,
		},
		Outbox:      Outbox{Facts: b.Facts, Failing: b.FactsFailing, Since: known(b.OldestFact), LastError: b.FactError},
		DeadLetters: Letters{Open: b.DeadLetters},
	}
	for _, row := range in.Sweeps {
		o.Sweeps = append(o.Sweeps, recorded(row))
	}
	for _, r := range in.Past {
		deadline, anomaly := reservation.EffectiveDeadline(r.Reservation, r.Master, b.Now)
		switch {
		case anomaly != reservation.NoAnomaly:
			o.Unsound = append(o.Unsound, Unsound{r.ID, string(anomaly), anomaly.Sentence()})
		case reservation.Overdue(r.Reservation, r.Master, b.Now, grace):
			o.Overdue = append(o.Overdue, Overdue{r.ID, r.UserID, deadline})
		}
	}
	for _, c := range in.Cleanups {
		o.Cleanups.Oldest = append(o.Cleanups.Oldest, unfinished(c))
	}
	for _, s := range in.Snapshots {
		o.Snapshots.Oldest = append(o.Snapshots.Oldest, PendingSnapshot{s.SnapshotID, string(s.State), s.User, s.DiskName, s.VolumeID, s.ReservationID, s.IntendedAt.UTC()})
	}
	for _, f := range in.Stuck {
		o.FollowUps.Worst = append(o.FollowUps.Worst, Stuck{string(f.Kind), f.Key, f.ReservationID, f.Attempts, f.DueAt.UTC(), f.LastError})
	}
	for _, d := range in.DeadLetters {
		o.DeadLetters.Newest = append(o.DeadLetters.Newest, letter(d))
	}
	return o
}

func recorded(row postgres.SweepRow) Sweep {
	s := Sweep{
		SweepID: row.SweepID.String(), Trigger: row.Trigger, StartedAt: row.StartedAt.UTC(), Outcome: row.Outcome, Braked: row.Braked, Paused: row.Paused,
		Counts: row.Counts, Failures: map[string]string{},
	}
	if row.FinishedAt != nil {
		s.FinishedAt = known(*row.FinishedAt)
	}
	for _, f := range row.Failures {
		s.Failures[f.Part] = f.Error
	}
	// Written by this service, perhaps by another version of it: what does not fit is left out.
	if json.Unmarshal(row.Brake, &s.Brake) != nil {
		s.Brake = nil
	}
	if json.Unmarshal(row.Anomalies, &s.Anomalies) != nil {
		s.Anomalies = nil
	}
	return s
}

func unfinished(c postgres.UnfinishedCleanup) UnfinishedCleanup {
	view := UnfinishedCleanup{
		ReservationID: c.ReservationID, UserID: c.UserID, DiskName: c.DiskName, Since: c.Since.UTC(), Begun: c.Begun, StepsDone: c.StepsDone,
		OpenStep: string(c.OpenStep), WaitsFor: c.WaitsFor, LastError: c.StepError,
	}
	if f := c.FollowUp; f != nil {
		view.Next, view.UnderWay, view.Failures = known(f.DueAt), !f.HeldUntil.IsZero(), f.Attempts
		if f.LastError != "" {
			view.LastError = f.LastError
		}
		if f.Kind == postgres.SnapshotSync && view.OpenStep == "" {
			view.WaitsFor = "its snapshot"
		}
	}
	return view
}
