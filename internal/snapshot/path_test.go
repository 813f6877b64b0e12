package snapshot_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestADiskIsCapturedItsVolumeDeletedAndTheDiskReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, "snapshotting", report.Outcome, "%+v", report)
	require.Equal(t, row{InUse: true, BackingUp: true, Holder: w.id, Volume: w.volume, Pending: 1}, w.disk(t))
	require.Zero(t, w.attachments(t), "the driver had left it; a plain detach was enough")
	require.Equal(t, 1, w.count("DetachVolume"))
	require.Zero(t, w.count("ForceDetachVolume"))

	report = w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, "released", report.Outcome, "%+v", report)
	require.Equal(t, released, w.disk(t))
	require.False(t, w.exists(t))
	require.False(t, w.objects(t))
	require.Equal(t, "completed", w.snapshots(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, "disk.snapshotted disk.released reservation.cleanedUp", w.facts(t))
	made := w.made(t)
	require.Len(t, made, 1)
	require.Equal(t, "s3://contents/alice/work", made[0].Tags["snapshot_content_s3"])
}

func TestTheDeliveryThatMadeASnapshotCanSendItsSync(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report, err := w.runner.Run(t.Context(), postgres.Cleanup, w.id)
	require.NoError(t, err)
	require.Equal(t, "snapshotting", report.Outcome, "%+v", report)
	due, err := w.db.DispatchDue(t.Context(), 100, time.Minute)
	require.NoError(t, err)
	var kinds []postgres.FollowUpKind
	for _, f := range due {
		kinds = append(kinds, f.Kind)
	}
	require.Contains(t, kinds, postgres.SnapshotSync, "where there is a sink nobody sends anything later than now")
}

func TestTheDriverIsLeftItsTimeToDetach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.age(t, -time.Minute)
	w.use(snapshot.Options{Patience: 30 * time.Second})
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
	require.Zero(t, w.count("DetachVolume"))
	w.detach(t)
	w.settle(t, 3)
	require.Zero(t, w.count("DetachVolume"))
	require.Equal(t, released, w.disk(t))
}

func TestASlowSnapshotIsLookedAtAgainAndNothingGoesBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	var pauses []time.Duration
	for range 6 {
		report := w.deliver(t, postgres.SnapshotSync)
		require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
		pauses = append(pauses, report.Next)
		w.age(t, 10*time.Minute)
	}
	require.IsNonDecreasing(t, pauses)
	require.GreaterOrEqual(t, pauses[0], 10*time.Second)
	require.Less(t, pauses[5], 5*time.Minute)
	require.Equal(t, row{InUse: true, BackingUp: true, Holder: w.id, Volume: w.volume, Pending: 1}, w.disk(t))
	require.True(t, w.exists(t))

	w.account.Set(stacktest.Settings{})
	w.settle(t, 3)
	require.Equal(t, released, w.disk(t))
}

func TestADiskIsReleasedOnlyOnceEC2KnowsItsVolumeNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{VolumeDelete: time.Hour})
	w.deliver(t, postgres.Cleanup)
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
	require.Equal(t, 1, w.count("DeleteVolume"))
	got := w.disk(t)
	require.True(t, got.InUse)
	require.Equal(t, w.volume, got.Volume)
	w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, 1, w.count("DeleteVolume"), "it is being deleted")
	w.account.Set(stacktest.Settings{})
	require.False(t, w.exists(t))
	w.settle(t, 2)
	require.Equal(t, released, w.disk(t))
}

