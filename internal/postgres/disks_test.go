package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	volume      = "vol-0123456789abcdef0"
	otherVolume = "vol-0fedcba9876543210"
)

// held makes a disk that reservation id, which has ended, holds, and its cleanup.
func held(t require.TestingT, db *postgres.DB, id, user string) {
	ctx := context.Background()
	require.NoError(t, postgres.Exec(ctx, db, `insert into reservations (reservation_id, user_id, status, ebs_volume_id, disk_name)
		values ($1, $2, 'expired', $3, 'work')`, id, user, volume))
	require.NoError(t, postgres.Exec(ctx, db, `insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id)
		values ($1, 'work', true, $2, $3)`, user, id, volume))
	_, err := db.EnsureCleanup(ctx, id)
	require.NoError(t, err)
}

func TestNobodyTakesADiskOverWhileItIsActedUpon(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		held(t, db, "old", "alice")
		exec(t, db, "insert into reservations (reservation_id, status) values ('new', 'preparing')")
		taken := make(chan error, 1)
		verdict, err := db.WithDisk(t.Context(), "old", func(ctx context.Context) error {
			deadline, ok := ctx.Deadline()
			require.True(t, ok)
			require.LessOrEqual(t, time.Until(deadline), 15*time.Second, "the platform waits meanwhile")
			go func() {
				taken <- postgres.Exec(context.WithoutCancel(t.Context()), db, "update disks set in_use = true, reservation_id = 'new'")
			}()
			require.Eventually(t, func() bool {
				return text(t, db, `select count(*)::text from pg_stat_activity
					where wait_event_type = 'Lock' and datname = current_database()`) == "1"
			}, 10*time.Second, 5*time.Millisecond, "the platform waits")
			require.NoError(t, db.BeginStep(ctx, "old", postgres.StepDNS), "steps go on")
			require.Empty(t, taken)
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, postgres.DiskOurs, verdict)
		require.NoError(t, <-taken)

		verdict, err = db.WithDisk(t.Context(), "old", func(context.Context) error { t.Error("touched"); return nil })
		require.NoError(t, err)
		require.Equal(t, postgres.DiskSuperseded, verdict)
		require.Equal(t, "superseded", text(t, db, "select outcome from expiry.cleanup_steps where step = 'disk'"))
		verdict, err = db.WithDisk(t.Context(), "old", nil)
		require.NoError(t, err)
		require.Equal(t, postgres.DiskSettled, verdict)
	})
}

// Whoever deletes a reservation has its row, and then waits for that of its disk.
func TestNothingDoneUnderADiskWaitsForWhoeverDeletesTheReservation(t *testing.T) {
	t.Parallel()
	url := stacktest.Database(t)
	db := open(t, url)
	held(t, db, "old", "alice")
	platform, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = platform.Close(context.Background()) }()
	_, err = platform.Exec(t.Context(), "begin; select from reservations for update")
	require.NoError(t, err)

	s, made := snapshotOf(t, db, "old")
	require.True(t, made)
	verdict, err := db.ReleaseDisk(t.Context(), s, postgres.VolumeDeleted, nil)
	require.NoError(t, err)
	require.Equal(t, postgres.DiskOurs, verdict)
}

func TestAnActThatFailsIsToldAndLeavesTheRowsAsTheyWere(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		held(t, db, "old", "alice")
		s, made := snapshotOf(t, db, "old")
		require.True(t, made)
		throttled := errors.New("throttled")
		refuse := func(context.Context) error { return throttled }
		_, err := db.WithDisk(t.Context(), "old", refuse)
		require.ErrorIs(t, err, throttled)
		_, err = db.ReleaseDisk(t.Context(), s, postgres.VolumeDeleted, refuse)
		require.ErrorIs(t, err, throttled)
		require.Equal(t, "old", text(t, db, "select reservation_id from disks where in_use"))
		exec(t, db, "update expiry.snapshots set state = 'error'")
		_, _, err = db.SettleLost(t.Context(), "old", "lost", func(ctx context.Context, _ string) error { return refuse(ctx) })
		require.ErrorIs(t, err, throttled)
		require.Equal(t, "old", text(t, db, "select reservation_id from disks where in_use"))
		require.Equal(t, "0", text(t, db, "select count(*)::text from expiry.facts where type like '%released%'"))
	})
}

