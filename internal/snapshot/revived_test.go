package snapshot_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// The reservation comes back to life while its snapshot is under way, somebody writes on the same volume, and it ends
// again. What was captured before does not hold that.
func TestASnapshotOfAFormerLifeIsNoReasonToDeleteTheVolume(t *testing.T) {
	t.Parallel()
	for name, delivered := range map[string]bool{"its sync is delivered while it is live": true, "a date alone tells": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for w.snapshots(t) != "pending" {
				w.deliver(t, postgres.Cleanup)
			}
			w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
			w.attach(t, w.volume, w.instance)
			if delivered {
				w.deliver(t, postgres.SnapshotSync)
			} else {
				w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour'")
			}
			w.detach(t)
			w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp() where reservation_id = $1", w.id)

			asked, err := w.db.EnsureCleanup(t.Context(), w.id)
			require.NoError(t, err)
			require.True(t, asked)
			w.settle(t, 6)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.Equal(t, "completed completed", w.snapshots(t))
			require.Len(t, w.made(t), 2)
			require.Equal(t, 2, read[int](t, w, "select snapshot_count from disks"), "each is counted")
			require.Zero(t, read[int](t, w, "select pending_snapshot_count from disks"))
		})
	}
}

func TestAVolumeThatTheRowNamedLateIsReleasedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.settle(t, 6)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	w.exec(t, "update reservations set cancelled_at = clock_timestamp(), reservation_ended = clock_timestamp() + interval '1 minute'")
	w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour'")
	asked, err := w.db.EnsureCleanup(t.Context(), w.id)
	require.NoError(t, err)
	require.False(t, asked, "dates written late begin nothing once the disk is released, nor does the volume that was")
}

// The platform may delete the row of a reservation that was live again: what it had then is still owed.
func TestADeletedRowDoesNotMakeAFormerLifeForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for w.snapshots(t) != "pending" {
		w.deliver(t, postgres.Cleanup)
	}
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	w.attach(t, w.volume, w.instance)
	w.deliver(t, postgres.SnapshotSync)
	w.detach(t)
	w.exec(t, "update disks set reservation_id = null")
	w.exec(t, "delete from reservations where reservation_id = $1", w.id)
	w.ask(t)
	w.settle(t, 6)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, "completed completed", w.snapshots(t))
}

func TestTheInstanceOfAFormerLifeKeepsNoDiskLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for w.snapshots(t) != "pending" {
		w.deliver(t, postgres.Cleanup)
	}
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	w.attach(t, w.volume, w.runInstance(t))
	w.deliver(t, postgres.SnapshotSync)
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp() + interval '1 second' where reservation_id = $1", w.id)
	w.ask(t)
	w.settle(t, 2)
	w.age(t, 2*time.Minute) // the driver has had its time
	w.settle(t, 6)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestDatesThatAreRewrittenWithoutEndDelayTheEndOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	for range 8 {
		w.exec(t, "update reservations set reservation_ended = clock_timestamp()")
		w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '2 minutes' where settled_at is null")
		w.ask(t)
		w.settle(t, 1)
	}
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

// revive has somebody write the status back, and nothing else, and a sweep see it.
func (w *world) revive(t *testing.T) {
	t.Helper()
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	lease, _, _, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	_, err = w.db.RecordRevived(t.Context(), lease)
	require.NoError(t, err)
	w.exec(t, "update expiry.sweep_lease set expires_at = '-infinity'")
}

func TestAVolumeSetAsideToWhichALaterLifeWroteIsKeptForGood(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.revive(t)
	w.attach(t, w.volume, w.instance)
	w.detach(t)
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp() where reservation_id = $1", w.id)
	w.ask(t)
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, postgres.OutcomeSuperseded, w.outcome(t), "nobody had locked the disk for it again")

	w.grown(t, id)
	require.Equal(t, "volume_kept", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.True(t, w.exists(t), "the second life is in no snapshot")
}

// The second life's cleanup has not come to the disk, which is in other hands by now.
func TestAVolumeSetAsideIsNotForgottenWhileASecondLifeIsCleanedUp(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.revive(t)
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp(), ebs_volume_id = null where reservation_id = $1", w.id)
	require.NoError(t, w.db.BeginCleanupAnew(t.Context(), w.id))
	require.NoError(t, w.takeOver(t.Context()))
	w.grown(t, id)
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, time.Hour, report.Next, "its disk is in use: %+v", report)
	w.exec(t, "update disks set in_use = false, reservation_id = null")
	w.deliver(t, postgres.SnapshotSync)
	require.False(t, w.exists(t))
}

