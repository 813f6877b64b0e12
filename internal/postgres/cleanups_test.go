package postgres_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestOnlyAReservationThatHasEndedGetsACleanup(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		for status, want := range map[string]bool{
			"'expired'": true, "'cancelled'": true, "'failed'": true,
			"'active'": false, "'preparing'": false, "'queued'": false, "'pending'": false, "'Expired'": false, "null": false,
		} {
			id := "r-" + status
			exec(t, db, "insert into reservations (reservation_id, status) values ($1, "+status+")", id)
			asked, err := db.EnsureCleanup(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, want, asked, status)
			require.Equal(t, want, text(t, db, "select 'yes' from expiry.follow_ups where key = $1", id) == "yes", status)
		}
		asked, err := db.EnsureCleanup(t.Context(), "nobody")
		require.NoError(t, err)
		require.False(t, asked)
	})
}

func TestACleanupAskedForTwiceIsOne(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, status) values ('r', 'expired')")
		for range 3 {
			asked, err := db.EnsureCleanup(t.Context(), "r")
			require.NoError(t, err)
			require.True(t, asked)
		}
		require.Equal(t, "1", text(t, db, "select max(version)::text from expiry.follow_ups"))

		// Its own follow-up being over, the snapshot's goes on with it.
		exec(t, db, "update expiry.follow_ups set state = 'done', outcome = 'handed over'")
		exec(t, db, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('snapshot.sync', 's', 'r', 's')")
		asked, err := db.EnsureCleanup(t.Context(), "r")
		require.NoError(t, err)
		require.True(t, asked)
		require.Equal(t, "done", text(t, db, "select state from expiry.follow_ups where kind = 'cleanup'"))
		exec(t, db, "update expiry.follow_ups set state = 'done'")
		_, err = db.EnsureCleanup(t.Context(), "r")
		require.NoError(t, err)
		require.Equal(t, "due", text(t, db, "select state from expiry.follow_ups where kind = 'cleanup'"))
	})
}

func TestACleanupIsReadFromWhateverTheRowHolds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set   string
		check func(*testing.T, postgres.CleanupRecord)
	}{
		"nothing": {"user_id = null, created_at = null, updated_at = null, namespace = null", func(t *testing.T, c postgres.CleanupRecord) {
			require.Zero(t, c.Started)
			require.Empty(t, c.UserID)
			require.Equal(t, c.RequestedAt.UTC(), c.Ended.UTC(), "it had ended when it was first seen to have")
		}},
		"impossible dates": {"created_at = '-infinity', reservation_ended = 'infinity', expires_at = '20260-01-01'", func(t *testing.T, c postgres.CleanupRecord) {
			require.Zero(t, c.Started)
			require.Zero(t, c.Ended)
		}},
		"an in-tree volume": {"ebs_volume_id = 'aws://us-east-1a/vol-0123abcd'", func(t *testing.T, c postgres.CleanupRecord) {
			require.Equal(t, "vol-0123abcd", c.VolumeID)
		}},
		"no volume in the volume's column": {"ebs_volume_id = 'None', disk_name = ''", func(t *testing.T, c postgres.CleanupRecord) {
			require.Empty(t, c.VolumeID)
			require.Empty(t, c.DiskName)
		}},
		"when it was cancelled": {"status = 'cancelled', cancelled_at = '2026-01-02 03:04Z'", func(t *testing.T, c postgres.CleanupRecord) {
			require.True(t, c.Ended.Equal(time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)))
			require.True(t, c.Over())
		}},
		"live again": {"status = 'active'", func(t *testing.T, c postgres.CleanupRecord) { require.False(t, c.Over()) }},
		"no status":  {"status = null", func(t *testing.T, c postgres.CleanupRecord) { require.False(t, c.Over()) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				exec(t, db, "insert into reservations (reservation_id, status) values ('r', 'expired')")
				_, err := db.EnsureCleanup(t.Context(), "r")
				require.NoError(t, err)
				exec(t, db, "update reservations set "+c.set)
				record, found, err := db.LoadCleanup(t.Context(), "r")
				require.NoError(t, err)
				require.True(t, found)
				require.WithinDuration(t, time.Now(), record.Now, time.Minute)
				c.check(t, record)
			})
		})
	}
}

