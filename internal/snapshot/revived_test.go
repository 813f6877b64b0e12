package snapshot_test

import (
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