// The platform has restored the disk to a new volume and left the reservation's row as it was; the pod is gone already.
func TestTheVolumeThatTheHeldDiskNamesIsCapturedThoughTheRowNamesADeletedOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.settle(t, 6)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	second := w.createVolume(t)
	w.attach(t, second, w.runInstance(t))
	w.exec(t, "update disks set in_use = true, reservation_id = $1, ebs_volume_id = $2", w.id, second)
	w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour', settled_at = settled_at - interval '1 hour'")
	w.exec(t, "update reservations set status = 'cancelled', launched_at = now() - interval '10 minutes', cancelled_at = now(), namespace = $2 where reservation_id = $1",
		w.id, w.cluster.Namespace)
	w.whole(nil, 0)
	w.ask(t)
	w.settle(t, 2)
	w.age(t, time.Hour) // the driver has had its time
	w.settle(t, 4)
	require.Equal(t, second, w.made(t)[len(w.made(t))-1].VolumeID)
	require.Equal(t, 2, w.disk(t).Snapshots)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

// The first life's disk was never captured when the second one began, with another.
func TestTheDiskOfAFormerLifeIsCapturedOnceThatOfTheSecondIsReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update reservations set status = 'active', namespace = $2 where reservation_id = $1", w.id, w.cluster.Namespace)
	w.deliver(t, postgres.Cleanup)
	second := w.createVolume(t)
	w.exec(t, "insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ($1, 'other', true, $2, $3)", user, w.id, second)
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp(), disk_name = 'other', ebs_volume_id = $2 where reservation_id = $1", w.id, second)
	w.whole(nil, 0)
	for range 3 {
		w.ask(t)
		w.settle(t, 2)
		w.age(t, time.Hour)
	}
	w.settle(t, 2)
	require.Equal(t, []string{"other " + second, diskName + " " + w.volume}, read[[]string](t, w,
		"select array_agg(disk_name || ' ' || volume_id order by intended_at) from expiry.snapshots where state = 'completed'"))
	require.Zero(t, read[int](t, w, "select count(*)::int from disks where in_use"))
}

func TestADiskHeldUnderAnotherNameThanTheRowsIsReleasedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.settle(t, 6)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	second := w.createVolume(t)
	w.exec(t, "update disks set disk_name = 'renamed', in_use = true, reservation_id = $1, ebs_volume_id = $2", w.id, second)
	w.exec(t, "update reservations set namespace = $2 where reservation_id = $1", w.id, w.cluster.Namespace)
	w.whole(nil, 0)
	for range 3 {
		w.ask(t)
		w.settle(t, 3)
	}
	require.False(t, read[bool](t, w, "select in_use from disks"))
	require.Equal(t, 2, strings.Count(w.facts(t), "cleanedUp"), w.facts(t))
}

// ask has a sweep ask for the cleanup.
func (w *world) ask(t *testing.T) {
	t.Helper()
	lease, seen, _, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	_, err = w.db.RequestCleanups(t.Context(), lease, seen.Now, []string{w.id})
	require.NoError(t, err)
	w.exec(t, "update expiry.sweep_lease set expires_at = '-infinity'")
}

func TestAnOpenIntentOfAFormerLifeKeepsNoDiskLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	_, made, _, err := w.db.IntendSnapshot(t.Context(), w.id, uuid.New()) // and the process dies before it asks EC2
	require.NoError(t, err)
	require.True(t, made)
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, postgres.Void, read[string](t, w, "select outcome from expiry.follow_ups where kind = 'cleanup'"))
	_, err = w.cloud.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &w.volume})
	require.NoError(t, err)
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp() where reservation_id = $1", w.id)
	w.ask(t)
	var last followup.Report
	for range 20 {
		if w.outcome(t) != "open" {
			break
		}
		w.age(t, time.Hour)
		last = w.deliver(t, postgres.Cleanup)
	}
	require.Equal(t, postgres.OutcomeLost, w.outcome(t), "after 20 hours: %+v, snapshots %s", last, w.snapshots(t))
}

