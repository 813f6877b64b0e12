package disk

import (
	"strconv"
	"strings"
	"time"
)

// SnapshotState is the state of an EBS snapshot in EC2's words.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotPending     SnapshotState = "pending"
	SnapshotCompleted   SnapshotState = "completed"
	SnapshotError       SnapshotState = "error"
	SnapshotRecoverable SnapshotState = "recoverable"
	SnapshotRecovering  SnapshotState = "recovering"
)

// Snapshot is an EBS snapshot as EC2 describes it.
type Snapshot struct {
	ID          string
	VolumeID    string
	OwnerID     string
	State       SnapshotState
	Description string
	StartedAt   time.Time
	// Progress is EC2's own text, such as "42%".
	Progress string
	// SizeGiB is the size of the volume, not of what is stored.
	SizeGiB int
	Tags    map[string]string
	// StatusMessage says what went wrong where the state is error.
	StatusMessage string
}

// copiedVolumeID is what EC2 gives as the volume of a copied snapshot.
const copiedVolumeID = "vol-ffffffff"

// Foreign reports whether the snapshot is another account's or a product of CopySnapshot. Tags are no proof, they
// travel with a copy. While the own account is unknown ("") every snapshot is foreign.
func Foreign(s Snapshot, account string) bool {
	if account == "" || s.OwnerID != account {
		return true
	}
	// EC2 describes copies as "[Copied snap-… from us-west-2]", AMI copies as "Copied for DestinationAmi …".
	description := strings.ToLower(strings.TrimSpace(s.Description))
	return s.VolumeID == copiedVolumeID ||
		strings.HasPrefix(description, "[copied") ||
		strings.HasPrefix(description, "copied")
}

// Ours reports whether the snapshot is the platform's, made by this service, by an earlier one or by the platform
// itself.
func Ours(s Snapshot, account string) bool {
	return s.Tags[TagUser] != "" && !Foreign(s, account)
}

// Key returns the disk that the snapshot's tags name. The oldest ones carry no disk's name: theirs is empty, which
// is no disk of any row, so that they are reported and kept.
func (s Snapshot) Key() Key {
	return Key{User: s.Tags[TagUser], Name: s.Tags[TagDisk]}
}

// MadeBy reports whether the given attempt of the reservation's cleanup made the snapshot.
func (s Snapshot) MadeBy(reservationID string, attempt int) bool {
	return reservationID != "" && s.Tags[TagReservation] == tagValue(reservationID) &&
		attempt > 0 && s.Tags[TagAttempt] == strconv.Itoa(attempt)
}

// CrashConsistent reports whether the volume had to be taken from its writer by force before the snapshot.
func (s Snapshot) CrashConsistent() bool {
	_, marked := s.Tags[TagCrashConsistent]
	return marked
}
