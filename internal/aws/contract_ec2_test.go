package aws_test

import (
	"context"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	sdkec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// platform does in an account what the platform's other services do.
type platform struct {
	*sdkec2.Client
	t *testing.T
}

func platformIn(t *testing.T, account *stacktest.Account) platform {
	return platform{sdkec2.NewFromConfig(account.Config), t}
}

func (p platform) volume(tags ...types.Tag) string {
	p.t.Helper()
	in := &sdkec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(7)}
	if len(tags) > 0 {
		in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: tags}}
	}
	out, err := p.CreateVolume(p.t.Context(), in)
	require.NoError(p.t, err)
	return *out.VolumeId
}

func (p platform) instance() string {
	p.t.Helper()
	out, err := p.RunInstances(p.t.Context(), &sdkec2.RunInstancesInput{
		ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1),
	})
	require.NoError(p.t, err)
	return *out.Instances[0].InstanceId
}

func (p platform) attach(volume, instance string) {
	p.t.Helper()
	_, err := p.AttachVolume(p.t.Context(), &sdkec2.AttachVolumeInput{
		VolumeId: &volume, InstanceId: &instance, Device: awssdk.String("/dev/xvdba"),
	})
	require.NoError(p.t, err)
}

func tag(key, value string) types.Tag { return types.Tag{Key: &key, Value: &value} }

func kindOf[T any](_ T, err error) fault.Kind { return fault.KindOf(err) }

func TestContractOfVolumes(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	world, ec2 := platformIn(t, account), aws.NewEC2(account.Config)
	volumeID, instanceID := world.volume(tag("disk_name", "work")), world.instance()
	world.attach(volumeID, instanceID)

	v, err := ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err)
	require.Equal(t, volumeID, v.ID)
	require.Equal(t, disk.VolumeInUse, v.State)
	require.Equal(t, 7, v.SizeGiB)
	require.Equal(t, "us-east-1a", v.Zone)
	require.Equal(t, map[string]string{"disk_name": "work"}, v.Tags)
	require.WithinDuration(t, time.Now(), v.CreatedAt, time.Minute)
	require.Len(t, v.Attachments, 1)
	a := v.Attachments[0]
	require.Equal(t, instanceID, a.InstanceID)
	require.Equal(t, "/dev/xvdba", a.Device)
	require.Equal(t, disk.Attached, a.State)
	require.WithinDuration(t, time.Now(), a.AttachedAt, time.Minute)

	require.True(t, fault.Is(ec2.DeleteVolume(t.Context(), volumeID), fault.Conflict), "it is in use")
	require.NoError(t, ec2.DetachVolume(t.Context(), volumeID, a, false))
	v, err = ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err)
	gone, reason := disk.WriterGone(v)
	require.True(t, gone, reason)
	require.True(t, fault.Is(ec2.DetachVolume(t.Context(), volumeID, a, true), fault.Conflict), "it is not attached")

	require.NoError(t, ec2.DeleteVolume(t.Context(), volumeID))
	require.True(t, fault.Is(ec2.DeleteVolume(t.Context(), volumeID), fault.Gone))
	require.Equal(t, fault.Gone, kindOf(ec2.DescribeVolume(t.Context(), volumeID)))
	require.True(t, fault.Is(ec2.DetachVolume(t.Context(), volumeID, a, false), fault.Gone))
}

func TestContractOfAnOddAttachment(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	world, ec2 := platformIn(t, account), aws.NewEC2(account.Config)
	volumeID, first, second := world.volume(), world.instance(), world.instance()
	world.attach(volumeID, first)
	account.Alter(volumeID, map[string]any{"also_attached_to": second, "attachment_state": "busy"})
	v, err := ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err)
	require.Len(t, v.Attachments, 2)
	require.Equal(t, disk.Busy, v.Attachments[0].State)

	account.Alter(volumeID, map[string]any{"state": "error"})
	v, err = ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err)
	require.Equal(t, disk.VolumeError, v.State)
}

