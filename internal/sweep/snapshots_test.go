package sweep

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
)

const day = 24 * time.Hour

// snapshot is a completed one of ours, of ada's disk d.
func snapshot(id string, age time.Duration, change ...func(*disk.Snapshot)) disk.Snapshot {
	s := disk.Snapshot{ID: id, VolumeID: "vol-0123456789abcdef0", OwnerID: "111122223333", State: disk.SnapshotCompleted,
		StartedAt: time.Now().Add(-age), Tags: disk.Key{User: "ada", Name: "d"}.Tags()}
	for _, f := range change {
		f(&s)
	}
	return s
}

func TestOldSnapshotsArePurgedAndTheNewestStay(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id) values ('d', 'ada')")
	for i := range 6 {
		c.snapshots = append(c.snapshots, snapshot(fmt.Sprintf("snap-%d", i), time.Duration(5+i)*day))
	}
	require.Equal(t, 3, w.within(c).Counts["purgesRequested"])
	require.Equal(t, []string{"snapshot.purge snap-3 due", "snapshot.purge snap-4 due", "snapshot.purge snap-5 due"}, w.followUps())
	require.Zero(t, w.within(c).Counts["purgesRequested"], "each is asked for once")
}

func TestTheSnapshotsOfADeletedDiskGetItsDate(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id, is_deleted, delete_date, marked_deleted_at) values ('d', 'ada', true, '2199-12-31', '2026-03-01 12:00:00Z')")
	c.snapshots = []disk.Snapshot{snapshot("snap-1", day)}
	w.within(c)
	require.Equal(t, "2199-12-31", c.tagged["snap-1"][disk.TagDeleteDate])
	require.Equal(t, "1772366400", c.tagged["snap-1"][disk.TagMarkedDeletedAt])
	require.Empty(t, w.followUps())
}

func TestARestoredDiskLosesItsDate(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id) values ('d', 'ada')")
	c.snapshots = []disk.Snapshot{snapshot("snap-1", 30*day, func(s *disk.Snapshot) { s.Tags[disk.TagDeleteDate] = "2020-01-01" })}
	w.within(c)
	require.Equal(t, []string{"snap-1"}, c.untagged)
	require.Empty(t, w.followUps(), "nothing of it is lost")
}

func TestADiskWhoseTagsCannotBeChangedHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec(`insert into disks (user_id, disk_name, is_deleted, delete_date) values
		('ada', 'deleted-1', true, '2199-12-31'), ('ada', 'deleted-2', true, '2199-12-31'), ('ada', 'gone', true, '2020-01-01'),
		('ada', 'restored-1', false, null), ('ada', 'restored-2', false, null)`)
	for _, name := range []string{"deleted-1", "deleted-2", "gone", "restored-1", "restored-2"} {
		c.snapshots = append(c.snapshots, snapshot("snap-"+name, day, func(s *disk.Snapshot) {
			s.Tags = disk.Key{User: "ada", Name: name}.Tags()
			if name != "deleted-1" && name != "deleted-2" {
				s.Tags[disk.TagDeleteDate] = "2020-01-01"
			}
		}))
	}
	c.refused = []string{"snap-deleted-1", "snap-restored-1", "snap-gone"}
	r := w.within(c)
	require.Equal(t, Partial, r.Outcome)
	require.Contains(t, r.Failures[0].Error, "tagging snap-deleted-1: 403")
	require.Contains(t, r.Failures[0].Error, "untagging: 403")
	require.Equal(t, []string{"snap-deleted-2"}, slices.Collect(maps.Keys(c.tagged)))
	require.Equal(t, []string{"snap-restored-2"}, c.untagged)
	require.Equal(t, 1, r.Counts["disksTagged"])
	require.Equal(t, 1, r.Counts["disksUntagged"])
	require.Equal(t, []string{"snapshot.purge snap-gone due"}, w.followUps())
}

