package snapshot_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const createSnapshot = "ec2:CreateSnapshot"

func TestAnAnswerLostAfterTheSnapshotWasMadeMakesNoSecondOne(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]stacktest.Fault{
		"connection closed": {Action: createSnapshot, Times: 1, After: true, Drop: true},
		"unavailable":       {Action: createSnapshot, Times: 1, After: true, Code: "Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.account.Fail(lost)
			report := w.deliver(t, postgres.Cleanup)
			require.Equal(t, followup.StatePostponed, report.State, "%+v", report)
			require.Equal(t, "intended", w.snapshots(t))
			require.Zero(t, w.disk(t).Pending, "nothing is counted that nobody has seen")
			require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome)
			require.Equal(t, row{InUse: true, BackingUp: true, Holder: w.id, Volume: w.volume, Pending: 1}, w.disk(t))
			w.settle(t, 3)
			require.Equal(t, released, w.disk(t))
			require.Len(t, w.made(t), 1)
			require.Equal(t, 1, w.account.Count(createSnapshot))
		})
	}
}

func TestWhatWasNeverMadeIsLookedForTwiceAndThenTriedAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Fail(stacktest.Fault{Action: createSnapshot, Times: 1, Drop: true})
	for range 4 {
		require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.Cleanup).State)
	}
	require.Equal(t, "intended", w.snapshots(t), "however often it is looked for, EC2 gets its time")
	require.Equal(t, 1, w.account.Count(createSnapshot))
	w.age(t, disk.Lag)
	require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome)
	w.settle(t, 3)
	require.Equal(t, "abandoned completed", w.snapshots(t))
	require.Equal(t, released, w.disk(t))
	require.Equal(t, 2, w.account.Count(createSnapshot))
}

func TestATimeAloneAbandonsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Fail(stacktest.Fault{Action: createSnapshot, Times: 1, Drop: true})
	w.deliver(t, postgres.Cleanup)
	w.age(t, time.Hour)
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, followup.StatePostponed, report.State, "one look is none")
	require.Equal(t, 30*time.Second, report.Next)
	require.Equal(t, "intended", w.snapshots(t))
	require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome, "two are enough")
}

// A snapshot that EC2 lists only after its attempt was given up is a second one of the same disk: it is ours, counted
// once, and the volume waits for both.
func TestASnapshotThatAppearsAfterItsAttemptWasAbandonedDoesNoHarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.account.Fail(stacktest.Fault{Action: createSnapshot, Times: 1, After: true, Drop: true})
	hidden := func(call string) error {
		if call == "FindSnapshots" {
			return errors.New("hidden")
		}
		return nil
	}
	w.deliver(t, postgres.Cleanup)
	late := w.made(t)
	require.Len(t, late, 1)
	w.reset(hidden, nil) // a failed look is no look
	require.Equal(t, followup.StateFailed, w.deliver(t, postgres.Cleanup).State)
	w.reset(nil, nil)
	w.exec(t, "update expiry.snapshots set state = 'abandoned', settled_at = now()") // as after two looks in vain
	require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome)
	require.Equal(t, 1, w.disk(t).Pending)

	adopt := func() int {
		n, err := w.db.AdoptSnapshots(t.Context(), w.made(t))
		require.NoError(t, err)
		return n
	}
	require.Zero(t, adopt(), "a young intent is its maker's business")
	w.age(t, 5*time.Minute)
	require.Equal(t, 1, adopt())
	require.Zero(t, adopt())
	require.Equal(t, 2, w.disk(t).Pending)
	require.Equal(t, "pending pending", w.snapshots(t))

	second := w.snapshotID(t)
	w.account.Alter(second, map[string]any{"state": "completed"})
	w.settle(t, 2)
	require.True(t, w.disk(t).InUse, "one of its snapshots is unsettled")
	require.True(t, w.exists(t))
	w.account.Set(stacktest.Settings{})
	w.settle(t, 4)
	want := released
	want.Snapshots = 2
	require.Equal(t, want, w.disk(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestARefusedSnapshotCountsNothingAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Fail(stacktest.Fault{Action: createSnapshot, Times: 2, Status: 400, Code: "UnauthorizedOperation"})
	for attempt := range 2 {
		report := w.deliver(t, postgres.Cleanup)
		require.Equal(t, followup.StateFailed, report.State)
		require.Contains(t, report.Error, "UnauthorizedOperation")
		require.Equal(t, 15*time.Second<<attempt, report.Next)
		require.Zero(t, w.disk(t).Pending)
	}
	require.Equal(t, "abandoned abandoned", w.snapshots(t))
	w.settle(t, 3)
	require.Equal(t, "abandoned abandoned completed", w.snapshots(t))
	require.Equal(t, released, w.disk(t))
}

func TestAVolumeThatIsAttachedBetweenIntentAndSnapshotIsNotCaptured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.detach(t)
	looks := 0
	w.reset(func(call string) error {
		if call == "DescribeVolume" {
			if looks++; looks == 2 { // under the lock, the intent committed
				w.attach(t, w.volume, w.instance)
			}
		}
		return nil
	}, nil)
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "has a writer again")
	require.Zero(t, w.count("CreateSnapshot"))
	require.Equal(t, "abandoned", w.snapshots(t))
	require.Equal(t, "t", read[string](t, w, "select (writer_gone_at is null)::text::char from expiry.cleanups"))
}