func TestContractOfDetachingThatTakesTime(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	account.Set(stacktest.Settings{Detach: time.Hour})
	world, ec2 := platformIn(t, account), aws.NewEC2(account.Config)
	volumeID, instanceID := world.volume(), world.instance()
	world.attach(volumeID, instanceID)
	require.NoError(t, ec2.DetachVolume(t.Context(), volumeID, disk.Attachment{InstanceID: instanceID, Device: "/dev/xvdba"}, false))
	v, err := ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err)
	require.Len(t, v.Attachments, 1)
	require.Equal(t, disk.Detaching, v.Attachments[0].State)
}

func TestContractOfSnapshots(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	account.Set(stacktest.Settings{Snapshot: -1})
	ec2, number := aws.NewEC2(account.Config), account.ID
	volumeID := platformIn(t, account).volume()
	n := disk.NewSnapshot{
		VolumeID: volumeID, Disk: disk.Key{User: "ada@example.com", Name: "wörk *?\\"}, ReservationID: "r-1", Attempt: 2, IntentID: "intent-1",
		CreatedAt: time.Now(), ContentsURL: "s3://b/k", Size: "1.2G", CrashConsistent: true,
	}
	before := time.Now()

	made, err := ec2.CreateSnapshot(t.Context(), n)
	require.NoError(t, err)
	require.Equal(t, disk.SnapshotPending, made.State)
	require.Equal(t, n.Tags(), made.Tags)
	require.True(t, made.MadeBy("r-1", 2))
	require.True(t, disk.Ours(made, number))

	seen, err := ec2.DescribeSnapshot(t.Context(), made.ID)
	require.NoError(t, err)
	require.Equal(t, made, seen, "what is made is what is described")
	require.Equal(t, volumeID, seen.VolumeID)
	require.Equal(t, 7, seen.SizeGiB)
	require.Equal(t, "0%", seen.Progress)
	require.Equal(t, n.Description(), seen.Description)
	require.WithinRange(t, seen.StartedAt, before.Truncate(time.Second), time.Now())

	for _, state := range []disk.SnapshotState{disk.SnapshotError, disk.SnapshotCompleted} {
		account.Alter(made.ID, map[string]any{"state": state})
		seen, err = ec2.DescribeSnapshot(t.Context(), made.ID)
		require.NoError(t, err)
		require.Equal(t, state, seen.State)
	}
	ok, reason := disk.MayDelete(disk.Volume{ID: volumeID, State: disk.VolumeAvailable}, &seen,
		disk.Capture{ReservationID: "r-1", Attempt: 2, IntentID: "intent-1", WriterGoneAt: before}, number, time.Now().Add(8*24*time.Hour))
	require.True(t, ok, reason)

	require.NoError(t, ec2.DeleteSnapshot(t.Context(), made.ID))
	require.True(t, fault.Is(ec2.DeleteSnapshot(t.Context(), made.ID), fault.Gone))
	require.Equal(t, fault.Gone, kindOf(ec2.DescribeSnapshot(t.Context(), made.ID)))
}

func TestContractOfASnapshotOfNothing(t *testing.T) {
	t.Parallel()
	_, err := aws.NewEC2(stacktest.AWS(t).Config).CreateSnapshot(t.Context(), disk.NewSnapshot{
		VolumeID: "vol-00000000000000000", Disk: disk.Key{User: "u"}, ReservationID: "r", Attempt: 1,
	})
	require.True(t, fault.Is(err, fault.Gone), err)
}