func TestAFailedSnapshotIsCountedDownOnceAndTriedAnewAfterGrowingPauses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	var pauses []time.Duration
	for range 3 {
		w.account.Alter(w.snapshotID(t), map[string]any{"state": "error"})
		require.Equal(t, "error", w.deliver(t, postgres.SnapshotSync).Outcome)
		require.Equal(t, row{InUse: true, Holder: w.id, Volume: w.volume}, w.disk(t), "volume and lock are kept")
		report := w.deliver(t, postgres.Cleanup)
		require.Equal(t, followup.StatePostponed, report.State)
		pauses = append(pauses, report.Next)
		w.age(t, 5*time.Minute)
		require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome)
	}
	require.IsIncreasing(t, pauses)
	require.Equal(t, "error error error pending", w.snapshots(t))
	w.account.Set(stacktest.Settings{})
	w.settle(t, 3)
	require.Equal(t, released, w.disk(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestAPendingSnapshotThatSomebodyDeletesIsMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	require.NoError(t, w.EC2.DeleteSnapshot(t.Context(), w.snapshotID(t)))
	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.SnapshotSync).State, "EC2 may not list it yet")
	w.age(t, 15*time.Minute)
	require.Equal(t, "error", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.Zero(t, w.disk(t).Pending)
	w.age(t, 5*time.Minute)
	w.account.Set(stacktest.Settings{})
	w.settle(t, 4)
	require.Equal(t, "error completed", w.snapshots(t))
	require.Equal(t, released, w.disk(t))
}

func TestACompletedSnapshotThatIsGoneBeforeTheVolumeIsMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deliver(t, postgres.Cleanup)
	gone := w.snapshotID(t)
	w.reset(func(call string) error {
		if call == "DeleteVolume" {
			return fault.Errorf(fault.Conflict, "not yet")
		}
		return nil
	}, nil)
	require.Equal(t, followup.StateFailed, w.deliver(t, postgres.SnapshotSync).State)
	w.reset(nil, nil)
	require.NoError(t, w.EC2.DeleteSnapshot(t.Context(), gone))
	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.SnapshotSync).State, "EC2 may not know it everywhere yet")
	require.Equal(t, 1, w.disk(t).Snapshots)
	w.age(t, 10*time.Minute)
	require.Equal(t, "vanished", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.True(t, w.exists(t))
	require.Zero(t, w.disk(t).Snapshots)
	w.settle(t, 4)
	require.Equal(t, "purged completed", w.snapshots(t))
	require.Equal(t, released, w.disk(t))
	require.NotEqual(t, gone, w.snapshotID(t))
}

func TestAKeptVolumeStaysTheDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.use(snapshot.Options{KeepVolumes: true})
	w.settle(t, 4)
	want := released
	want.Volume = w.volume
	require.Equal(t, want, w.disk(t))
	require.True(t, w.exists(t))
	require.False(t, w.objects(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Zero(t, w.count("DeleteVolume"))
}

func TestAVolumeTakenByForceIsSetAsideForSevenDaysAndTheDiskIsFreeAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Detach: time.Hour})
	require.NoError(t, w.db.RecordTermination(t.Context(), w.id))
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, 1, w.count("DetachVolume"))
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, 1, w.count("DetachVolume"), "EC2 is at it")
	require.Zero(t, w.count("ForceDetachVolume"), "ten minutes are not over")
	w.age(t, 10*time.Minute)
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, 1, w.count("ForceDetachVolume"))
	w.account.Set(stacktest.Settings{})
	w.deliver(t, postgres.Cleanup)
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
	require.Greater(t, report.Next, 6*24*time.Hour)
	require.Equal(t, released, w.disk(t), "the disk is restored from the snapshot meanwhile")
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.True(t, w.exists(t))
	require.True(t, w.made(t)[0].CrashConsistent())
	require.False(t, w.objects(t))

	require.NoError(t, w.takeOver(t.Context()))
	w.account.Alter(w.snapshotID(t), map[string]any{"start_time": time.Now().UTC().Add(-8 * 24 * time.Hour).Format("2006-01-02T15:04:05")})
	report = w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
	require.True(t, w.exists(t), "while somebody uses the disk nothing of it goes")

	w.exec(t, "update disks set in_use = false, reservation_id = null")
	require.Equal(t, "released", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.False(t, w.exists(t))
	require.Equal(t, "disk.snapshotted disk.released reservation.cleanedUp", w.facts(t))
}