func TestDisksWhoseSnapshotsStayAreReportedByReasonAndOnlyTheFirstAreNamed(t *testing.T) {
	t.Parallel()
	kept := []disk.Kept{{Disk: disk.Key{User: "ada", Name: "d"}, Reason: "deleted without a date"}}
	for i := range 2 * anomalyIDs {
		kept = append(kept, disk.Kept{Disk: disk.Key{User: "ada", Name: fmt.Sprint(i)}, Reason: "no row in disks"})
	}
	found := keptSnapshots(kept)
	require.Len(t, found, 2)
	require.Equal(t, []string{"ada/d"}, found[0].Subjects)
	require.Equal(t, 2*anomalyIDs, found[1].Count)
	require.Len(t, found[1].Subjects, anomalyIDs)
}

func TestSnapshotsWithoutADiskAreKeptAndReported(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	for i := range 9 {
		c.snapshots = append(c.snapshots, snapshot(fmt.Sprintf("snap-%d", i), 100*day))
	}
	r := w.within(c)
	require.Empty(t, w.followUps())
	require.Len(t, r.Anomalies, 1)
	require.Equal(t, []string{"ada/d"}, r.Anomalies[0].Subjects)
}

func TestInAnotherAccountOrRegionNoSnapshotIsTouched(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id, is_deleted, delete_date) values ('d', 'ada', true, '2020-01-01')")
	require.Equal(t, Completed, w.within(c).Outcome)
	require.Equal(t, "111122223333 us-east-1", w.text("select account_id || ' ' || region from expiry.aws_account"))
	c.snapshots = []disk.Snapshot{snapshot("snap-1", 30*day)}
	home := c.account
	for _, elsewhere := range []disk.Account{{ID: home.ID, Region: "us-west-2"}, {ID: "999988887777", Region: home.Region}} {
		c.account, c.snapshots[0].OwnerID = elsewhere, elsewhere.ID
		r := w.within(c)
		require.Equal(t, Partial, r.Outcome)
		require.Len(t, r.Failures, 2)
		require.Contains(t, r.Failures[0].Error, "another AWS account answers")
		require.Empty(t, c.tagged)
		require.Empty(t, w.followUps())
	}
	c.account, c.snapshots[0].OwnerID = home, home.ID
	require.Equal(t, 1, w.within(c).Counts["purgesRequested"])
}

func TestForeignSnapshotsAreNeitherTakenUpNorTouched(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id, is_deleted, delete_date, pending_snapshot_count) values ('d', 'ada', true, '2020-01-01', 1)")
	c.snapshots = []disk.Snapshot{
		snapshot("snap-copied", day, func(s *disk.Snapshot) { s.VolumeID = "vol-ffffffff" }),
		snapshot("snap-copy", day, func(s *disk.Snapshot) { s.Description = "Copied for a scan" }),
		snapshot("snap-other", day, func(s *disk.Snapshot) { s.OwnerID = "999988887777" }),
		snapshot("snap-bare", day, func(s *disk.Snapshot) { s.Tags = nil }),
	}
	r := w.within(c)
	require.Equal(t, 4, r.Counts["foreignSnapshots"])
	require.Empty(t, w.followUps())
	require.Empty(t, c.tagged)
	require.Empty(t, w.texts("select snapshot_id from expiry.snapshots"))
}

func TestASnapshotThatThePlatformBeganIsTakenUpAndSettled(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.exec("insert into disks (disk_name, user_id, pending_snapshot_count, is_backing_up) values ('d', 'ada', 1, true)")
	c.snapshots = []disk.Snapshot{snapshot("snap-1", time.Minute, func(s *disk.Snapshot) { s.State = disk.SnapshotPending })}
	require.Equal(t, 1, w.within(c).Counts["snapshotsAdopted"])
	require.Equal(t, []string{"snap-1 pending"}, w.texts("select snapshot_id || ' ' || state from expiry.snapshots"))
	require.Equal(t, []string{"snap-1"}, w.texts("select subject from expiry.follow_ups where kind = 'snapshot.sync' and state = 'due'"))
	require.Zero(t, w.within(c).Counts["snapshotsAdopted"])
}