func TestAVanishedReservationsCleanupGoesOn(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, `
			insert into reservations (reservation_id, user_id, gpu_type, status, expires_at, ebs_volume_id)
			values ('r', 'alice', 'h100', 'expired', '2026-03-01 12:00Z', 'vol-0123abcd')`)
		_, err := db.EnsureCleanup(t.Context(), "r")
		require.NoError(t, err)
		exec(t, db, "delete from reservations")
		c, found, err := db.LoadCleanup(t.Context(), "r")
		require.NoError(t, err)
		require.True(t, found)
		require.True(t, c.Vanished)
		require.True(t, c.Over())
		require.Equal(t, "alice", c.UserID)
		require.Equal(t, "h100", c.GPUType)
		require.Equal(t, reservation.Expired, c.Status)
		require.Equal(t, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), c.Deadline)
		require.Equal(t, "vol-0123abcd", c.VolumeID)
	})
}

func TestTheFirstToFinishAStepStands(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ended(t, db, "r")
		require.NoError(t, db.BeginStep(t.Context(), "r", postgres.StepPod))
		require.NoError(t, db.FailStep(t.Context(), "r", postgres.StepPod, fmt.Errorf("no \x00route\xff")))
		require.NoError(t, db.FinishStep(t.Context(), "r", postgres.StepPod, "done", "a \x00b"))
		require.NoError(t, db.FinishStep(t.Context(), "r", postgres.StepPod, "other", "other"))
		require.NoError(t, db.FailStep(t.Context(), "r", postgres.StepPod, fmt.Errorf("late")))
		require.NoError(t, db.NoteStep(t.Context(), "r", postgres.StepPod, "late"))
		require.NoError(t, db.BeginStep(t.Context(), "r", postgres.StepPod))
		steps, err := db.CleanupSteps(t.Context(), "r")
		require.NoError(t, err)
		s := steps[postgres.StepPod]
		require.True(t, s.Finished())
		require.Equal(t, []any{"done", "a b", 1, "no route\uFFFD"}, []any{s.Outcome, s.Detail, s.Attempts, s.LastError})
	})
}

// ended writes an ended reservation with its cleanup.
func ended(t *testing.T, db *postgres.DB, id string) {
	t.Helper()
	exec(t, db, "insert into reservations (reservation_id, user_id, status) values ($1, 'alice', 'expired')", id)
	_, err := db.EnsureCleanup(t.Context(), id)
	require.NoError(t, err)
}

