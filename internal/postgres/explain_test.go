package postgres_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestALifeIsAllThatTheRowsSay(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ctx := t.Context()
		id := uuid.NewString()
		exec(t, db, `
			insert into reservations (reservation_id, user_id, status, disk_name, created_at, launched_at, expires_at) values
			    ('master', 'ada', 'active', null, now() - interval '9 hours', now() - interval '9 hours', now() + interval '2 hours')`)
		exec(t, db, `
			insert into reservations (reservation_id, user_id, status, disk_name, created_at, launched_at, expires_at, master_reservation_id) values
			    ($1, 'ada', 'active', 'default', now() - interval '9 hours', now() - interval '9 hours', now() + interval '1 hour', 'master')`, id)
		exec(t, db, `
			insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id, snapshot_count, last_snapshot_at, delete_date) values
			    ('ada', 'default', true, $1, 'vol-1', 2, 'infinity', 'infinity'), ('ada', 'other', false, $1, null, null, null, null), ('bob', 'default', true, null, null, 0, null, null)`, id)
		exec(t, db, "insert into expiry.missing_pods values ($1, now() - interval '2 minutes', now())", id)
		exec(t, db, "insert into expiry.oom_kills (reservation_id, container_id, finished_at, container) values ($1, 'c', now(), 'gpu-dev')", id)
		request(t, db, cleanupOf(id))
		_, err := db.Pause(ctx, "because", 0)
		require.NoError(t, err)

		life, err := db.Life(ctx, id)
		require.NoError(t, err)
		require.Equal(t, id, life.Row.ID)
		require.WithinDuration(t, life.Now.Add(2*time.Hour), life.Deadline, time.Minute, "its set's")
		require.WithinDuration(t, life.Now.Add(-2*time.Minute), life.Missing.FirstSeen, time.Minute)
		require.Equal(t, "gpu-dev", life.OOMKill.Container)
		require.Equal(t, "because", life.Pause.Why)
		require.Len(t, life.FollowUps, 1)
		require.False(t, life.FollowUps[0].Done)
		require.False(t, life.Leftover)
		require.Nil(t, life.Cleanup)
		require.Nil(t, life.Ended)
		require.Len(t, life.Disks, 1, "neither another's nor one that it only held once")
		require.Equal(t, postgres.DiskRecord{UserID: "ada", Name: "default", InUse: true, HolderID: id, VolumeID: "vol-1", Snapshots: 2}, life.Disks[0])

		// It ends, is announced, and its cleanup is begun; then the platform forgets it.
		exec(t, db, "update reservations set status = 'expired', reservation_ended = now() where reservation_id = $1", id)
		for _, reason := range []string{"the first time", "again"} {
			ended := event.Ended{ReservationID: id, Reason: reason, EndedAt: time.Now()}
			require.NoError(t, postgres.RecordFact(ctx, db, event.ReservationExpired, id, ended, nil))
		}
		require.NoError(t, postgres.RecordFact(ctx, db, event.ReservationCleanedUp, id, event.CleanedUp{}, nil))
		exec(t, db, "update expiry.follow_ups set state = 'done' where kind = 'cleanup'")
		life, err = db.Life(ctx, id)
		require.NoError(t, err)
		require.True(t, life.Leftover, "nobody is asked for its cleanup any more")
		exec(t, db, "update reservations set reservation_ended = now() - interval '8 days', disk_name = null where reservation_id = $1", id)
		exec(t, db, "update disks set in_use = false")
		life, err = db.Life(ctx, id)
		require.NoError(t, err)
		require.False(t, life.Leftover, "whoever ended it has cleaned up")
		exec(t, db, "update reservations set disk_name = 'default' where reservation_id = $1", id)
		_, err = db.EnsureCleanup(ctx, id)
		require.NoError(t, err)
		require.NoError(t, db.BeginStep(ctx, id, postgres.StepPod))
		exec(t, db, `
			insert into expiry.snapshots (intent_id, reservation_id, user_id, disk_name, state, attempt, detail) values
			    (gen_random_uuid(), $1, 'ada', 'default', 'pending', 2, null), (gen_random_uuid(), $1, 'ada', 'default', 'error', 1, 'EC2: internal error'),
			    (gen_random_uuid(), null, 'ada', 'default', 'completed', 1, null)`, id)
		exec(t, db, "delete from reservations where reservation_id = $1", id)

		life, err = db.Life(ctx, id)
		require.NoError(t, err)
		require.Nil(t, life.Row)
		require.Equal(t, "again", life.Ended.Reason)
		require.Equal(t, event.ReservationExpired, life.Ended.Type)
		require.Contains(t, life.Steps, postgres.StepPod)
		require.Equal(t, "default", life.Cleanup.DiskName)
		require.Len(t, life.Snapshots, 2, "those of its own cleanup")
		require.Equal(t, "EC2: internal error", life.Snapshots[0].Detail)
		require.Len(t, life.Disks, 1, "found by the name that the cleanup remembers")

		nobody, err := db.Life(ctx, "nobody")
		require.NoError(t, err)
		require.Equal(t, "nobody", nobody.ReservationID)
		require.Nil(t, nobody.Row)
		require.Nil(t, nobody.Cleanup)
		require.Nil(t, nobody.Ended)
		require.Nil(t, nobody.Missing)
		require.Nil(t, nobody.OOMKill)
		require.Empty(t, nobody.FollowUps)
		require.Empty(t, nobody.Snapshots)
		require.Empty(t, nobody.Disks)
	})
}

func TestAReservationIsFoundByWhatPeopleKnowOfIt(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, `
			insert into reservations (reservation_id, pod_name) values
			    ('aaaa0001-1', null), ('aaaa0001-2', ''), ('aaaa0002-1', 'gpu-dev-bespoke'), ('aaaa', null), ('per_cent%', null)`)
		exec(t, db, "insert into expiry.cleanups (reservation_id, reason) values ('bbbb0001-1', 'expired'), ('aaaa0002-1', 'expired')")
		request(t, db, cleanupOf("cccc0001-1"))
		for meant, want := range map[string][]string{
			"aaaa0001-1": {"aaaa0001-1"}, "aaaa0001": {"aaaa0001-1", "aaaa0001-2"}, "aaaa0002": {"aaaa0002-1"},
			"aaaa":             {"aaaa"}, // exactly this one, whatever else begins so
			"gpu-dev-aaaa0001": {"aaaa0001-1", "aaaa0001-2"}, "gpu-dev-bespoke": {"aaaa0002-1"},
			"bbbb": {"bbbb0001-1"}, "cccc": {"cccc0001-1"}, "per_": {"per_cent%"}, "%": {}, "dddd": {},
		} {
			found, err := db.FindReservations(t.Context(), meant, 5)
			require.NoError(t, err)
			require.Equal(t, want, append([]string{}, found...), meant)
		}
		found, err := db.FindReservations(t.Context(), "aaaa0", 2)
		require.NoError(t, err)
		require.Len(t, found, 2)
	})
}
