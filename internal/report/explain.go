package report

import (
	"cmp"
	"strconv"
	"time"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Explanation says of one reservation what happened, what comes next, and why.
type Explanation struct {
	ReservationID string          `json:"reservationId"`
	At            time.Time       `json:"at"`     // the database's clock
	Status        string          `json:"status"` // "gone": the platform has no such row any more
	UserID        string          `json:"userId,omitempty"`
	Name          string          `json:"name,omitempty"`
	GPU           string          `json:"gpu,omitempty"`
	Pod           string          `json:"pod,omitempty"`
	TraceID       string          `json:"traceId"`
	Set           *Set            `json:"set,omitempty"`
	Created       *time.Time      `json:"created,omitempty"`
	Launched      *time.Time      `json:"launched,omitempty"`
	Deadline      Deadline        `json:"deadline"`
	Ended         *End            `json:"ended,omitempty"`
	Paused        *postgres.Pause `json:"paused,omitempty"`
	Missing       *Missing        `json:"missing,omitempty"`
	OutOfMemory   *OutOfMemory    `json:"outOfMemory,omitempty"`

	Next      []Next     `json:"next"` // the first thing first
	Warnings  []Warning  `json:"warnings,omitempty"`
	Cleanup   *Cleanup   `json:"cleanup,omitempty"`
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	Disks     []Disk     `json:"disks,omitempty"`
}

// Set tells which node of a multinode set it is.
type Set struct {
	MasterID  string `json:"masterId,omitempty"` // empty: it is the master itself
	NodeIndex int    `json:"nodeIndex"`
	Nodes     int    `json:"nodes,omitempty"`
}

// Deadline says when its time ends, or ended.
type Deadline struct {
	At      *time.Time `json:"at,omitempty"`      // the effective one; nil where it is unknown
	Expires *time.Time `json:"expires,omitempty"` // grace later, of an active one
	Own     *time.Time `json:"own,omitempty"`     // of the row itself, where the set's is later
	Anomaly string     `json:"anomaly,omitempty"` // why it is unknown
}

// End says how it ended.
type End struct {
	At     time.Time `json:"at,omitzero"`
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by,omitempty"` // empty: nobody knows any more
}

// Who may have ended a reservation.
const (
	byUs     = "this service"
	byOthers = "somebody else"
)

// Missing is since when its pod has not been found.
type Missing struct {
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
}

// OutOfMemory sums up its out-of-memory kills.
type OutOfMemory struct {
	Count     int       `json:"count"`
	Container string    `json:"container,omitempty"`
	Last      time.Time `json:"last,omitzero"`
}

// Cleanup is how far the cleanup is.
type Cleanup struct {
	RequestedAt time.Time   `json:"requestedAt"`
	Volume      string      `json:"volume,omitempty"`
	Listing     string      `json:"listing,omitempty"`
	Milestones  []Milestone `json:"milestones,omitempty"`
	Steps       []Step      `json:"steps"`
	SettledAt   *time.Time  `json:"settledAt,omitempty"`
	Outcome     string      `json:"outcome,omitempty"`
}

// Milestone is a moment from which there was no way back.
type Milestone struct {
	What string    `json:"what"`
	At   time.Time `json:"at"`
}

// Step is one step of a cleanup.
type Step struct {
	Step       string     `json:"step"`
	StartedAt  *time.Time `json:"startedAt,omitempty"` // nil: not begun
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
	Outcome    string     `json:"outcome,omitempty"`
	Detail     string     `json:"detail,omitempty"`
	Failures   int        `json:"failures,omitempty"`
	LastError  string     `json:"lastError,omitempty"`
}

// Snapshot is an attempt of the cleanup to keep the disk.
type Snapshot struct {
	SnapshotID      string     `json:"snapshotId,omitempty"` // empty: EC2 has not answered yet
	Attempt         int        `json:"attempt"`
	State           string     `json:"state"`
	VolumeID        string     `json:"volumeId,omitempty"`
	CrashConsistent bool       `json:"crashConsistent,omitempty"`
	DiskSize        string     `json:"diskSize,omitempty"`
	AskedAt         time.Time  `json:"askedAt"`
	SettledAt       *time.Time `json:"settledAt,omitempty"`
	VolumeAsideAt   *time.Time `json:"volumeSetAsideAt,omitempty"` // it stays for a while
	VolumeDeletedAt *time.Time `json:"volumeDeletedAt,omitempty"`
	Detail          string     `json:"detail,omitempty"`
}

// Disk is a disk as the platform's table has it.
type Disk struct {
	UserID           string     `json:"userId"`
	Name             string     `json:"name"`
	InUse            bool       `json:"inUse"`
	HolderID         string     `json:"holderId,omitempty"`
	VolumeID         string     `json:"volumeId,omitempty"`
	Size             string     `json:"size,omitempty"`
	BackingUp        bool       `json:"backingUp,omitempty"`
	Snapshots        int        `json:"snapshots"`
	PendingSnapshots int        `json:"pendingSnapshots,omitempty"`
	LastSnapshotAt   *time.Time `json:"lastSnapshotAt,omitempty"`
	Deleted          bool       `json:"deleted,omitempty"`
	DeleteDate       *time.Time `json:"deleteDate,omitempty"`
	Operation        string     `json:"operation,omitempty"`
}

// Explain says what the rows mean by the rules.
func Explain(l postgres.Life, rules config.Rules) Explanation {
	e := Explanation{
		ReservationID: l.ReservationID, At: l.Now, Status: "gone", Paused: utc(l.Pause),
		TraceID:  telemetry.TraceID(l.ReservationID).String(),
		Warnings: warnings(l, rules), Cleanup: cleanup(l), Ended: ended(l), Deadline: deadline(l, rules),
	}
	if c := l.Cleanup; c != nil {
		e.UserID, e.GPU, e.Pod = c.UserID, c.GPUType, join(c.Namespace, c.PodName)
	}
	if r := l.Row; r != nil {
		e.Status, e.UserID, e.Name, e.GPU = string(r.Status), r.UserID, r.Name, gpu(*r)
		e.Pod = cmp.Or(e.Pod, r.PodName)
		e.Created, e.Launched = finite(r.CreatedAt), finite(r.LaunchedAt)
		if r.IsMultinode || r.MasterID != "" {
			e.Set = &Set{NodeIndex: r.NodeIndex, Nodes: r.TotalNodes}
			if r.MasterID != r.ID {
				e.Set.MasterID = r.MasterID
			}
		}
		if r.OOMCount > 0 {
			e.OutOfMemory = &OutOfMemory{Count: r.OOMCount, Container: r.OOMContainer}
			e.OutOfMemory.Last, _ = r.LastOOMAt.Time()
		}
	}
	if l.OOMKill != nil {
		e.OutOfMemory = &OutOfMemory{Count: 1, Container: l.OOMKill.Container, Last: l.OOMKill.FinishedAt.UTC()}
		if l.Row != nil {
			e.OutOfMemory.Count = max(1, l.Row.OOMCount)
		}
	}
	if l.Missing != nil {
		e.Missing = &Missing{Since: l.Missing.FirstSeen.UTC(), Last: l.Missing.LastSeen.UTC()}
	}
	for _, s := range l.Snapshots {
		e.Snapshots = append(e.Snapshots, Snapshot{
			SnapshotID: s.SnapshotID, Attempt: s.Attempt, State: string(s.State), VolumeID: s.VolumeID, CrashConsistent: s.CrashConsistent,
			DiskSize: s.DiskSize, AskedAt: s.IntendedAt.UTC(), SettledAt: known(s.SettledAt),
			VolumeAsideAt: known(s.VolumeAsideAt), VolumeDeletedAt: known(s.VolumeDeletedAt), Detail: s.Detail,
		})
	}
	for _, d := range l.Disks {
		e.Disks = append(e.Disks, Disk{
			UserID: d.UserID, Name: d.Name, InUse: d.InUse, HolderID: d.HolderID, VolumeID: d.VolumeID, Size: d.Size, BackingUp: d.BackingUp,
			Snapshots: d.Snapshots, PendingSnapshots: d.PendingSnapshots, LastSnapshotAt: known(d.LastSnapshotAt),
			Deleted: d.Deleted, DeleteDate: known(d.DeleteDate), Operation: sentence(d.OperationStatus, d.OperationError),
		})
	}
	e.Next = next(l, rules, e)
	return e
}

func gpu(r reservation.Reservation) string {
	if r.GPUCount > 1 {
		return strconv.Itoa(r.GPUCount) + "× " + r.GPUType
	}
	return r.GPUType
}

func join(namespace, name string) string {
	if namespace == "" || name == "" {
		return name
	}
	return namespace + "/" + name
}

// known is nil for the zero time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func finite(i reservation.Instant) *time.Time {
	t, _ := i.Time()
	return known(t)
}

