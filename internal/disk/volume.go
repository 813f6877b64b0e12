package disk

import (
	"fmt"
	"time"
)

// CrashConsistentHold is how long a volume is kept beside a snapshot that was taken after a forced detach: such a
// snapshot holds what had reached the disk, perhaps not all that the user had written.
const CrashConsistentHold = 7 * 24 * time.Hour

// Others says how the volume's tags name another disk than k, or another user; empty where they do not. Of a volume that
// carries none, as old ones do, they tell nothing. Nor do they of the disk's name while that is unknown.
func (k Key) Others(v Volume) (why string) {
	own := k.Tags()
	for _, tag := range []string{TagUser, TagDisk} {
		if tagged := v.Tags[tag]; tagged != "" && tagged != own[tag] && (tag == TagUser || k.Name != "") {
			return fmt.Sprintf("volume %s is another's: its tag %s is %q, not %q", v.ID, tag, tagged, own[tag])
		}
	}
	return ""
}

// Named reports whether the volume's tags name the disk: of one whose name is unknown, its user.
func (k Key) Named(v Volume) bool {
	return k.User != "" && v.Tags[TagUser] != "" && (k.Name == "" || v.Tags[TagDisk] != "") && k.Others(v) == ""
}

// Choose returns the one of several volumes that is the disk by its tags. Where those name none, or several, undecided
// are the volumes that it may be: all but those that are another's.
func (k Key) Choose(volumes []Volume) (id string, undecided []string) {
	var named []string
	for _, v := range volumes {
		if k.Named(v) {
			named = append(named, v.ID)
		}
		if k.Others(v) == "" {
			undecided = append(undecided, v.ID)
		}
	}
	if len(named) == 1 {
		return named[0], nil
	}
	return "", undecided
}

// Lag is how far EC2's API may be behind what has happened to a volume or snapshot: it is eventually consistent, and AWS has
// its users count with up to about five minutes. So long it may deny what there is, even what it has shown before.
const Lag = 6 * time.Minute

// Deleting reports whether EC2 is about to forget the volume.
func (v Volume) Deleting() bool { return v.State == VolumeDeleting || v.State == VolumeDeleted }

// WriterGone reports whether nothing can write to the volume any more, and why it cannot be said where not.
// Only EC2 knows: a pod that answers 404 may still run on a node that nobody can reach.
func WriterGone(v Volume) (gone bool, reason string) {
	switch {
	case len(v.Attachments) > 0:
		a := v.Attachments[0]
		return false, fmt.Sprintf("volume %s is %s to %s", v.ID, a.State, a.InstanceID)
	case v.State != VolumeAvailable:
		return false, fmt.Sprintf("volume %s is %q, not available", v.ID, v.State)
	}
	return true, ""
}

// Capture is what a cleanup has recorded of its own work on a volume.
type Capture struct {
	ReservationID string
	Disk          Key
	// Attempt numbers the cleanup's tries to make a snapshot, from 1.
	Attempt int
	// IntentID is of the record that was committed when the attempt began, which none does before the writer is gone.
	// Nobody can have known it earlier: what carries it was started later, whatever EC2's clock and ours make of it.
	IntentID string
	// WriterGoneAt is the moment at which the volume was seen without a writer; zero if it never was.
	WriterGoneAt time.Time
	// CrashConsistent is true where the volume was taken from its writer by force, whatever the snapshot's tags say.
	CrashConsistent bool
}

// MayDelete reports whether the volume may be deleted: the snapshot holds all that was ever written to it, and
// this very cleanup made it. A nil snapshot, or one that anything is unknown about, keeps the volume.
func MayDelete(v Volume, s *Snapshot, c Capture, account string, now time.Time) (ok bool, reason string) {
	if s == nil {
		return false, fmt.Sprintf("no snapshot of volume %s", v.ID)
	}
	if gone, why := WriterGone(v); !gone {
		return false, why
	}
	if why := c.Disk.Others(v); why != "" {
		return false, why
	}
	switch {
	case Foreign(*s, account):
		return false, fmt.Sprintf("snapshot %s is foreign", s.ID)
	case v.ID == "" || s.VolumeID != v.ID:
		return false, fmt.Sprintf("snapshot %s is of volume %q, not %q", s.ID, s.VolumeID, v.ID)
	case s.State != SnapshotCompleted:
		return false, fmt.Sprintf("snapshot %s is %q, not completed", s.ID, s.State)
	case !s.MadeBy(c.ReservationID, c.Attempt):
		return false, fmt.Sprintf("snapshot %s was not made by attempt %d of the cleanup of %s", s.ID, c.Attempt, c.ReservationID)
	case c.IntentID == "" || s.Tags[TagIntent] != c.IntentID:
		return false, fmt.Sprintf("snapshot %s was not made by intent %q", s.ID, c.IntentID)
	case c.WriterGoneAt.IsZero():
		return false, fmt.Sprintf("volume %s was never seen without a writer", v.ID)
	case s.StartedAt.IsZero():
		return false, fmt.Sprintf("snapshot %s was started at an unknown time", s.ID)
	case now.Before(HeldUntil(*s, c)):
		return false, fmt.Sprintf("snapshot %s is crash-consistent: volume %s is kept until %s",
			s.ID, v.ID, HeldUntil(*s, c).UTC().Format(time.RFC3339))
	}
	return true, ""
}

// HeldUntil returns until when the volume is kept beside its snapshot, zero where it need not be.
func HeldUntil(s Snapshot, c Capture) time.Time {
	if !s.CrashConsistent() && !c.CrashConsistent {
		return time.Time{}
	}
	return s.StartedAt.Add(CrashConsistentHold)
}