func TestAVolumeSetAsideForWhichSomebodyHasFoundAUseStays(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, use := range map[string]func(*testing.T, *world){
		"a row names it": func(t *testing.T, w *world) {
			w.exec(t, "update reservations set status = 'active', ebs_volume_id = 'aws://us-east-1a/' || $2 where reservation_id = $1", w.newer, w.volume)
		},
		"it is tagged so": func(t *testing.T, w *world) { w.tag(t, disk.Key{User: "team-x", Name: "golden"}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.exec(t, "update expiry.cleanups set detach_forced_at = now()")
			w.settle(t, 2)
			require.Equal(t, released, w.disk(t))
			w.account.Alter(w.snapshotID(t), map[string]any{"start_time": time.Now().UTC().Add(-8 * 24 * time.Hour).Format("2006-01-02T15:04:05")})
			use(t, w)
			require.Equal(t, "volume_kept", w.deliver(t, postgres.SnapshotSync).Outcome)
			require.True(t, w.exists(t))
		})
	}
}

func TestAVolumeTakenByForceOfASupersededCleanupStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.exec(t, "update expiry.cleanups set detach_forced_at = now()")
	w.deliver(t, postgres.Cleanup)
	w.exec(t, "update disks set in_use = false, reservation_id = null")
	w.exec(t, "update expiry.follow_ups set state = 'due' where kind = 'cleanup'")
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, postgres.OutcomeSuperseded, w.outcome(t))
	w.account.Alter(w.snapshotID(t), map[string]any{
		"state": "completed", "start_time": time.Now().UTC().Add(-8 * 24 * time.Hour).Format("2006-01-02T15:04:05")})
	w.exec(t, "update disks set ebs_volume_id = null")
	w.settle(t, 3)
	require.Equal(t, 1, w.disk(t).Snapshots, "counted all the same")
	require.True(t, w.exists(t))
}

func TestAHaltedInstanceIsAskedPlainlyFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Detach: time.Hour})
	w.account.Alter(w.instance, map[string]any{"state": "terminated"})
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, 1, w.count("DetachVolume"), "the driver is on that instance: it is not waited for")
	w.age(t, time.Minute)
	w.deliver(t, postgres.Cleanup)
	require.Equal(t, 1, w.count("ForceDetachVolume"), "a minute has passed")
}

func TestAPlainDetachThatNeverReachedEC2IsNoReasonToForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, w.db.RecordTermination(t.Context(), w.id))
	_, err := w.db.RecordDetach(t.Context(), w.id, false) // the process died before it asked
	require.NoError(t, err)
	w.age(t, time.Hour)
	w.settle(t, 3)
	require.Equal(t, 1, w.count("DetachVolume"))
	require.Zero(t, w.count("ForceDetachVolume"))
	require.Equal(t, released, w.disk(t))
}

func TestAVolumeWithSeveralAttachmentsIsNeverDetached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Alter(w.volume, map[string]any{"also_attached_to": w.runInstance(t)})
	require.NoError(t, w.db.RecordTermination(t.Context(), w.id))
	for range 3 {
		w.age(t, time.Hour)
		report := w.deliver(t, postgres.Cleanup)
		require.Equal(t, followup.StateFailed, report.State)
		require.Contains(t, report.Error, "2 attachments")
	}
	require.Zero(t, w.count("DetachVolume")+w.count("ForceDetachVolume")+w.count("CreateSnapshot"))
	require.Equal(t, row{InUse: true, Holder: w.id, Volume: w.volume}, w.disk(t))
}