func deadline(l postgres.Life, rules config.Rules) Deadline {
	switch {
	case l.Row == nil && l.Cleanup != nil:
		return Deadline{At: known(l.Cleanup.Deadline)}
	case l.Row == nil:
		return Deadline{}
	case l.Anomaly != reservation.NoAnomaly && l.Row.Status == reservation.Active:
		return Deadline{Own: finite(l.Row.ExpiresAt), Anomaly: l.Anomaly.Sentence()}
	case l.Anomaly != reservation.NoAnomaly:
		return Deadline{Own: finite(l.Row.ExpiresAt)}
	}
	d := Deadline{At: known(l.Deadline)}
	if own := finite(l.Row.ExpiresAt); own != nil && !own.Equal(l.Deadline) {
		d.Own = own
	}
	if l.Row.Status == reservation.Active {
		d.Expires = known(l.Deadline.Add(rules.Grace()))
	}
	return d
}

// announcedAs is what a reservation has become by an announcement.
var announcedAs = map[string]reservation.Status{
	event.ReservationExpired: reservation.Expired, event.ReservationFailed: reservation.Failed, event.ReservationCancelled: reservation.Cancelled,
}

// ended is nil while the reservation lives. Its row may since have been written by others: then it ended by them.
func ended(l postgres.Life) *End {
	if l.Row != nil && !l.Row.Status.Ended() || l.Row == nil && l.Cleanup == nil {
		return nil
	}
	var e End
	if r := l.Row; r != nil {
		e.Reason, e.By = r.FailureReason, byOthers
		for _, at := range []reservation.Instant{r.ReservationEnded, endedAs(*r)} {
			if t, ok := at.Time(); ok && t.After(e.At) { // that of an earlier end may still stand
				e.At = t
			}
		}
	}
	if c := l.Cleanup; c != nil {
		e.Reason = cmp.Or(c.Reason, e.Reason)
		if e.At.IsZero() {
			e.At = c.Ended
		}
	}
	if a := l.Ended; a != nil && (l.Row == nil || announcedAs[a.Type] == l.Row.Status && a.EndedAt.Sub(e.At).Abs() < time.Second) {
		e = End{At: a.EndedAt.UTC(), Reason: a.Reason, By: byUs}
	}
	return &e
}

