package stacktest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	dns "github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestEachAccountSeesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	mine, yours := stacktest.AWS(t), stacktest.AWS(t)
	volume := createVolume(t, mine)
	_, err := ec2.NewFromConfig(yours.Config).DescribeVolumes(t.Context(), &ec2.DescribeVolumesInput{VolumeIds: []string{volume}})
	requireCode(t, err, "InvalidVolume.NotFound")
	who, err := sts.NewFromConfig(mine.Config).GetCallerIdentity(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, mine.ID, *who.Account)
	require.Equal(t, 1, mine.Count("ec2:CreateVolume"))
	require.Zero(t, yours.Count("ec2:CreateVolume"))
}

func TestASnapshotIsPendingForItsTimeAndPagesAreReal(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	account.Set(stacktest.Settings{Snapshot: -1})
	client := ec2.NewFromConfig(account.Config)
	volume := createVolume(t, account)
	ids := map[string]bool{}
	for range 7 {
		ids[createSnapshot(t, account, volume)] = true
	}
	mine := &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, MaxResults: aws.Int32(5)}
	first, err := client.DescribeSnapshots(t.Context(), mine)
	require.NoError(t, err)
	require.Len(t, first.Snapshots, 5)
	mine.NextToken = first.NextToken
	second, err := client.DescribeSnapshots(t.Context(), mine)
	require.NoError(t, err)
	require.Len(t, second.Snapshots, 2)
	require.Nil(t, second.NextToken)
	for _, s := range append(first.Snapshots, second.Snapshots...) {
		require.Equal(t, types.SnapshotStatePending, s.State)
		require.Equal(t, "dev", *s.Tags[0].Value)
		delete(ids, *s.SnapshotId)
	}
	require.Empty(t, ids)

	account.Set(stacktest.Settings{})
	require.Equal(t, types.SnapshotStateCompleted, describeSnapshot(t, account, *first.Snapshots[0].SnapshotId).State)
}

func TestASnapshotCanBeAltered(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	id := createSnapshot(t, account, createVolume(t, account))
	account.Alter(id, map[string]any{"state": "error", "start_time": "2026-01-02T03:04:05", "owner_id": "999988887777"})
	s := describeSnapshot(t, account, id)
	require.Equal(t, types.SnapshotStateError, s.State)
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), s.StartTime.UTC())
	require.Equal(t, "999988887777", *s.OwnerId)
	mine, err := ec2.NewFromConfig(account.Config).DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
	require.NoError(t, err)
	require.Empty(t, mine.Snapshots)
}

func TestACopiedSnapshotIsMarkedForeign(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	source := createSnapshot(t, account, createVolume(t, account))
	copied, err := ec2.NewFromConfig(account.Config).CopySnapshot(t.Context(), &ec2.CopySnapshotInput{
		SourceSnapshotId: aws.String(source), SourceRegion: aws.String(account.Config.Region),
	})
	require.NoError(t, err)
	s := describeSnapshot(t, account, *copied.SnapshotId)
	require.Equal(t, "vol-ffffffff", *s.VolumeId)
	require.Contains(t, *s.Description, "Copied "+source)
}

func TestAVolumeIsAttachedWhileItDetachesAndSeenWhileItGoes(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	client := ec2.NewFromConfig(account.Config)
	volume, instance := createVolume(t, account), createInstance(t, account)
	attach(t, account, volume, instance)
	_, err := client.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &volume})
	requireCode(t, err, "VolumeInUse")

	account.Set(stacktest.Settings{Detach: time.Hour, VolumeDelete: time.Hour})
	_, err = client.DetachVolume(t.Context(), &ec2.DetachVolumeInput{VolumeId: &volume})
	require.NoError(t, err)
	v := describeVolume(t, account, volume)
	require.Equal(t, types.VolumeStateInUse, v.State)
	require.Equal(t, types.VolumeAttachmentStateDetaching, v.Attachments[0].State)
	account.Set(stacktest.Settings{VolumeDelete: time.Hour})
	v = describeVolume(t, account, volume)
	require.Equal(t, types.VolumeStateAvailable, v.State)
	require.Empty(t, v.Attachments)
	_, err = client.DetachVolume(t.Context(), &ec2.DetachVolumeInput{VolumeId: &volume})
	requireCode(t, err, "IncorrectState")

	_, err = client.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &volume})
	require.NoError(t, err)
	require.Equal(t, types.VolumeStateDeleting, describeVolume(t, account, volume).State)
	account.Set(stacktest.Settings{})
	_, err = client.DescribeVolumes(t.Context(), &ec2.DescribeVolumesInput{VolumeIds: []string{volume}})
	requireCode(t, err, "InvalidVolume.NotFound")
}