// One life, never revived. Somebody rewrites reservation_ended again and again, all within an hour; the sync sees it.
func TestDatesRewrittenWhileTheSnapshotIsUnderWayDelayTheEndOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	for range 8 {
		for j := 0; j < 4 && w.snapshotsPending(t) == 0 && w.outcome(t) == "open"; j++ {
			w.ask(t)
			w.deliver(t, postgres.Cleanup)
		}
		if w.outcome(t) != "open" {
			break
		}
		w.exec(t, "update reservations set reservation_ended = clock_timestamp()")
		w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '2 minutes' where settled_at is null")
		w.deliver(t, postgres.SnapshotSync)
	}
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t), w.snapshots(t))
}

func (w *world) snapshotsPending(t *testing.T) int {
	t.Helper()
	return read[int](t, w, "select count(*)::int from expiry.snapshots where state = 'pending'")
}

// One life. The volume vanished; the disk's row names one of long ago that EC2 does not know either.
func TestAStaleDiskRowKeepsNoLostDiskLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	_, err := w.cloud.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &w.volume})
	require.NoError(t, err)
	w.exec(t, "update disks set ebs_volume_id = 'vol-0123456789abcdef0'")
	var last followup.Report
	for range 12 {
		if w.outcome(t) != "open" {
			break
		}
		w.age(t, time.Hour)
		last = w.deliver(t, postgres.Cleanup)
	}
	require.Equal(t, postgres.OutcomeLost, w.outcome(t), "%+v", last)
}

// The same with the whole cleanup, which asks EC2 for both and is told that neither exists.
func TestAStaleDiskRowKeepsNoLostDiskLockedForTheWholeCleanupEither(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	_, err := w.cloud.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &w.volume})
	require.NoError(t, err)
	w.exec(t, "update disks set ebs_volume_id = 'vol-0123456789abcdef0'")
	w.exec(t, "update reservations set namespace = $2 where reservation_id = $1", w.id, w.cluster.Namespace)
	w.exec(t, "delete from expiry.cleanup_steps")
	w.whole(nil, 0)
	var last followup.Report
	for range 12 {
		if w.outcome(t) != "open" {
			break
		}
		w.age(t, time.Hour)
		last = w.deliver(t, postgres.Cleanup)
	}
	require.Equal(t, postgres.OutcomeLost, w.outcome(t), "%+v", last)
}

// What was written to a volume set aside is in no snapshot while whoever wrote it has ended, and the cleanup of that has not
// begun: the service is paused, or the event is on its way.
func TestAVolumeSetAsideIsNotDeletedBeforeTheCleanupOfWhoeverHadItSince(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(*world, *testing.T) (id string){
		"the same reservation, as a sweep has seen": func(w *world, t *testing.T) string {
			w.revive(t)
			return w.id
		},
		"the same, as its row alone tells": func(w *world, t *testing.T) string {
			w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
			return w.id
		},
		"another with another disk": func(w *world, t *testing.T) string {
			w.exec(t, "update reservations set status = 'active', launched_at = now(), ebs_volume_id = $2, disk_name = 'found' where reservation_id = $1", w.newer, w.volume)
			return w.newer
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, snapshot := setAside(t)
			by := use(w, t)
			w.attach(t, w.volume, w.instance) // and somebody writes to it
			w.detach(t)
			w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp() where reservation_id = $1", by)
			w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '8 days', settled_at = settled_at - interval '8 days'")
			w.exec(t, "update reservations set reservation_ended = reservation_ended - interval '8 days' where reservation_id = $1", w.id)
			w.exec(t, "update expiry.snapshots set volume_aside_at = volume_aside_at - interval '8 days'")
			w.grown(t, snapshot)
			require.Equal(t, "volume_kept", w.deliver(t, postgres.SnapshotSync).Outcome)
			require.True(t, w.exists(t))
		})
	}
}

// The pod had its home on a volume that is gone, and both rows name another, which is there.
func TestWhatBothRowsNameIsTheDiskOnceTheVolumeWithTheHomeIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.vanish(t)
	second := w.createVolume(t)
	w.exec(t, "update disks set ebs_volume_id = $1", second)
	w.exec(t, "update reservations set ebs_volume_id = $2 where reservation_id = $1", w.id, second)
	w.exec(t, "update expiry.cleanups set misnamed_volume_id = $1", second) // as identify records it
	require.Contains(t, w.deliver(t, postgres.Cleanup).Error, "stays locked until")
	w.whole(nil, 0)
	w.ask(t)
	w.settle(t, 4)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, second, w.made(t)[0].VolumeID)
}