func TestAVolumeAttachedElsewhereIsLeftAlone(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct {
		elsewhere bool
		said      string
	}{
		"to another instance":        {true, "the pod ran on"},
		"to the same, after the pod": {false, "after the reservation's pod was gone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.detach(t)
			to := w.instance
			if c.elsewhere {
				to = w.runInstance(t)
			}
			w.attach(t, w.volume, to)
			if !c.elsewhere {
				w.exec(t, "update reservations set reservation_ended = now() - interval '10 minutes'")
				w.age(t, 5*time.Minute)
			}
			report := w.deliver(t, postgres.Cleanup)
			require.Equal(t, followup.StateFailed, report.State)
			require.Contains(t, report.Error, c.said)
			require.Equal(t, 1, w.attachments(t))
		})
	}
}

// An attach that was under way when a reservation failed in preparation is carried out a moment later.
func TestAnAttachmentUnderWayAsTheReservationEndedIsTakenOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update reservations set reservation_ended = now() - interval '5 minutes'")
	w.settle(t, 4)
	require.Equal(t, 1, w.count("DetachVolume"))
	require.Equal(t, released, w.disk(t))
}

func TestAVolumeAttachedElsewhereAMomentBeforeItIsDetachedIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	looks := 0
	w.reset(func(call string) error {
		if call == "DescribeVolume" {
			if looks++; looks == 2 { // under the lock, the detach decided
				w.detach(t)
				w.attach(t, w.volume, w.runInstance(t))
			}
		}
		return nil
	}, nil)
	require.Equal(t, followup.StateFailed, w.deliver(t, postgres.Cleanup).State)
	require.GreaterOrEqual(t, looks, 2)
	require.Zero(t, w.count("DetachVolume"))
	require.Equal(t, 1, w.attachments(t))
}

func TestAVolumeOnItsWayThatHasNoAttachmentIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	w.account.Alter(w.volume, map[string]any{"state": "creating"})
	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.Cleanup).State)
	w.account.Alter(w.volume, map[string]any{"state": nil})
	w.settle(t, 4)
	require.Equal(t, released, w.disk(t))
}

func TestThatAVolumeOnceHadNoWriterIsForgottenAsSoonAsItHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update expiry.cleanups set writer_gone_at = now() - interval '1 minute'")
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, "snapshotting", report.Outcome, "%+v", report)
	require.True(t, read[bool](t, w, "select writer_gone_at > now() - interval '50 seconds' from expiry.cleanups"))
}

func TestAVolumeAttachedAgainAfterItsSnapshotIsCapturedAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	require.Empty(t, w.deliver(t, postgres.Cleanup).Error)
	w.attach(t, w.volume, w.runInstance(t))
	w.account.Set(stacktest.Settings{})
	report := w.deliver(t, postgres.SnapshotSync)
	require.Equal(t, "writer_back", report.Outcome, "%+v", report)
	require.True(t, w.exists(t))
	require.Equal(t, followup.StateFailed, w.deliver(t, postgres.Cleanup).State, "somebody works on it")
	require.Equal(t, 1, w.disk(t).Snapshots, "it counts all the same")
	require.Equal(t, w.id, w.disk(t).Holder)

	w.detach(t)
	w.settle(t, 4)
	require.Equal(t, "completed completed", w.snapshots(t))
	want := released
	want.Snapshots = 2
	require.Equal(t, want, w.disk(t))
	require.False(t, w.exists(t))
}

func TestAVolumeThatVanishedIsLostAndSaidSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.vanish(t)
	require.Equal(t, followup.StateDone, w.deliver(t, postgres.Cleanup).State)
	require.Equal(t, postgres.OutcomeLost, w.outcome(t))
	require.Equal(t, row{}, w.disk(t), "no disk stays locked once it is settled")
	require.Contains(t, read[string](t, w, "select operation_status || ': ' || operation_error from disks"), "failed: volume "+w.volume+" vanished")
	require.Equal(t, "disk.released reservation.cleanedUp", w.facts(t))
	require.False(t, w.objects(t))
}