func TestContractOfListingSnapshots(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	world, ec2 := platformIn(t, account), aws.NewEC2(account.Config)
	volumeID := world.volume()
	odd := disk.Key{User: "ada", Name: `a*b?c\d é`}
	create := func(key disk.Key, reservation string) string {
		made, err := ec2.CreateSnapshot(t.Context(), disk.NewSnapshot{
			VolumeID: volumeID, Disk: key, ReservationID: reservation, Attempt: 1,
		})
		require.NoError(t, err)
		return made.ID
	}
	mine, oddly := create(disk.Key{User: "ada", Name: "work"}, "r-1"), create(odd, "r-2")
	similar := create(disk.Key{User: "ada", Name: `aXb?c\d é`}, "r-3")
	plain, err := world.CreateSnapshot(t.Context(), &sdkec2.CreateSnapshotInput{VolumeId: &volumeID})
	require.NoError(t, err)
	copied, err := world.CopySnapshot(t.Context(), &sdkec2.CopySnapshotInput{
		SourceRegion: awssdk.String("us-east-1"), SourceSnapshotId: &mine,
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSnapshot, Tags: []types.Tag{
			tag(disk.TagUser, "ada"), tag(disk.TagDisk, "work"), tag(disk.TagReservation, "r-1"), tag(disk.TagAttempt, "1"),
		}}},
	})
	require.NoError(t, err)
	stranger := create(disk.Key{User: "ada", Name: "work"}, "r-1")
	account.Alter(stranger, map[string]any{"owner_id": "999999999999"})

	ids := func(snapshots []disk.Snapshot, err error) (ids []string) {
		require.NoError(t, err)
		for _, s := range snapshots {
			ids = append(ids, s.ID)
		}
		return ids
	}
	all := ids(ec2.DescribeSnapshots(t.Context()))
	require.ElementsMatch(t, []string{mine, oddly, similar, *copied.SnapshotId}, all)
	require.NotContains(t, all, *plain.SnapshotId)

	require.ElementsMatch(t, []string{mine, *copied.SnapshotId}, ids(ec2.FindSnapshots(t.Context(), disk.CleanupTags("r-1"))))
	require.Equal(t, []string{oddly}, ids(ec2.FindSnapshots(t.Context(), odd.Tags())))
	require.Empty(t, ids(ec2.FindSnapshots(t.Context(), disk.CleanupTags("r-*"))))
	found, err := ec2.FindSnapshots(t.Context(), disk.CleanupTags("r-1"))
	require.NoError(t, err)
	for _, s := range found {
		require.Equal(t, s.ID == *copied.SnapshotId, disk.Foreign(s, account.ID))
	}
}

func TestContractOfMoreSnapshotsThanAPageHolds(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	account.Config.RetryMaxAttempts = 1
	ec2 := aws.NewEC2(account.Config)
	ec2.SetPageSize(5)
	volumeID := platformIn(t, account).volume()
	const many = 12
	for range many {
		_, err := ec2.CreateSnapshot(t.Context(), disk.NewSnapshot{
			VolumeID: volumeID, Disk: disk.Key{User: "ada", Name: "work"}, ReservationID: "r-1", Attempt: 1,
		})
		require.NoError(t, err)
	}
	for _, list := range []func() ([]disk.Snapshot, error){
		func() ([]disk.Snapshot, error) { return ec2.DescribeSnapshots(t.Context()) },
		func() ([]disk.Snapshot, error) { return ec2.FindSnapshots(t.Context(), disk.CleanupTags("r-1")) },
	} {
		snapshots, err := list()
		require.NoError(t, err)
		distinct := map[string]bool{}
		for _, s := range snapshots {
			distinct[s.ID] = true
		}
		require.Len(t, snapshots, many)
		require.Len(t, distinct, many)
	}
	require.Equal(t, 6, account.Count("ec2:DescribeSnapshots"))

	account.Fail(stacktest.Fault{Action: "ec2:DescribeSnapshots", Skip: 1, Code: "Unavailable"})
	snapshots, err := ec2.DescribeSnapshots(t.Context())
	require.Error(t, err)
	require.Empty(t, snapshots, "a page is not the whole")
}