func TestAVolumeAndItsInstanceCanBeAltered(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	client := ec2.NewFromConfig(account.Config)
	volume, instance, other := createVolume(t, account), createInstance(t, account), createInstance(t, account)
	account.Alter(volume, map[string]any{"state": "creating"})
	require.Equal(t, types.VolumeStateCreating, describeVolume(t, account, volume).State)
	account.Alter(volume, map[string]any{"state": nil})
	attach(t, account, volume, instance)
	account.Alter(volume, map[string]any{"attachment_state": "busy", "also_attached_to": other})
	v := describeVolume(t, account, volume)
	require.Len(t, v.Attachments, 2)
	require.Equal(t, types.VolumeAttachmentStateBusy, v.Attachments[0].State)
	require.Equal(t, other, *v.Attachments[1].InstanceId)

	account.Alter(instance, map[string]any{
		"state": "terminated", "state_reason_code": "Server.SpotInstanceTermination", "lifecycle": "spot",
	})
	found, err := client.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{instance}})
	require.NoError(t, err)
	i := found.Reservations[0].Instances[0]
	require.Equal(t, types.InstanceStateNameTerminated, i.State.Name)
	require.Equal(t, "Server.SpotInstanceTermination", *i.StateReason.Code)
	require.Equal(t, types.InstanceLifecycleTypeSpot, i.InstanceLifecycle)
}

func TestFaultsStrikeOneAccountAndOneAction(t *testing.T) {
	t.Parallel()
	account, other := stacktest.AWS(t), stacktest.AWS(t)
	client := ec2.NewFromConfig(account.Config, func(o *ec2.Options) { o.Retryer = aws.NopRetryer{} })
	volume := createVolume(t, account)
	snapshot := func() error {
		_, err := client.CreateSnapshot(t.Context(), &ec2.CreateSnapshotInput{VolumeId: &volume})
		return err
	}
	account.Fail(
		stacktest.Fault{Action: "ec2:CreateSnapshot", Skip: 1, Times: 1, Code: "RequestLimitExceeded"},
		stacktest.Fault{Action: "ec2:CreateSnapshot", Skip: 1, Times: 1, After: true, Drop: true},
		stacktest.Fault{Action: "s3:PUT /.*", Status: 403, Code: "AccessDenied"},
	)
	require.NoError(t, snapshot())
	requireCode(t, snapshot(), "RequestLimitExceeded")
	require.Equal(t, 1, countSnapshots(t, account))
	err := snapshot()
	require.Error(t, err)
	require.NotErrorAs(t, err, new(smithy.APIError), "a dropped answer has no code")
	require.Equal(t, 2, countSnapshots(t, account), "the call took effect")
	require.NoError(t, snapshot())

	bucket := fmt.Sprintf("bucket-%s", account.ID)
	_, err = s3.NewFromConfig(account.Config).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket})
	requireCode(t, err, "AccessDenied")
	_, err = s3.NewFromConfig(other.Config).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket})
	require.NoError(t, err)
}

