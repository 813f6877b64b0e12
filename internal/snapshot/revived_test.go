package snapshot_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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