// snapshotOf makes a completed snapshot of a cleanup's volume, and says whether an attempt was free for it.
func snapshotOf(t *testing.T, db *postgres.DB, id string) (postgres.SnapshotRecord, bool) {
	t.Helper()
	s, made, verdict, err := db.IntendSnapshot(t.Context(), id, uuid.New())
	require.NoError(t, err)
	require.Equal(t, postgres.DiskOurs, verdict)
	if !made {
		return s, false
	}
	_, _, err = db.MakeSnapshot(t.Context(), s, func(context.Context) (disk.Snapshot, error) {
		return disk.Snapshot{ID: "snap-" + s.IntentID.String()[:8], StartedAt: time.Now()}, nil
	})
	require.NoError(t, err)
	_, err = db.CompleteSnapshot(t.Context(), s, disk.Snapshot{})
	require.NoError(t, err)
	s, _, err = db.LoadSnapshot(t.Context(), s.IntentID)
	require.NoError(t, err)
	return s, true
}

func TestADiskIsReleasedOnlyByRightOfASnapshotMadeWithoutAWriter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile string
		verdict   postgres.DiskVerdict
	}{
		"nothing happened":                {"select 1", postgres.DiskOurs},
		"it has not completed":            {"update expiry.snapshots set state = 'pending'", postgres.DiskBusy},
		"it failed":                       {"update expiry.snapshots set state = 'error'", postgres.DiskBusy},
		"it was purged":                   {"update expiry.snapshots set state = 'purged'", postgres.DiskBusy},
		"the writer came back":            {"update expiry.cleanups set writer_gone_at = null", postgres.DiskBusy},
		"it is older than the last write": {"update expiry.cleanups set writer_gone_at = clock_timestamp()", postgres.DiskBusy},
		"another attempt is open": {`insert into expiry.snapshots (intent_id, reservation_id, user_id, disk_name, attempt, state)
			values (gen_random_uuid(), 'old', 'alice', 'work', 2, 'intended')`, postgres.DiskBusy},
		"a newer one has the disk":  {"update disks set reservation_id = 'new'", postgres.DiskSuperseded},
		"the reservation lives":     {"update reservations set status = 'active' where reservation_id = 'old'", postgres.DiskRevived},
		"it was released before":    {"update expiry.cleanups set disk_released_at = now()", postgres.DiskReleased},
		"the cleanup ended before":  {"update expiry.cleanups set settled_at = now(), outcome = 'released'", postgres.DiskSettled},
		"the disk's part has ended": {"insert into expiry.cleanup_steps values ('old', 'disk', now(), now(), 'lost')", postgres.DiskSettled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				held(t, db, "old", "alice")
				exec(t, db, "insert into reservations (reservation_id, status) values ('new', 'queued')")
				s, _ := snapshotOf(t, db, "old")
				exec(t, db, c.meanwhile)
				called := 0
				count := func(context.Context) error { called++; return nil }
				verdict, err := db.DeleteVolume(t.Context(), s, count)
				require.NoError(t, err)
				require.Equal(t, c.verdict, verdict)
				if verdict == postgres.DiskSuperseded {
					require.Equal(t, "new", text(t, db, "select reservation_id from disks"))
					return
				}
				verdict, err = db.ReleaseDisk(t.Context(), s, postgres.VolumeDeleted, count)
				require.NoError(t, err)
				require.Equal(t, c.verdict, verdict)
				if c.verdict != postgres.DiskOurs {
					require.Zero(t, called)
					require.Equal(t, "old", text(t, db, "select reservation_id from disks where in_use"))
					return
				}
				require.Equal(t, 2, called)
				require.Equal(t, "1", text(t, db, "select count(*)::text from disks where not in_use and reservation_id is null and ebs_volume_id is null"))
				require.Equal(t, "1", text(t, db, "select count(*)::text from expiry.facts where type = 'dev.gpudev.disk.released.v1'"))
			})
		})
	}
}

func TestTheFateOfAVolumeShowsInTheDisksRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before string
		fate   postgres.VolumeFate
		after  string
	}{
		"deleted":                      {volume, postgres.VolumeDeleted, ""},
		"deleted, in the in-tree form": {"aws://us-east-1a/" + volume, postgres.VolumeDeleted, ""},
		"deleted, the row has another": {otherVolume, postgres.VolumeDeleted, otherVolume},
		"kept":                         {volume, postgres.VolumeKept, volume},
		"kept, the row had forgotten":  {"", postgres.VolumeKept, volume},
		"kept, the row has another":    {otherVolume, postgres.VolumeKept, otherVolume},
		"set aside":                    {volume, postgres.VolumeSetAside, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				held(t, db, "old", "alice")
				exec(t, db, "update disks set ebs_volume_id = $1", c.before)
				s, _ := snapshotOf(t, db, "old")
				verdict, err := db.ReleaseDisk(t.Context(), s, c.fate, nil)
				require.NoError(t, err)
				require.Equal(t, postgres.DiskOurs, verdict)
				require.Equal(t, c.after, text(t, db, "select coalesce(ebs_volume_id, '') from disks"))
				s, _, err = db.LoadSnapshot(t.Context(), s.IntentID)
				require.NoError(t, err)
				require.Equal(t, c.fate == postgres.VolumeDeleted, !s.VolumeDeletedAt.IsZero())
				require.Equal(t, c.fate == postgres.VolumeSetAside, !s.VolumeAsideAt.IsZero())
			})
		})
	}
}

