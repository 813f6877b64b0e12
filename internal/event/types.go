// Package event knows the CloudEvents this service takes, sends to itself and announces: their types, what their data
// says, the JSON Schemas it validates against and how their ids are made.
package event

import "time"

// Ticks: each asks for one sweep.
const (
	Ping           = "dev.knative.sources.ping"
	SweepRequested = "dev.gpudev.expiry.sweep.requested.v1"
)

// Follow-ups, which the service sends to itself.
const (
	WarningRequested            = "dev.gpudev.expiry.warning.requested.v1"
	NoticeRequested             = "dev.gpudev.expiry.notice.requested.v1"
	CleanupRequested            = "dev.gpudev.expiry.cleanup.requested.v1"
	SnapshotSyncRequested       = "dev.gpudev.expiry.snapshot.sync.requested.v1"
	SnapshotPurgeRequested      = "dev.gpudev.expiry.snapshot.purge.requested.v1"
	AvailabilityUpdateRequested = "dev.gpudev.expiry.availability.update.requested.v1"
)

// Facts, for others. The service never receives its own.
const (
	ReservationWarned    = "dev.gpudev.reservation.warned.v1"
	ReservationExpired   = "dev.gpudev.reservation.expired.v1"
	ReservationFailed    = "dev.gpudev.reservation.failed.v1"
	ReservationCancelled = "dev.gpudev.reservation.cancelled.v1"
	ReservationOOMKilled = "dev.gpudev.reservation.oomkilled.v1"
	ReservationCleanedUp = "dev.gpudev.reservation.cleanedUp.v1"
	DiskSnapshotted      = "dev.gpudev.disk.snapshotted.v1"
	DiskReleased         = "dev.gpudev.disk.released.v1"
	SweepCompleted       = "dev.gpudev.expiry.sweep.completed.v1"
)

// SweepRequest is the optional data of a posted sweep. A ping's data is ignored.
type SweepRequest struct {
	DryRun         bool     `json:"dryRun,omitempty"`
	ReservationIDs []string `json:"reservationIds,omitempty"` // empty: all
}

// Ended is the data of ReservationExpired, ReservationFailed and ReservationCancelled.
type Ended struct {
	ReservationID string     `json:"reservationId"`
	UserID        string     `json:"userId,omitempty"`
	Reason        string     `json:"reason"`
	ExpiresAt     *time.Time `json:"expiresAt,omitempty"` // the deadline that passed, where one did
	EndedAt       time.Time  `json:"endedAt"`
}

// Warned is the data of ReservationWarned.
type Warned struct {
	ReservationID string    `json:"reservationId"`
	UserID        string    `json:"userId,omitempty"`
	LevelMinutes  int       `json:"levelMinutes"`
	ExpiresAt     time.Time `json:"expiresAt"`
	WarnedAt      time.Time `json:"warnedAt"`
}

// OOMKilled is the data of ReservationOOMKilled.
type OOMKilled struct {
	ReservationID string    `json:"reservationId"`
	UserID        string    `json:"userId,omitempty"`
	Container     string    `json:"container"`
	KilledAt      time.Time `json:"killedAt"`
}

// CleanedUp is the data of ReservationCleanedUp.
type CleanedUp struct {
	ReservationID string    `json:"reservationId"`
	UserID        string    `json:"userId,omitempty"`
	Outcome       string    `json:"outcome"` // released, nothing_to_keep, superseded or lost
	CleanedUpAt   time.Time `json:"cleanedUpAt"`
}

// DiskSnapshot is the data of DiskSnapshotted.
type DiskSnapshot struct {
	ReservationID   string    `json:"reservationId,omitempty"`
	UserID          string    `json:"userId"`
	DiskName        string    `json:"diskName"`
	SnapshotID      string    `json:"snapshotId"`
	VolumeID        string    `json:"volumeId,omitempty"`
	CrashConsistent bool      `json:"crashConsistent,omitempty"`
	CompletedAt     time.Time `json:"completedAt"`
}

// DiskRelease is the data of DiskReleased.
type DiskRelease struct {
	ReservationID string    `json:"reservationId,omitempty"`
	UserID        string    `json:"userId"`
	DiskName      string    `json:"diskName"`
	ReleasedAt    time.Time `json:"releasedAt"`
}

// Sweep is the data of SweepCompleted.
type Sweep struct {
	SweepID    string         `json:"sweepId"`
	Trigger    string         `json:"trigger,omitempty"` // the type of the event that asked for it, or "shell"
	StartedAt  time.Time      `json:"startedAt"`
	FinishedAt time.Time      `json:"finishedAt"`
	Outcome    string         `json:"outcome"` // completed, partial or failed
	Braked     bool           `json:"braked,omitempty"`
	Paused     bool           `json:"paused,omitempty"`
	Counts     map[string]int `json:"counts"`
	Failures   []PartFailure  `json:"failures,omitempty"`
}

// PartFailure says which part of a sweep failed, and how.
type PartFailure struct {
	Part  string `json:"part"`
	Error string `json:"error"`
}