// copyOf makes a foreign snapshot that carries all the tags of ours.
func (w *world) copyOf(t *testing.T, of disk.Snapshot) string {
	t.Helper()
	var tags []ec2types.Tag
	for k, v := range of.Tags {
		tags = append(tags, ec2types.Tag{Key: &k, Value: &v})
	}
	out, err := w.cloud.CopySnapshot(t.Context(), &ec2.CopySnapshotInput{
		SourceRegion: awssdk.String("us-east-1"), SourceSnapshotId: &of.ID,
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeSnapshot, Tags: tags}}})
	require.NoError(t, err)
	return *out.SnapshotId
}

func TestAForeignSnapshotIsNeverTakenForOurs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Fail(stacktest.Fault{Action: createSnapshot, Times: 1, After: true, Drop: true})
	w.deliver(t, postgres.Cleanup)
	ours := w.made(t)[0]
	foreign := w.copyOf(t, ours)
	require.NoError(t, w.EC2.DeleteSnapshot(t.Context(), ours.ID))
	w.account.Alter(foreign, map[string]any{"state": "completed"})

	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.Cleanup).State)
	require.Equal(t, "intended", w.snapshots(t), "a copy with all the tags proves nothing")
	w.age(t, disk.Lag)
	w.settle(t, 4)
	require.Equal(t, "abandoned completed", w.snapshots(t))
	require.NotEqual(t, foreign, w.snapshotID(t))
	require.Equal(t, released, w.disk(t))
}

func TestAClockThatDiffersFromEC2sKeepsNoVolume(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	w.deliver(t, postgres.Cleanup)
	w.account.Alter(w.snapshotID(t), map[string]any{
		"state": "completed", "start_time": time.Now().UTC().Add(-time.Hour).Format("2006-01-02T15:04:05")})
	w.settle(t, 3)
	require.Equal(t, released, w.disk(t))
	require.False(t, w.exists(t))
}

func TestDeliveriesThatComeTwiceChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 3 {
		w.exec(t, "update expiry.follow_ups set state = 'due', lease_expires_at = null where kind = 'cleanup'")
		w.deliver(t, postgres.Cleanup)
	}
	require.Equal(t, 1, w.account.Count(createSnapshot))
	for range 3 {
		w.exec(t, "update expiry.follow_ups set state = 'due', lease_expires_at = null where kind = 'snapshot.sync'")
		w.deliver(t, postgres.SnapshotSync)
	}
	w.exec(t, "update expiry.follow_ups set state = 'due', lease_expires_at = null")
	w.settle(t, 3)
	require.Equal(t, released, w.disk(t))
	require.Equal(t, "disk.snapshotted disk.released reservation.cleanedUp", w.facts(t))
	require.Len(t, w.made(t), 1)
}

// The lease has lapsed under deliveries that are still at it: several work on the same disk at once.
func TestDeliveriesAtTheSameTimeMakeOneSnapshotAndCountItOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	steal := func(kind string) {
		w.exec(t, "update expiry.follow_ups set state = 'due', due_at = now(), lease_expires_at = null, lease_token = null where kind = $1", kind)
	}
	for range 3 {
		for _, kind := range []postgres.FollowUpKind{postgres.Cleanup, postgres.SnapshotSync} {
			key := read[string](t, w, "select coalesce(max(key), '') from expiry.follow_ups where kind = $1", string(kind))
			if key == "" {
				continue
			}
			var all sync.WaitGroup
			for range 4 {
				steal(string(kind))
				all.Go(func() {
					_, err := w.runner.Run(t.Context(), kind, key)
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
	}
	steal("cleanup")
	steal("snapshot.sync")
	w.settle(t, 5)
	require.Equal(t, released, w.disk(t), "%s", fmt.Sprint(w.calls))
	require.Equal(t, 1, w.account.Count(createSnapshot))
	require.Equal(t, "disk.snapshotted disk.released reservation.cleanedUp", w.facts(t))
}