func TestAVolumeSetAsideGoesOnlyIfNobodyHasAUseForIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile string
		verdict   postgres.DiskVerdict
	}{
		"nothing happened":       {"select 1", postgres.DiskOurs},
		"the disk is in use":     {"update disks set in_use = true, reservation_id = 'new'", postgres.DiskBusy},
		"a live one names it":    {"update reservations set ebs_volume_id = '" + volume + "' where reservation_id = 'new'", postgres.DiskSuperseded},
		"a disk names it":        {"update disks set ebs_volume_id = '" + volume + "'", postgres.DiskSuperseded},
		"another cleanup has it": {"insert into expiry.cleanups (reservation_id, reason, volume_id) values ('x', 'x', '" + volume + "')", postgres.DiskSuperseded},
		"a cleanup since named it": {`insert into expiry.cleanups (reservation_id, reason, misnamed_volume_id, settled_at, outcome)
			values ('x', 'x', '` + volume + `', now(), 'superseded')`, postgres.DiskSuperseded},
		"one before did": {`insert into expiry.cleanups (reservation_id, reason, requested_at, volume_id, settled_at, outcome)
			values ('x', 'x', now() - interval '1 hour', '` + volume + `', now(), 'superseded')`, postgres.DiskOurs},
		"the disk's row is gone":     {"delete from disks", postgres.DiskOurs},
		"the reservation lives anew": {"update reservations set status = 'active' where reservation_id = 'old'", postgres.DiskSuperseded},
		"so does one unheard of":     {"update reservations set status = 'frozen', ebs_volume_id = '" + volume + "' where reservation_id = 'new'", postgres.DiskSuperseded},
		"one ended since had it": {"update reservations set status = 'cancelled', cancelled_at = clock_timestamp(), ebs_volume_id = '" + volume +
			"' where reservation_id = 'new'", postgres.DiskSuperseded},
		"one before had it": {"update reservations set status = 'cancelled', cancelled_at = now() - interval '1 hour', ebs_volume_id = '" + volume +
			"' where reservation_id = 'new'", postgres.DiskOurs},
		"the reservation lived since": {"update expiry.cleanups set revived_at = clock_timestamp() where reservation_id = 'old'", postgres.DiskSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				held(t, db, "old", "alice")
				exec(t, db, "insert into reservations (reservation_id, status) values ('new', 'queued')")
				s, _ := snapshotOf(t, db, "old")
				_, err := db.ReleaseDisk(t.Context(), s, postgres.VolumeSetAside, nil)
				require.NoError(t, err)
				exec(t, db, c.meanwhile)
				called := false
				verdict, err := db.WithVolumeSetAside(t.Context(), s, func(context.Context) error { called = true; return nil })
				require.NoError(t, err)
				require.Equal(t, c.verdict, verdict)
				require.Equal(t, c.verdict == postgres.DiskOurs, called)
			})
		})
	}
}

func TestWhileASnapshotMayYetCompleteNothingIsLost(t *testing.T) {
	t.Parallel()
	for state, lost := range map[string]bool{
		"intended": false, "pending": false, "completed": false, "error": true, "abandoned": true, "purged": true,
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				held(t, db, "old", "alice")
				snapshotOf(t, db, "old")
				exec(t, db, "update expiry.snapshots set state = $1", state)
				_, verdict, err := db.SettleLost(t.Context(), "old", "it vanished", func(context.Context, string) error { return nil })
				require.NoError(t, err)
				require.Equal(t, lost, verdict == postgres.DiskOurs)
				require.Equal(t, lost, text(t, db, "select in_use::text from disks") == "false")
			})
		})
	}
}

func TestWhoConfirmsThatAVolumeIsGoneIsToldWhichOtherTheDisksRowNames(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		held(t, db, "old", "alice")
		told := []string{}
		confirm := func(_ context.Context, another string) error {
			told = append(told, another)
			return errors.New("it is there")
		}
		for _, column := range []string{"ebs_volume_id", "null", "'" + otherVolume + "'", "'aws://us-east-1a/" + otherVolume + "'"} {
			exec(t, db, "update disks set ebs_volume_id = "+column)
			_, _, err := db.SettleLost(t.Context(), "old", "it vanished", confirm)
			require.Error(t, err)
		}
		require.Equal(t, []string{"", "", otherVolume, otherVolume}, told)
		require.Equal(t, "true", text(t, db, "select in_use::text from disks"))
	})
}

