package postgres_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const stuckAfter = 10

func backlog(t *testing.T, db *postgres.DB) postgres.Backlog {
	t.Helper()
	b, err := db.Backlog(t.Context(), stuckAfter)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), b.Now, time.Minute)
	require.Equal(t, time.UTC, b.Now.Location())
	return b
}

func TestNothingIsBehindInAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		b := backlog(t, db)
		b.Now = time.Time{}
		require.Equal(t, postgres.Backlog{Reservations: map[string]int{}}, b)
		for _, list := range []func() (int, error){
			func() (int, error) { l, err := db.UnfinishedCleanups(t.Context(), 9); return len(l), err },
			func() (int, error) { l, err := db.OpenSnapshots(t.Context(), 9); return len(l), err },
			func() (int, error) { l, err := db.FailingFollowUps(t.Context(), 1, 9); return len(l), err },
		} {
			n, err := list()
			require.NoError(t, err)
			require.Zero(t, n)
		}
	})
}

func TestEveryFollowUpIsCountedOnce(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		for kind, set := range map[string]string{
			"due": "", "waiting": "due_at = clock_timestamp() + interval '1 hour'",
			"failing": "attempts = 9", "failing later": "attempts = 1, due_at = clock_timestamp() + interval '1 hour'",
			"under way":          "attempts = 3, lease_expires_at = clock_timestamp() + interval '1 hour'",
			"lapsed":             "lease_expires_at = clock_timestamp() - interval '1 second'",
			"stuck":              "attempts = 10",
			"stuck, under way":   "attempts = 11, lease_expires_at = clock_timestamp() + interval '1 hour'",
			"done after failing": "state = 'done', attempts = 12",
		} {
			request(t, db, cleanupOf(kind))
			if set != "" {
				exec(t, db, "update expiry.follow_ups set "+set+" where key = $1", kind)
			}
		}
		request(t, db, postgres.FollowUp{Kind: postgres.SnapshotPurge, Key: "snap-1", Subject: "snap-1"})
		exec(t, db, "update expiry.follow_ups set attempts = 40 where kind = 'snapshot.purge'")
		b := backlog(t, db)
		require.Equal(t, postgres.FollowUpCounts{UnderWay: 1, Due: 2, Waiting: 1, Failing: 2, Stuck: 3}, b.FollowUps)
		require.Equal(t, 2, b.CleanupsStuck, "a purge is no cleanup")
		require.Equal(t, 8, b.Cleanups, "asked for and not begun counts as unfinished")

		failing, err := db.FailingFollowUps(t.Context(), stuckAfter, 2)
		require.NoError(t, err)
		require.Len(t, failing, 2)
		require.Equal(t, []int{40, 11}, []int{failing[0].Attempts, failing[1].Attempts}, "the worst first")
		require.Zero(t, failing[0].HeldUntil)
		require.WithinDuration(t, time.Now().Add(time.Hour), failing[1].HeldUntil, time.Minute)
	})
}

func TestTheBacklogCountsWhatIsNotDone(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, `
			insert into reservations (reservation_id, user_id, status) values
			    ('a', 'ada', 'active'), ('b', 'ada', 'active'), ('c', 'bob', 'expired'), ('d', 'bob', null)`)
		exec(t, db, `
			insert into disks (user_id, disk_name, in_use, reservation_id) values
			    ('bob', 'held', true, 'c'), ('bob', 'free', false, 'c'), ('ada', 'used', true, 'a'), ('ada', 'orphan', true, null)`)
		exec(t, db, `
			insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at, outcome) values
			    ('c', 'expired', now() - interval '2 hours', null, null), ('z', 'expired', now() - interval '3 hours', now(), 'released')`)
		request(t, db, cleanupOf("c")) // counted with its row
		exec(t, db, `
			insert into expiry.snapshots (intent_id, user_id, disk_name, state, intended_at) values
			    (gen_random_uuid(), 'bob', 'held', 'intended', now() - interval '5 minutes'), (gen_random_uuid(), 'bob', 'held', 'pending', now()),
			    (gen_random_uuid(), 'bob', 'held', 'completed', now() - interval '9 hours'), (gen_random_uuid(), 'bob', 'held', 'abandoned', now())`)
		for _, subject := range []string{"one", "two", "three"} {
			require.NoError(t, postgres.RecordFact(t.Context(), db, event.ReservationExpired, subject, event.Ended{}, nil))
		}
		exec(t, db, "update expiry.facts set published_at = now() where subject = 'one'")
		exec(t, db, "update expiry.facts set attempts = 2, last_error = 'refused', occurred_at = now() - interval '1 day' where subject = 'two'")
		for i, id := range []string{"e1", "e2"} {
			letter, err := db.StoreDeadLetter(t.Context(), postgres.DeadLetter{EventID: id, EventType: "t", EventSource: "s", Event: "{}"})
			require.NoError(t, err)
			if i == 0 {
				require.NoError(t, db.DeadLetterReplayed(t.Context(), letter))
			}
		}

		b := backlog(t, db)
		require.Equal(t, map[string]int{"active": 2, "expired": 1, "": 1}, b.Reservations)
		require.Equal(t, 1, b.Cleanups)
		require.WithinDuration(t, b.Now.Add(-2*time.Hour), b.OldestCleanup, time.Minute)
		require.Equal(t, 1, b.DisksHeld)
		require.Equal(t, 2, b.Snapshots)
		require.WithinDuration(t, b.Now.Add(-5*time.Minute), b.OldestSnapshot, time.Minute)
		require.Equal(t, 2, b.Facts)
		require.Equal(t, 1, b.FactsFailing)
		require.Equal(t, "refused", b.FactError)
		require.WithinDuration(t, b.Now.Add(-24*time.Hour), b.OldestFact, time.Minute)
		require.Equal(t, 1, b.DeadLetters)

		open, err := db.OpenSnapshots(t.Context(), 9)
		require.NoError(t, err)
		require.Len(t, open, 2)
		require.Equal(t, postgres.SnapshotIntended, open[0].State, "the oldest first")
	})
}