func TestACleanupSettlesOnceWhoeverFinishesLast(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	for round := range 60 {
		id := fmt.Sprintf("r%d", round)
		ended(t, db, id)
		for _, s := range postgres.Steps() {
			if s != postgres.StepDNS && s != postgres.StepLoadBalancer && s != postgres.StepDisk {
				require.NoError(t, db.FinishStep(t.Context(), id, s, "done", ""))
			}
		}
		exec(t, db, "update expiry.cleanups set disk_released_at = now() where reservation_id = $1", id)
		c, _, err := db.LoadCleanup(t.Context(), id)
		require.NoError(t, err)
		f := claim(t, db, cleanupOf(id), live)
		var all sync.WaitGroup
		all.Go(func() { // the cleanup's delivery
			for _, s := range []postgres.Step{postgres.StepDNS, postgres.StepLoadBalancer} {
				if err := db.FinishStep(t.Context(), id, s, "done", ""); err != nil {
					t.Error(err)
				}
			}
			if _, settled, err := db.SettleCleanup(t.Context(), f); err != nil {
				t.Error(err)
			} else if !settled {
				_, err = db.FinishFollowUp(t.Context(), f, "handed over")
				if err != nil {
					t.Error(err)
				}
			}
		})
		for range 2 { // its snapshot's, doubled
			all.Go(func() {
				if err := db.FinishReleased(t.Context(), c, "snap-1"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		require.Equal(t, postgres.OutcomeReleased, text(t, db, "select outcome from expiry.cleanups where reservation_id = $1 and settled_at is not null", id))
		require.Equal(t, "1", text(t, db, "select count(*)::text from expiry.facts where type = $1 and subject = $2", event.ReservationCleanedUp, id))
		require.Equal(t, "done", text(t, db, "select state from expiry.follow_ups where key = $1", id), "nothing is asked for in vain")
	}
}

func TestADiskIsReleasedOnlyByTheHolderOfItsLock(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ended(t, db, "r")
		exec(t, db, "insert into reservations (reservation_id, user_id, status) values ('newer', 'alice', 'active')")
		exec(t, db, `insert into disks (user_id, disk_name, in_use, reservation_id)
			values ('alice', 'mine', true, 'r'), ('alice', 'theirs', true, 'newer'), ('alice', 'free', false, 'r')`)
		outcome, err := db.FinishWithoutVolume(t.Context(), "r", "no volume")
		require.NoError(t, err)
		require.Equal(t, postgres.OutcomeNothingToKeep, outcome)
		require.Equal(t, "theirs", text(t, db, "select string_agg(disk_name, ',') from disks where in_use"))
		require.Equal(t, "newer,r", text(t, db, "select string_agg(reservation_id, ',' order by reservation_id) from disks"), "an old name on a free disk is nobody's business")
		require.Equal(t, "mine", text(t, db, "select string_agg(data ->> 'diskName', ',') from expiry.facts where type = $1", event.DiskReleased))
		_, err = db.FinishWithoutVolume(t.Context(), "r", "no volume")
		require.NoError(t, err)
		require.Equal(t, "1", text(t, db, "select count(*)::text from expiry.facts"))
	})
}

func TestADiskWhoseRowNamesAVolumeByNowIsNotReleasedAsIfItHadNone(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, user_id, status, disk_name, launched_at) values ('r', 'alice', 'cancelled', 'mine', now())")
		exec(t, db, "insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ('alice', 'mine', true, 'r', 'vol-0123abcd')")
		_, err := db.EnsureCleanup(t.Context(), "r")
		require.NoError(t, err)
		_, err = db.FinishWithoutVolume(t.Context(), "r", "no volume")
		require.ErrorContains(t, err, "has a volume after all")
		require.Equal(t, "mine", text(t, db, "select string_agg(disk_name, ',') from disks where in_use"))
		exec(t, db, "update reservations set launched_at = null") // it has written to none
		_, err = db.FinishWithoutVolume(t.Context(), "r", "no volume")
		require.NoError(t, err)
	})
}

func TestADiskThatIsNotTheCleanupsIsNotReleasedWithItsVolume(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, user_id, status, disk_name) values ('r', 'alice', 'cancelled', 'mine')")
		exec(t, db, `insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id)
			values ('alice', 'former', true, 'r', 'vol-0123abcd'), ('alice', 'mine', true, 'r', null), ('alice', 'none', true, 'r', null)`)
		_, err := db.EnsureCleanup(t.Context(), "r")
		require.NoError(t, err)
		name, volume, err := db.DiskOf(t.Context(), "r", "alice", "")
		require.NoError(t, err)
		require.Equal(t, []string{"mine", ""}, []string{name, volume}, "of several the one that it names")
		_, err = db.FinishWithoutVolume(t.Context(), "r", "no volume")
		require.NoError(t, err)
		require.Equal(t, "former", text(t, db, "select string_agg(disk_name, ',') from disks where in_use"))
	})
}

func TestADiskIsFoundByItsLockOrItsVolume(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, "insert into reservations (reservation_id, status) values ('r', 'expired')")
		exec(t, db, `insert into disks (user_id, disk_name, reservation_id, ebs_volume_id)
			values ('alice', 'locked', 'r', null), ('alice', 'stored', null, 'vol-0123abcd'), ('bob', 'other', null, 'vol-0123abcd')`)
		name, volume, err := db.DiskOf(t.Context(), "r", "alice", "vol-0123abcd")
		require.NoError(t, err)
		require.Equal(t, []string{"locked", ""}, []string{name, volume})
		name, volume, err = db.DiskOf(t.Context(), "unknown", "alice", "vol-0123abcd")
		require.NoError(t, err)
		require.Equal(t, []string{"stored", "vol-0123abcd"}, []string{name, volume})
		name, _, err = db.DiskOf(t.Context(), "unknown", "alice", "")
		require.NoError(t, err)
		require.Empty(t, name)
	})
}