func TestContractOfTags(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	ec2 := aws.NewEC2(account.Config)
	made, err := ec2.CreateSnapshot(t.Context(), disk.NewSnapshot{
		VolumeID: platformIn(t, account).volume(), Disk: disk.Key{User: "ada", Name: "work"}, ReservationID: "r", Attempt: 1,
	})
	require.NoError(t, err)
	tagsNow := func() map[string]string {
		s, err := ec2.DescribeSnapshot(t.Context(), made.ID)
		require.NoError(t, err)
		return s.Tags
	}
	marks := map[string]string{disk.TagDeleteDate: "2026-03-14", disk.TagMarkedDeletedAt: "1"}
	for range 2 {
		require.NoError(t, ec2.TagSnapshots(t.Context(), []string{made.ID}, marks))
		require.Equal(t, "2026-03-14", tagsNow()[disk.TagDeleteDate])
		require.Len(t, tagsNow(), len(made.Tags)+2)
	}
	marks[disk.TagDeleteDate] = "2026-03-15"
	require.NoError(t, ec2.TagSnapshots(t.Context(), []string{made.ID}, marks))
	require.Equal(t, "2026-03-15", tagsNow()[disk.TagDeleteDate])
	for range 2 {
		require.NoError(t, ec2.UntagSnapshots(t.Context(), []string{made.ID}, disk.DeletionTagKeys()))
		require.Equal(t, made.Tags, tagsNow())
	}
	require.NoError(t, ec2.DeleteSnapshot(t.Context(), made.ID))
	require.True(t, fault.Is(ec2.TagSnapshots(t.Context(), []string{made.ID}, marks), fault.Gone))
}

func TestContractOfAnAnswerLostAfterTheSnapshotWasMade(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]stacktest.Fault{
		"connection closed": {Drop: true},
		"unavailable":       {Code: "Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account := stacktest.AWS(t)
			ec2 := aws.NewEC2(account.Config)
			volumeID := platformIn(t, account).volume()
			lost.Action, lost.After = "ec2:CreateSnapshot", true
			account.Fail(lost)
			_, err := ec2.CreateSnapshot(t.Context(), disk.NewSnapshot{
				VolumeID: volumeID, Disk: disk.Key{User: "ada"}, ReservationID: "r-1", Attempt: 1,
			})
			require.Error(t, err)
			require.Equal(t, fault.Transient, fault.KindOf(err))
			found, err := ec2.FindSnapshots(t.Context(), disk.CleanupTags("r-1"))
			require.NoError(t, err)
			require.Len(t, found, 1, "made once, and found by its tag")
			require.True(t, found[0].MadeBy("r-1", 1))
			require.Equal(t, 1, account.Count("ec2:CreateSnapshot"))
		})
	}
}

func TestContractOfInstances(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	world, ec2 := platformIn(t, account), aws.NewEC2(account.Config)
	id := world.instance()
	i, err := ec2.DescribeInstance(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, id, i.ID)
	require.Equal(t, disk.InstanceRunning, i.State)
	require.False(t, i.Spot)
	require.False(t, i.Halted())

	account.Alter(id, map[string]any{
		"state": "terminated", "lifecycle": "spot", "state_reason_code": "Server.SpotInstanceTermination",
	})
	i, err = ec2.DescribeInstance(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, disk.InstanceTerminated, i.State)
	require.True(t, i.Halted())
	require.True(t, i.Reclaimed())

	require.Equal(t, fault.Gone, kindOf(ec2.DescribeInstance(t.Context(), "i-00000000000000000")))
}

func TestContractOfThrottling(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	ec2 := aws.NewEC2(account.Config)
	volumeID := platformIn(t, account).volume()
	account.Fail(stacktest.Fault{Action: "ec2:DescribeVolumes", Times: 1, Code: "RequestLimitExceeded"})
	_, err := ec2.DescribeVolume(t.Context(), volumeID)
	require.NoError(t, err, "the SDK asks again")

	account.Fail(stacktest.Fault{Action: "ec2:.*", Delay: 5 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = ec2.DescribeVolume(ctx, volumeID)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, fault.Transient, fault.KindOf(err))
}