func TestAVolumeThatWasDeletedBesideItsSnapshotIsNotLostWhoeverNamesItStill(t *testing.T) {
	t.Parallel()
	for name, deleting := range map[string]time.Duration{"its disk was released": 0, "EC2 was still at it": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.account.Set(stacktest.Settings{VolumeDelete: deleting})
			w.deliver(t, postgres.Cleanup)
			w.deliver(t, postgres.SnapshotSync)
			w.account.Set(stacktest.Settings{})
			require.False(t, w.exists(t))

			w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id) // and no pod was ever made for it
			w.exec(t, "update disks set in_use = true, reservation_id = $1", w.id)
			w.exec(t, "delete from expiry.cleanups")
			w.exec(t, "update reservations set status = 'expired' where reservation_id = $1", w.id)
			w.settle(t, 1) // the former sync, which is due yet
			_, err := w.db.EnsureCleanup(t.Context(), w.id)
			require.NoError(t, err)
			w.exec(t, "insert into expiry.cleanup_steps (reservation_id, step, finished_at, outcome) select $1, step, now(), 'done' from unnest($2::text[]) step where step <> 'disk'",
				w.id, postgres.Steps())
			w.settle(t, 4)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.Equal(t, released, w.disk(t))
			require.Empty(t, read[string](t, w, "select coalesce(operation_error, '') from disks"))
		})
	}
}

func TestAVolumeThatVanishesWhileItsSnapshotIsMadeIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	require.NoError(t, w.EC2.DeleteVolume(t.Context(), w.volume))
	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.SnapshotSync).State)
	w.account.Set(stacktest.Settings{})
	w.settle(t, 3)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, released, w.disk(t))
}

func TestAnOperationOfThePlatformsIsNotWrittenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update disks set operation_status = 'running', operation_error = null")
	w.vanish(t)
	w.settle(t, 2)
	require.Equal(t, postgres.OutcomeLost, w.outcome(t))
	require.Equal(t, "running", read[string](t, w, "select operation_status || coalesce(operation_error, '') from disks"))
}

func TestAVolumeThatIsNoDisksIsCapturedAndDeletedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "delete from disks")
	w.exec(t, "update reservations set disk_name = null")
	w.exec(t, "update expiry.cleanups set disk_name = null")
	w.settle(t, 4)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.False(t, w.exists(t))
	require.Equal(t, "reservation.cleanedUp", w.facts(t), "no disk, no news of one")
}

func TestTheLockOfAReservationWhoseRowIsGoneIsStillItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "delete from reservations where reservation_id = $1", w.id)
	require.Equal(t, row{InUse: true, Volume: w.volume}, w.disk(t), "the platform's foreign key has emptied it")
	w.settle(t, 4)
	require.Equal(t, released, w.disk(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestAReservationThatLivesAgainKeepsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	w.account.Set(stacktest.Settings{})
	require.Equal(t, "completed", w.deliver(t, postgres.SnapshotSync).Outcome)
	require.Equal(t, row{InUse: true, Holder: w.id, Volume: w.volume, Snapshots: 1, Size: released.Size, Content: released.Content}, w.disk(t))
	require.True(t, w.exists(t))
	require.True(t, w.objects(t))
}

func TestTheSyncOfAFormerCleanupFinishesNothingOfTheNextOne(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(*testing.T, *world){
		"it begins anew": func(t *testing.T, w *world) {
			w.exec(t, "update reservations set ebs_volume_id = $2 where reservation_id = $1", w.id, w.createVolume(t))
			require.NoError(t, w.db.BeginCleanupAnew(t.Context(), w.id))
		},
		"it is voided": func(t *testing.T, w *world) {
			w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
			voided, err := w.db.VoidCleanup(t.Context(), postgres.FollowUp{Kind: postgres.Cleanup, Key: w.id, ReservationID: w.id})
			require.NoError(t, err)
			require.True(t, voided)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.deliver(t, postgres.Cleanup)
			w.reset(func(call string) error {
				if call == "DeletePersistentVolume" { // the disk is released; Kubernetes is slow
					meanwhile(t, w)
				}
				return nil
			}, nil)
			w.deliver(t, postgres.SnapshotSync)
			require.Equal(t, 1, w.count("DeletePersistentVolume"))
			require.Equal(t, "0", read[string](t, w, "select count(*)::text from expiry.cleanup_steps where step = 'disk' and finished_at is not null"))
			require.Equal(t, "open", w.outcome(t))
		})
	}
}