func endedAs(r reservation.Reservation) reservation.Instant {
	switch r.Status {
	case reservation.Failed:
		return r.FailedAt
	case reservation.Cancelled:
		return r.CancelledAt
	}
	return reservation.Instant{}
}

func cleanup(l postgres.Life) *Cleanup {
	c := l.Cleanup
	if c == nil {
		return nil
	}
	view := &Cleanup{RequestedAt: c.RequestedAt.UTC(), Volume: c.VolumeID, Listing: c.ContentURL, SettledAt: known(c.SettledAt), Outcome: c.Outcome}
	for _, m := range []Milestone{
		{"pod gone", c.PodGoneAt}, {"detach asked for", c.DetachRequestedAt}, {"detach forced", c.DetachForcedAt},
		{"volume free of its writer", c.WriterGoneAt}, {"disk released", c.DiskReleasedAt},
	} {
		if !m.At.IsZero() {
			view.Milestones = append(view.Milestones, Milestone{m.What, m.At.UTC()})
		}
	}
	for _, name := range postgres.Steps() {
		s := l.Steps[name]
		view.Steps = append(view.Steps, Step{
			Step: string(name), StartedAt: known(s.StartedAt), FinishedAt: known(s.FinishedAt), Outcome: s.Outcome, Detail: s.Detail,
			Failures: s.Attempts, LastError: s.LastError,
		})
	}
	return view
}
