package snapshot_test

import (
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// In another account or region EC2 knows nothing of what is the platform's, and says so of each thing.
func TestWhatAnotherAccountOrRegionSaysToBeGoneIsNotGone(t *testing.T) {
	t.Parallel()
	for name, elsewhere := range map[string]func(t *testing.T, home awssdk.Config) awssdk.Config{
		"account": func(t *testing.T, _ awssdk.Config) awssdk.Config {
			t.Helper()
			return stacktest.AWS(t).Config
		},
		"region": func(_ *testing.T, home awssdk.Config) awssdk.Config {
			home.Region = "us-west-2"
			return home
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			home, wrong := w.account.Config, elsewhere(t, w.account.Config)
			require.NoError(t, w.db.RecordAccount(t.Context(), disk.Account{ID: w.account.ID, Region: home.Region}))
			unmoved := func(deliver func() followup.Report) {
				t.Helper()
				before, snapshots := w.disk(t), w.snapshots(t)
				w.actIn(wrong)
				report := deliver()
				w.actIn(home)
				require.Equal(t, followup.StateFailed, report.State, "%+v", report)
				require.Contains(t, report.Error, "another AWS account answers")
				require.Equal(t, before, w.disk(t))
				require.Equal(t, snapshots, w.snapshots(t))
				require.Equal(t, "open", w.outcome(t))
			}
			cleanup := func() followup.Report { return w.deliver(t, postgres.Cleanup) }
			sync := func() followup.Report { return w.deliver(t, postgres.SnapshotSync) }

			unmoved(cleanup) // the volume
			w.account.Set(stacktest.Settings{Snapshot: -1})
			w.deliver(t, postgres.Cleanup)
			w.age(t, 15*time.Minute)
			unmoved(sync) // the pending snapshot
			w.account.Set(stacktest.Settings{})
			w.reset(func(call string) error {
				if call == "DeleteVolume" {
					return fault.Errorf(fault.Conflict, "not yet")
				}
				return nil
			}, nil)
			w.deliver(t, postgres.SnapshotSync)
			w.reset(nil, nil)
			require.Equal(t, "completed", w.snapshots(t))
			unmoved(sync) // the volume again
			unmoved(func() followup.Report { return w.purge(t, w.snapshotID(t)) })
			w.settle(t, 3)
			require.Equal(t, released, w.disk(t))
		})
	}
}

func TestWhileNobodyCanTellWhoseAccountAnswersNothingIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.vanish(t)
	w.account.Fail(stacktest.Fault{Action: "sts:.*", Code: "ServiceUnavailable"})
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "tell which AWS account answers")
	require.True(t, w.disk(t).InUse)

	w.account.Fail()
	w.settle(t, 2)
	require.Equal(t, postgres.OutcomeLost, w.outcome(t))
}

func TestTheAccountIsRecordedAtFirstUseAndAskedForOnceByEachProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.Zero(t, w.account.Count("sts:GetCallerIdentity"), "not before it matters")
	w.settle(t, 4)
	require.Equal(t, released, w.disk(t))
	require.Equal(t, []string{w.account.ID, w.account.Config.Region}, read[[]string](t, w, "select array[account_id, region] from expiry.aws_account"))
	require.Equal(t, 1, w.account.Count("sts:GetCallerIdentity"))
}

// setAside brings a disk up to where its volume, taken by force, is kept beside its snapshot for a while.
func setAside(t *testing.T) (w *world, snapshotID string) {
	t.Helper()
	w = newWorld(t)
	w.exec(t, "update expiry.cleanups set detach_forced_at = now()")
	w.settle(t, 2)
	require.Equal(t, released, w.disk(t))
	require.True(t, w.exists(t))
	return w, w.snapshotID(t)
}

// grown makes a snapshot eight days old.
func (w *world) grown(t *testing.T, id string) {
	t.Helper()
	w.account.Alter(id, map[string]any{"start_time": time.Now().UTC().Add(-8 * 24 * time.Hour).Format("2006-01-02T15:04:05")})
}

func TestASnapshotBesideWhichAVolumeIsSetAsideIsPurgedOnlyAfterIt(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1")
	report := w.purge(t, id)
	require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
	require.Equal(t, time.Hour, report.Next)
	require.True(t, w.hasSnapshot(t, id))

	w.grown(t, id)
	require.Equal(t, "released", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.False(t, w.exists(t))
	require.Equal(t, "purged", w.deliver(t, postgres.SnapshotPurge).Outcome)
	require.False(t, w.hasSnapshot(t, id))
}

func TestAVolumeSetAsideHasGoneOnlyOnceEC2KnowsItNoMore(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.grown(t, id)
	w.account.Set(stacktest.Settings{VolumeDelete: time.Hour})
	for range 2 {
		require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.SnapshotSync).State)
		require.Equal(t, 1, w.count("DeleteVolume"), "it is being deleted")
	}
	require.True(t, read[bool](t, w, "select volume_deleted_at is null from expiry.snapshots"))
	w.account.Set(stacktest.Settings{})
	require.False(t, w.exists(t))
	require.Equal(t, "released", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.False(t, read[bool](t, w, "select volume_deleted_at is null from expiry.snapshots"))
}

func TestAVolumeSetAsideThatStaysForGoodIsSaidSoAndKeepsNoSnapshot(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.use(snapshot.Options{KeepVolumes: true})
	require.Equal(t, "volume_kept", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.Contains(t, read[string](t, w, "select detail from expiry.snapshots"), "volume kept for good: KEEP_VOLUMES")
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1")
	require.Equal(t, "purged", w.purge(t, id).Outcome)
	require.True(t, w.exists(t))
}

func TestAVolumeKeptForGoodIsNoDisksThoughItsSnapshotIsGone(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.use(snapshot.Options{KeepVolumes: true})
	require.Equal(t, "volume_kept", w.deliver(t, postgres.SnapshotSync).Outcome)
	s, _, err := w.db.SnapshotByID(t.Context(), id)
	require.NoError(t, err)
	_, err = w.db.VanishedSnapshot(t.Context(), s)
	require.NoError(t, err)
	aside, err := w.db.VolumesSetAside(t.Context(), []string{w.volume})
	require.NoError(t, err)
	require.Equal(t, []string{w.volume}, aside)
}

func TestAVolumeSetAsideIsSeenToThoughItsCleanupIsForgotten(t *testing.T) {
	t.Parallel()
	w, id := setAside(t)
	w.exec(t, "delete from expiry.cleanups")
	w.grown(t, id)
	require.Equal(t, "released", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.False(t, w.exists(t))
}