func TestWhatIsNotThereIsRefusedAsByAWS(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	_, err := lambda.NewFromConfig(account.Config).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("none")})
	requireCode(t, err, "ResourceNotFoundException")
	_, err = elb.NewFromConfig(account.Config).DeleteRule(t.Context(), &elb.DeleteRuleInput{
		RuleArn: aws.String("arn:aws:elasticloadbalancing:us-east-1:" + account.ID + ":listener-rule/app/a/b/c/d"),
	})
	requireCode(t, err, "RuleNotFound")

	client := route53.NewFromConfig(account.Config)
	zone, err := client.CreateHostedZone(t.Context(), &route53.CreateHostedZoneInput{
		Name: aws.String("dev.example.com"), CallerReference: aws.String("once"),
	})
	require.NoError(t, err)
	change := func(action dns.ChangeAction, value string) error {
		_, err := client.ChangeResourceRecordSets(t.Context(), &route53.ChangeResourceRecordSetsInput{
			HostedZoneId: zone.HostedZone.Id, ChangeBatch: &dns.ChangeBatch{Changes: []dns.Change{{
				Action: action, ResourceRecordSet: &dns.ResourceRecordSet{
					Name: aws.String("a.dev.example.com"), Type: dns.RRTypeA, TTL: aws.Int64(60),
					ResourceRecords: []dns.ResourceRecord{{Value: aws.String(value)}},
				},
			}}},
		})
		return err
	}
	require.NoError(t, change(dns.ChangeActionCreate, "10.0.0.1"))
	requireCode(t, change(dns.ChangeActionCreate, "10.0.0.1"), "InvalidChangeBatch")
	requireCode(t, change(dns.ChangeActionDelete, "10.0.0.2"), "InvalidChangeBatch")
	require.NoError(t, change(dns.ChangeActionDelete, "10.0.0.1"))
	requireCode(t, change(dns.ChangeActionDelete, "10.0.0.1"), "InvalidChangeBatch")
}

func createVolume(t *testing.T, account *stacktest.Account) string {
	t.Helper()
	v, err := ec2.NewFromConfig(account.Config).CreateVolume(t.Context(), &ec2.CreateVolumeInput{
		AvailabilityZone: aws.String(account.Config.Region + "a"), Size: aws.Int32(10),
	})
	require.NoError(t, err)
	return *v.VolumeId
}

func createInstance(t *testing.T, account *stacktest.Account) string {
	t.Helper()
	r, err := ec2.NewFromConfig(account.Config).RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: aws.String("ami-12345678"), InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
	})
	require.NoError(t, err)
	return *r.Instances[0].InstanceId
}

func attach(t *testing.T, account *stacktest.Account, volume, instance string) {
	t.Helper()
	_, err := ec2.NewFromConfig(account.Config).AttachVolume(t.Context(), &ec2.AttachVolumeInput{
		VolumeId: &volume, InstanceId: &instance, Device: aws.String("/dev/sdf"),
	})
	require.NoError(t, err)
}

func createSnapshot(t *testing.T, account *stacktest.Account, volume string) string {
	t.Helper()
	s, err := ec2.NewFromConfig(account.Config).CreateSnapshot(t.Context(), &ec2.CreateSnapshotInput{
		VolumeId: &volume, TagSpecifications: []types.TagSpecification{{
			ResourceType: types.ResourceTypeSnapshot, Tags: []types.Tag{{Key: aws.String("gpu-dev-user"), Value: aws.String("dev")}},
		}},
	})
	require.NoError(t, err)
	return *s.SnapshotId
}

func describeSnapshot(t *testing.T, account *stacktest.Account, id string) types.Snapshot {
	t.Helper()
	found, err := ec2.NewFromConfig(account.Config).DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
	require.NoError(t, err)
	require.Len(t, found.Snapshots, 1)
	return found.Snapshots[0]
}

func countSnapshots(t *testing.T, account *stacktest.Account) int {
	t.Helper()
	found, err := ec2.NewFromConfig(account.Config).DescribeSnapshots(t.Context(), nil)
	require.NoError(t, err)
	return len(found.Snapshots)
}

func describeVolume(t *testing.T, account *stacktest.Account, id string) types.Volume {
	t.Helper()
	found, err := ec2.NewFromConfig(account.Config).DescribeVolumes(t.Context(), &ec2.DescribeVolumesInput{VolumeIds: []string{id}})
	require.NoError(t, err)
	require.Len(t, found.Volumes, 1)
	return found.Volumes[0]
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var api smithy.APIError
	require.ErrorAs(t, err, &api)
	require.Equal(t, code, api.ErrorCode())
}