func TestOneAttemptStandsAtATime(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		held(t, db, "old", "alice")
		s, made, _, err := db.IntendSnapshot(t.Context(), "old", uuid.New())
		require.NoError(t, err)
		require.True(t, made)
		require.Equal(t, 1, s.Attempt)
		again, made, _, err := db.IntendSnapshot(t.Context(), "old", uuid.New())
		require.NoError(t, err)
		require.False(t, made)
		require.Equal(t, s.IntentID, again.IntentID)

		ask := func(s postgres.SnapshotRecord) bool {
			made, _, err := db.MakeSnapshot(t.Context(), s, func(context.Context) (disk.Snapshot, error) {
				return disk.Snapshot{ID: uuid.NewString()}, nil
			})
			require.NoError(t, err)
			return made
		}
		exec(t, db, "update expiry.snapshots set intended_at = intended_at - interval '31 seconds'")
		exec(t, db, "update expiry.cleanups set writer_gone_at = writer_gone_at - interval '31 seconds'")
		require.False(t, ask(s), "somebody else may have looked for it in vain meanwhile")
		require.NoError(t, db.AbandonSnapshot(t.Context(), s.IntentID, "never asked"))
		s, made, _, err = db.IntendSnapshot(t.Context(), "old", uuid.New())
		require.NoError(t, err)
		require.True(t, made)
		require.Equal(t, 2, s.Attempt)
		require.True(t, ask(s))
		require.False(t, ask(s), "once")
		require.NoError(t, db.AbandonSnapshot(t.Context(), s.IntentID, "too late"))
		require.Equal(t, "pending", text(t, db, "select state from expiry.snapshots where attempt = 2"))

		// Its writer is back: what was made before counts no more, and an open intent is given up.
		require.NoError(t, db.ForgetWriterGone(t.Context(), "old"))
		a, err := db.SnapshotAttempts(t.Context(), "old")
		require.NoError(t, err)
		require.Nil(t, a.Standing)
		_, made, _, err = db.IntendSnapshot(t.Context(), "old", uuid.New())
		require.NoError(t, err)
		require.True(t, made)
		require.NoError(t, db.ForgetWriterGone(t.Context(), "old"))
		s, made, _, err = db.IntendSnapshot(t.Context(), "old", uuid.New())
		require.NoError(t, err)
		require.True(t, made)
		require.Equal(t, 4, s.Attempt)
		require.Equal(t, "abandoned", text(t, db, "select state from expiry.snapshots where attempt = 3"))
	})
}

func TestNodesOfASetThatGoOnLeaveTheDiskToTheOneThatHasLockedIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ended   string // of the set "master" and "node"
		change  string
		verdict postgres.DiskVerdict
	}{
		"the master's":               {"master", "select 1", postgres.DiskOurs},
		"a node's":                   {"node", "update disks set reservation_id = 'node'", postgres.DiskOurs},
		"another node goes on":       {"node", "update disks set reservation_id = 'node'; update reservations set master_reservation_id = 'gone'", postgres.DiskOurs},
		"the other names the volume": {"master", "update reservations set ebs_volume_id = '" + volume + "' where reservation_id = 'node'", postgres.DiskSuperseded},
		"the other has locked it":    {"node", "select 1", postgres.DiskSuperseded},
		"there is no lock":           {"node", "delete from disks", postgres.DiskSuperseded},
		"the other is of no set":     {"master", "update reservations set master_reservation_id = ''", postgres.DiskSuperseded},
		"the other is of another":    {"master", "update reservations set master_reservation_id = 'x' where reservation_id = 'node'", postgres.DiskSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				exec(t, db, `insert into reservations (reservation_id, user_id, status, launched_at, disk_name, is_multinode, master_reservation_id)
					values ('master', 'alice', 'active', now(), 'work', true, null), ('node', 'alice', 'active', now(), 'work', true, 'master')`)
				exec(t, db, "insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ('alice', 'work', true, 'master', $1)", volume)
				exec(t, db, "update reservations set status = 'failed', ebs_volume_id = $2 where reservation_id = $1", c.ended, volume)
				for change := range strings.SplitSeq(c.change, "; ") {
					exec(t, db, change)
				}
				_, err := db.EnsureCleanup(t.Context(), c.ended)
				require.NoError(t, err)
				verdict, err := db.WithDisk(t.Context(), c.ended, nil)
				require.NoError(t, err)
				require.Equal(t, c.verdict, verdict)
			})
		})
	}
}
