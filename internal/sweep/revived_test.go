package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a cleanup has found out of a reservation's former life is not to be believed of the next.
func TestASweepRemembersThatAReservationOfWhichACleanupWasAskedForIsLive(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status string
		paused bool
	}{"active": {"'active'", false}, "preparing": {"'preparing'", false}, "while paused": {"'active'", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.insert(row{"status": test.status, "launched_at": ago(20 * time.Minute)})[0]
			w.exec("insert into expiry.cleanups (reservation_id, reason, requested_at) values ($1, 'first', now() - interval '1 hour')", id)
			if test.paused {
				_, err := w.db.Pause(t.Context(), "upgrade", 0)
				require.NoError(t, err)
			}
			require.Equal(t, 1, w.sweep().Counts["cleanupsRevived"])
			require.Zero(t, w.sweep().Counts["cleanupsRevived"], "once")
			w.exec("update reservations set status = 'cancelled' where reservation_id = $1", id)
			c, _, err := w.db.LoadCleanup(t.Context(), id)
			require.NoError(t, err)
			require.True(t, c.EndedAgain)
		})
	}
}

func TestASecondLifeIsCleanedUpHoweverLongAgoTheFirstOneEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'active'", "created_at": ago(21 * 24 * time.Hour), "launched_at": ago(20 * 24 * time.Hour),
		"reservation_ended": ago(10 * 24 * time.Hour)})[0]
	w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome)
		values ($1, 'first', now() - interval '10 days', now() - interval '10 days', 'released')`, id)
	w.sweep()
	w.exec("update reservations set status = 'cancelled' where reservation_id = $1", id)
	require.Equal(t, 1, w.sweep().Counts["cleanupsRequested"])
}

func TestASecondLifesCleanupDoesNotWaitForTheSnapshotOfTheFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'active'", "launched_at": ago(20 * time.Minute)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, requested_at) values ($1, 'first', now() - interval '1 hour')", id)
	w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('snapshot.sync', gen_random_uuid()::text, $1, 'snap-1')", id)
	w.sweep()
	w.exec("update reservations set status = 'cancelled' where reservation_id = $1", id)
	require.Equal(t, 1, w.sweep().Counts["cleanupsRequested"])
	require.Contains(t, w.followUps(), "cleanup "+id+" due")
}
