package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
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

func TestASecondPodSeenWhileItsCleanupWasLockedIsSeenAgain(t *testing.T) {
	t.Parallel()
	for name, locked := range map[string]bool{"nobody has the row": false, "somebody has the row for a moment": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			id := w.insert(row{"status": "'cancelled'", "launched_at": ago(7 * time.Hour), "cancelled_at": ago(time.Minute)})[0] // no date tells
			w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, redated_at, pod_uid, pod_gone_at)
				values ($1, 'first', now() - interval '30 minutes', now() - interval '30 minutes', 'uid-1', now() - interval '29 minutes')`, id)
			w.exec(`insert into expiry.follow_ups (kind, key, reservation_id, subject, due_at, attempts)
				values ('cleanup', $1, $1, $1, now() + interval '50 minutes', 12)`, id)
			c.add(pod.Pod{Name: "gpu-dev-" + id[:8], UID: "uid-2", Created: time.Now().Add(-10 * time.Minute)})
			if locked {
				tx, err := w.raw.Begin(t.Context())
				require.NoError(t, err)
				_, err = tx.Exec(t.Context(), "select from expiry.cleanups for no key update") // as every transaction about its disk
				require.NoError(t, err)
				w.within(c)
				require.NoError(t, tx.Rollback(t.Context()))
			}
			for range 3 {
				w.within(c)
			}
			require.Equal(t, "true", w.text("select (revived_at is not null)::text from expiry.cleanups"), "three ticks later")
		})
	}
}

func TestASecondLifesCleanupDoesNotWaitForThePauseOfTheFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"launched_at": ago(20 * time.Minute)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, requested_at) values ($1, 'first', now() - interval '1 hour')", id)
	w.exec(`insert into expiry.follow_ups (kind, key, reservation_id, subject, due_at, attempts, last_error)
		values ('cleanup', $1, $1, $1, now() + interval '55 minutes', 12, 'disk: volume attached elsewhere')`, id)
	require.Equal(t, 1, w.sweep().Counts["cleanupsRevived"])
	w.exec("update reservations set expires_at = "+ago(10*time.Minute)+" where reservation_id = $1", id)
	w.sweep()
	require.Equal(t, "expired", w.status(id))
	w.sweep()
	require.Equal(t, "true", w.text("select (due_at <= clock_timestamp())::text from expiry.follow_ups where kind = 'cleanup'"),
		"its pod runs on until %s", w.text("select (due_at - clock_timestamp())::text from expiry.follow_ups where kind = 'cleanup'"))
}

func TestTheReasonForASecondLifesCleanupIsNotThatThereWasNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'cancelled'", "cancelled_at": ago(time.Minute)})[0]
	w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome, revived_at)
		values ($1, 'first', now() - interval '2 hours', now() - interval '2 hours', 'released', now() - interval '1 hour')`, id)
	r := w.sweep()
	require.Len(t, r.Decided, 1)
	require.NotContains(t, r.Decided[0].Reason, "never cleaned up")
}

func TestAPodSeenAsThatOfAReservationDeletedSinceOpensNoCleanup(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id := w.insert(row{"status": "'cancelled'", "cancelled_at": ago(time.Minute), "pod_name": "'gpu-dev-shared'"})[0] // it ended long ago, and was cancelled now
	w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome)
		values ($1, 'first', now() - interval '5 hours', now() - interval '5 hours', 'released')`, id)
	w.exec("insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ('uid-2', 'deleted', 'gpu-dev', 'gpu-dev-shared', now() - interval '1 hour')")
	c.add(pod.Pod{Name: "gpu-dev-shared", UID: "uid-2", Created: time.Now().Add(-time.Hour)})
	require.Zero(t, w.within(c).Counts["straysRequested"])
}

func TestALiveReservationHasNoUnfinishedCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"launched_at": ago(20 * time.Hour)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, requested_at) values ($1, 'first', now() - interval '19 hours')", id)
	w.sweep()
	b, err := w.db.Backlog(t.Context(), 10)
	require.NoError(t, err)
	require.Zero(t, b.Cleanups, "the oldest since %s", b.OldestCleanup)
}

func TestASecondLifesCleanupDoesNotWaitForTheSnapshotOfASettledFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'active'", "launched_at": ago(20 * time.Minute)})[0]
	w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome)
		values ($1, 'first', now() - interval '1 hour', now() - interval '50 minutes', 'superseded')`, id)
	w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject, due_at) values ('snapshot.sync', gen_random_uuid()::text, $1, 'snap-1', now() + interval '4 minutes')", id)
	w.sweep()
	w.exec("update reservations set status = 'cancelled', cancelled_at = clock_timestamp() where reservation_id = $1", id)
	require.Equal(t, 1, w.sweep().Counts["cleanupsRequested"])
}

func TestTheDateOfTheFirstEndHidesNoPodOfASecondLife(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id := w.insert(row{"status": "'cancelled'", "reservation_ended": ago(2 * time.Hour)})[0] // the second time its status alone was written
	w.exec(`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome, lived_at)
		values ($1, 'first', now() - interval '5 minutes', now(), 'nothing_to_keep', now() - interval '20 minutes')`, id)
	c.add(pod.Pod{Name: "gpu-dev-" + id[:8], UID: "uid-2", Created: time.Now().Add(-10 * time.Minute)})
	require.Equal(t, 1, w.within(c).Counts["straysRequested"])
}
