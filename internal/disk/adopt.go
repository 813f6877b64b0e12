package disk

import (
	"slices"
	"time"
)

// AdoptAfter is how old a completed snapshot must be before nobody's counting it as pending means that it was counted:
// whoever makes one counts it a moment later.
const AdoptAfter = 10 * time.Minute

// beforeItIsCounted is how long before it is counted as pending a snapshot may have been begun.
const beforeItIsCounted = time.Minute

// Adoption is how a snapshot that somebody else made is taken into the books.
type Adoption struct {
	Snapshot Snapshot
	// As is SnapshotPending where its end is still to be counted, also where EC2 shows that end already. Otherwise it is
	// SnapshotCompleted or SnapshotError, and whoever made it has counted it.
	As SnapshotState
}

// Adopt decides how the snapshots of one disk that nobody has in the books are taken over, so that each is counted once.
// awaited is how many of those that the disk counts as pending no book accounts for: only they still have somebody
// waiting for their end. They are those under way, then those that failed, since earlier versions counted only
// completed ones, then the newest. EC2 may not list yet what somebody has just begun: so an older one is not taken for
// what they await until the disk's row has been as it is for AdoptAfter; counted is when it changed last. One that is
// missing from the answer is too young to tell, or in no state to be kept.
func Adopt(unknown []Snapshot, awaited int, counted, now time.Time) []Adoption {
	unknown = inOrder(slices.Clone(unknown))
	var adopted []Adoption
	for _, state := range []SnapshotState{SnapshotPending, SnapshotError, SnapshotCompleted} {
		for _, s := range unknown {
			switch {
			case s.State != state:
			case state == SnapshotCompleted && awaited > 0 && now.Sub(counted) < AdoptAfter && s.StartedAt.Before(counted.Add(-beforeItIsCounted)):
				awaited--
			case state == SnapshotPending || awaited > 0:
				adopted = append(adopted, Adoption{s, SnapshotPending})
				awaited--
			case now.Sub(s.StartedAt) >= AdoptAfter:
				adopted = append(adopted, Adoption{s, s.State})
			}
		}
	}
	return adopted
}