func TestUnfinishedCleanupsSayWhatTheyWaitFor(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ctx := t.Context()
		exec(t, db, `
			insert into reservations (reservation_id, user_id, status, disk_name) values ('asked for', 'ada', 'expired', 'default'), ('begun', 'bob', 'expired', null)`)
		exec(t, db, `
			insert into expiry.cleanups (reservation_id, reason, requested_at, user_id, disk_name) values
			    ('begun', 'expired', now() - interval '2 hours', 'bob', 'data'), ('nobody goes on', 'expired', now() - interval '1 hour', null, null)`)
		request(t, db, cleanupOf("asked for"))
		request(t, db, cleanupOf("begun"))
		exec(t, db, "update expiry.follow_ups set attempts = 3, last_error = 'forbidden' where key = 'begun'")
		exec(t, db, "update expiry.follow_ups set created_at = now() - interval '90 minutes' where key = 'asked for'")
		require.NoError(t, db.FinishStep(ctx, "begun", postgres.StepIdentify, "done", ""))
		for _, step := range []postgres.Step{postgres.StepPod, postgres.StepDNS} {
			require.NoError(t, db.BeginStep(ctx, "begun", step))
		}
		require.NoError(t, db.NoteStep(ctx, "begun", postgres.StepPod, "30 s of grace"))
		require.NoError(t, db.FailStep(ctx, "begun", postgres.StepPod, errors.New("forbidden")))

		open, err := db.UnfinishedCleanups(ctx, 9)
		require.NoError(t, err)
		require.Len(t, open, 3)
		begun, asked, left := open[0], open[1], open[2]
		require.Equal(t, "begun", begun.ReservationID, "the oldest first")
		require.Equal(t, "bob/data", begun.UserID+"/"+begun.DiskName)
		require.Equal(t, 1, begun.StepsDone)
		require.Equal(t, postgres.StepPod, begun.OpenStep, "the one begun first")
		require.Equal(t, "30 s of grace", begun.WaitsFor)
		require.Equal(t, "forbidden", begun.StepError)
		require.Equal(t, 3, begun.FollowUp.Attempts)
		require.Equal(t, "asked for", asked.ReservationID)
		require.Equal(t, "ada/default", asked.UserID+"/"+asked.DiskName, "known from the reservation")
		require.False(t, asked.Begun)
		require.NotNil(t, asked.FollowUp)
		require.Equal(t, "nobody goes on", left.ReservationID)
		require.True(t, left.Begun)
		require.Nil(t, left.FollowUp)

		one, err := db.UnfinishedCleanups(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, open[:1], one)
	})
}

func TestOverdueIsWhatASweepWouldEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rows string
		want int
	}{
		"past deadline and grace":                   {"('r', 'active', began, past, null)", 1},
		"within grace":                              {"('r', 'active', began, now() - interval '1 minute', null)", 0},
		"ended":                                     {"('r', 'expired', began, past, null)", 0},
		"a date that makes no sense":                {"('r', 'active', began, '1970-01-01', null)", 0},
		"no date":                                   {"('r', 'active', began, null, null)", 0},
		"a node of a set whose master goes on":      {"('r', 'active', began, past, 'm'), ('m', 'active', began, now() + interval '3 hours', null)", 0},
		"a node of a set whose master is overdue":   {"('r', 'active', began, past, 'm'), ('m', 'active', began, past, null)", 2},
		"a node of a set whose master is no longer": {"('r', 'active', began, past, 'm')", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t, stacktest.Database(t))
			exec(t, db, "insert into reservations (reservation_id, status, created_at, expires_at, master_reservation_id) values "+
				strings.NewReplacer("past", "now() - interval '1 hour'", "began", "now() - interval '5 hours'").Replace(c.rows))
			p, err := db.Punctuality(t.Context(), uuid.NewString(), time.Now(), 2*time.Minute)
			require.NoError(t, err)
			require.Equal(t, c.want, p.Overdue)
		})
	}
}