func TestAForcedDetachIsRememberedThoughTheReservationWasLiveSince(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.db.RecordDetach(t.Context(), w.id, true)
	require.NoError(t, err)
	w.detach(t)
	w.exec(t, "update reservations set status = 'active' where reservation_id = $1", w.id)
	w.deliver(t, postgres.Cleanup)
	w.exec(t, "update reservations set status = 'expired' where reservation_id = $1", w.id)
	w.exec(t, "update expiry.cleanup_steps set finished_at = now() where step <> 'disk'")
	_, err = w.db.EnsureCleanup(t.Context(), w.id)
	require.NoError(t, err)
	w.settle(t, 2)
	made := w.made(t)
	require.Len(t, made, 1)
	require.True(t, made[0].CrashConsistent())
	require.True(t, w.exists(t))
}

func TestAVolumeThatIsTaggedAsAnothersIsLeftAloneWhateverTheRowSays(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	golden := disk.Key{User: "team-x", Name: "golden"}
	for name, c := range map[string]struct {
		moment string // before this call the tags are there
		free   bool   // the volume has no writer
	}{
		"still attached":              {},
		"free":                        {free: true},
		"as it is to be detached":     {moment: "DetachVolume"},
		"as it is to be captured":     {moment: "CreateSnapshot"},
		"as it is to be deleted":      {moment: "DeleteVolume"},
		"as it is to stay the disk's": {moment: "keep"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.exec(t, "insert into disks (user_id, disk_name) values ($1, $2)", golden.User, golden.Name)
			before := w.disk(t)
			if c.free {
				w.detach(t)
			}
			switch c.moment {
			case "":
				w.tag(t, golden)
			case "DeleteVolume", "keep":
				w.deliver(t, postgres.Cleanup)
				w.tag(t, golden)
				w.use(snapshot.Options{KeepVolumes: c.moment == "keep"})
				report := w.deliver(t, postgres.SnapshotSync)
				require.Equal(t, followup.StateFailed, report.State, "%+v", report)
				require.Contains(t, report.Error, `tag gpu-dev-user is "team-x", not "alice"`)
				require.True(t, w.exists(t))
				require.True(t, w.objects(t))
				require.True(t, w.disk(t).InUse)
				return
			default: // under the lock, the last look
				looks := 0
				if c.moment == "CreateSnapshot" {
					w.detach(t)
				}
				w.reset(func(call string) error {
					if call == "DescribeVolume" {
						if looks++; looks == 2 {
							w.tag(t, golden)
						}
					}
					return nil
				}, nil)
			}
			report := w.deliver(t, postgres.Cleanup)
			require.Equal(t, followup.StateFailed, report.State, "%+v", report)
			require.Contains(t, report.Error, `tag gpu-dev-user is "team-x", not "alice"`)
			require.Zero(t, w.count("DetachVolume")+w.count("CreateSnapshot")+w.count("DeleteVolume"))
			require.Equal(t, before, w.disk(t))
			require.Equal(t, "open", w.outcome(t))
		})
	}
}

// tag gives the volume the tags of a disk.
func (w *world) tag(t *testing.T, k disk.Key) {
	t.Helper()
	var tags []ec2types.Tag
	for key, value := range k.Tags() {
		tags = append(tags, ec2types.Tag{Key: &key, Value: &value})
	}
	_, err := w.cloud.CreateTags(t.Context(), &ec2.CreateTagsInput{Resources: []string{w.volume}, Tags: tags})
	require.NoError(t, err)
}
