package disk

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// KeepNewest is how many completed snapshots of a disk stay however old they are.
	KeepNewest = 3
	// KeepFor is how long a completed snapshot stays however many newer ones there are.
	KeepFor = 7 * 24 * time.Hour
	// MaxPurges is how many snapshots of one disk may go in one sweep.
	MaxPurges = 10
)

// Retention is what the snapshots of all disks need: tags set or taken away, some deleted, some spoken of.
type Retention struct {
	Tag   []Tagging
	Untag []Untagging
	Purge []Purge
	Kept  []Kept
}

// Tagging is a deleted disk's snapshots that lack the tags which say so, or carry another date.
type Tagging struct {
	Disk        Key
	SnapshotIDs []string
	Tags        map[string]string
}

// Untagging is a restored disk's snapshots that still carry the tags of a deleted one.
type Untagging struct {
	Disk        Key
	SnapshotIDs []string
}

// Purge is a snapshot that may go. Whoever deletes it asks MayPurge again first.
type Purge struct {
	Disk       Key
	SnapshotID string
	Reason     string
}

// Kept is a disk whose snapshots stay although something about them is odd.
type Kept struct {
	Disk      Key
	Snapshots int
	Reason    string
}

// PlanRetention decides about every snapshot of ours; foreign ones are neither counted nor touched. A disk without
// a row keeps all it has. Those that are asked to be purged already are not purged anew, and count for none of the
// MaxPurges: one that cannot go holds up no other. The plan is the same for the same input, in whatever order it comes.
func PlanRetention(snapshots []Snapshot, rows map[Key]Row, asked map[string]bool, account string, now time.Time) Retention {
	byDisk := map[Key][]Snapshot{}
	for _, s := range snapshots {
		if Ours(s, account) {
			byDisk[s.Key()] = append(byDisk[s.Key()], s)
		}
	}
	var plan Retention
	for _, key := range slices.SortedFunc(maps.Keys(byDisk), compareKeys) {
		row, known := rows[key]
		if !known {
			plan.Kept = append(plan.Kept, Kept{key, len(inOrder(byDisk[key])), "no row in disks"})
			continue
		}
		plan.add(key, row, byDisk[key], asked, now)
	}
	return plan
}

func (plan *Retention) add(key Key, row Row, snapshots []Snapshot, asked map[string]bool, now time.Time) {
	snapshots = inOrder(snapshots)
	switch {
	case row.Deleted && row.DeleteDate.IsZero():
		plan.Kept = append(plan.Kept, Kept{key, len(snapshots), deletedWithoutDate})
		return
	case row.Deleted:
		tags := deletionTags(row, now)
		if ids := idsWhere(snapshots, func(s Snapshot) bool { return lacksDate(s, tags[TagDeleteDate]) }); len(ids) > 0 {
			plan.Tag = append(plan.Tag, Tagging{key, ids, tags})
		}
		if row.InUse && !now.Before(row.DeleteDate) {
			plan.Kept = append(plan.Kept, Kept{key, len(snapshots), deletedButInUse})
			return
		}
	default:
		if ids := idsWhere(snapshots, carriesDeletion); len(ids) > 0 {
			plan.Untag = append(plan.Untag, Untagging{key, ids})
		}
	}
	purges := 0
	for _, s := range slices.Backward(snapshots) { // oldest first
		if ok, reason := mayPurge(s, row, snapshots, now); ok && !asked[s.ID] && purges < MaxPurges {
			plan.Purge = append(plan.Purge, Purge{key, s.ID, reason})
			purges++
		}
	}
}

// MayPurge reports whether the snapshot may be deleted now. all are the snapshots of its disk as EC2 lists them at
// this moment; row is the disk's, read under its lock, nil where there is none. A snapshot that the list lacks stays.
func MayPurge(snapshotID string, row *Row, all []Snapshot, account string, now time.Time) (ok bool, reason string) {
	i := slices.IndexFunc(all, func(s Snapshot) bool { return s.ID == snapshotID })
	if i < 0 {
		return false, "not among the disk's snapshots"
	}
	s := all[i]
	if !Ours(s, account) {
		return false, "foreign"
	}
	if row == nil {
		return false, "no row in disks"
	}
	siblings := inOrder(slices.DeleteFunc(slices.Clone(all), func(o Snapshot) bool {
		return !Ours(o, account) || o.Key() != s.Key()
	}))
	s = siblings[slices.IndexFunc(siblings, func(o Snapshot) bool { return o.ID == snapshotID })]
	return mayPurge(s, *row, siblings, now)
}

// mayPurge decides about one snapshot among its disk's, which are in order.
func mayPurge(s Snapshot, row Row, siblings []Snapshot, now time.Time) (ok bool, reason string) {
	if row.Deleted {
		return mayPurgeDeleted(s, row, now)
	}
	const days = KeepFor / (24 * time.Hour)
	switch {
	case s.State != SnapshotCompleted:
		return false, fmt.Sprintf("it is %q", s.State)
	case s.StartedAt.IsZero():
		return false, "its age is unknown"
	case now.Sub(s.StartedAt) <= KeepFor:
		return false, fmt.Sprintf("it is not past %d days", days)
	}
	newer := 0
	for _, o := range siblings {
		if newer == KeepNewest {
			return true, fmt.Sprintf("past %d days, with %d newer ones", days, KeepNewest)
		}
		if o.ID == s.ID {
			break
		}
		if o.State == SnapshotCompleted {
			newer++
		}
	}
	return false, fmt.Sprintf("it is among the newest %d", KeepNewest)
}

const (
	deletedWithoutDate = "its disk is deleted without a date"
	deletedButInUse    = "its disk is deleted but in use"
)

func mayPurgeDeleted(s Snapshot, row Row, now time.Time) (ok bool, reason string) {
	date := row.DeleteDate.UTC().Format(time.DateOnly)
	switch {
	case row.DeleteDate.IsZero():
		return false, deletedWithoutDate
	case now.Before(row.DeleteDate):
		return false, "its disk can be restored until " + date
	case row.InUse:
		return false, deletedButInUse
	case s.State != SnapshotCompleted && s.State != SnapshotError:
		return false, fmt.Sprintf("it is %q", s.State)
	}
	return true, "its disk was to go on " + date
}

// inOrder returns the snapshots newest first, each once: a list that changes while it is paged through may name one
// twice, and a snapshot counted twice would push another out of the newest.
func inOrder(snapshots []Snapshot) []Snapshot {
	slices.SortFunc(snapshots, newestFirst)
	return slices.CompactFunc(snapshots, func(a, b Snapshot) bool { return a.ID == b.ID })
}

func lacksDate(s Snapshot, date string) bool {
	return s.Tags[TagDeleteDate] != date || s.Tags[TagMarkedDeletedAt] == ""
}

func carriesDeletion(s Snapshot) bool {
	_, date := s.Tags[TagDeleteDate]
	_, mark := s.Tags[TagMarkedDeletedAt]
	return date || mark
}

func idsWhere(snapshots []Snapshot, want func(Snapshot) bool) []string {
	var ids []string
	for _, s := range snapshots {
		if want(s) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func newestFirst(a, b Snapshot) int {
	return cmp.Or(b.StartedAt.Compare(a.StartedAt), strings.Compare(b.ID, a.ID), cmp.Compare(b.State, a.State))
}

func compareKeys(a, b Key) int {
	return cmp.Or(strings.Compare(a.User, b.User), strings.Compare(a.Name, b.Name))
}
