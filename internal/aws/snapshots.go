package aws

import (
	"context"
	"slices"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

const (
	snapshotsPerPage = 1000 // EC2's maximum
	snapshotsPerTag  = 500  // within EC2's maximum of resources in one call
)

// DescribeSnapshots returns every snapshot of this account that carries the platform's user tag, all of them or an
// error.
func (e *EC2) DescribeSnapshots(ctx context.Context) ([]disk.Snapshot, error) {
	snapshots, err := e.listSnapshots(ctx, types.Filter{Name: awssdk.String("tag-key"), Values: []string{disk.TagUser}})
	return snapshots, failed(err, "list snapshots")
}

// FindSnapshots returns every snapshot of this account that carries all the given tags, all of them or an error. A
// snapshot that was made a moment ago may not be listed yet.
func (e *EC2) FindSnapshots(ctx context.Context, tags map[string]string) ([]disk.Snapshot, error) {
	snapshots, err := e.listSnapshots(ctx, tagFilters(tags)...)
	if err != nil {
		return nil, failed(err, "find snapshots by tags %v", tags)
	}
	return slices.DeleteFunc(snapshots, func(s disk.Snapshot) bool { return !carries(s.Tags, tags) }), nil
}

// tagFilters are EC2's for what carries at least all the given tags; carries tells whether it does.
func tagFilters(tags map[string]string) (filters []types.Filter) {
	for key, value := range tags {
		filters = append(filters, types.Filter{Name: awssdk.String("tag:" + key), Values: []string{wildcards.Replace(value)}})
	}
	return filters
}

func carries(has, tags map[string]string) bool {
	for key, value := range tags {
		if v, ok := has[key]; !ok || v != value {
			return false
		}
	}
	return true
}

// wildcards makes a filter's value match at least itself, whatever characters it has: EC2 takes * and ? for wildcards
// and \ for an escape.
var wildcards = strings.NewReplacer(`\`, "?", "*", "?")

func (e *EC2) listSnapshots(ctx context.Context, filters ...types.Filter) ([]disk.Snapshot, error) {
	in := &ec2.DescribeSnapshotsInput{
		OwnerIds: []string{"self"}, Filters: filters, MaxResults: &e.pageSize,
	}
	var snapshots []disk.Snapshot
	err := allPages(func(token string) (string, error) {
		if token != "" {
			in.NextToken = &token
		}
		out, err := e.client.DescribeSnapshots(ctx, in)
		if err != nil {
			return "", err //nolint:wrapcheck // by the caller, once
		}
		for _, s := range out.Snapshots {
			snapshots = append(snapshots, snapshotOf(s))
		}
		return awssdk.ToString(out.NextToken), nil
	})
	if err != nil {
		return nil, err
	}
	return snapshots, nil
}

// DescribeSnapshot returns one snapshot. The error is gone where EC2 says that it does not exist.
func (e *EC2) DescribeSnapshot(ctx context.Context, id string) (disk.Snapshot, error) {
	out, err := e.client.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
	if err != nil {
		return disk.Snapshot{}, failed(err, "describe snapshot %s", id)
	}
	if len(out.Snapshots) != 1 {
		return disk.Snapshot{}, fault.Errorf(fault.Transient, "describe snapshot %s: %d in the answer", id, len(out.Snapshots))
	}
	return snapshotOf(out.Snapshots[0]), nil
}

// CreateSnapshot asks for a snapshot, once: EC2 knows no client token here, so that a second attempt after a lost
// answer would make a second snapshot. After a transient error the snapshot may exist: look for it with
// FindSnapshots before asking again. The tags are set in the same call.
func (e *EC2) CreateSnapshot(ctx context.Context, n disk.NewSnapshot) (disk.Snapshot, error) {
	once := func(o *ec2.Options) { o.Retryer = awssdk.NopRetryer{} }
	out, err := e.client.CreateSnapshot(ctx, &ec2.CreateSnapshotInput{
		VolumeId:    &n.VolumeID,
		Description: awssdk.String(n.Description()),
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeSnapshot, Tags: tagList(n.Tags())},
		},
	}, once)
	if err != nil {
		return disk.Snapshot{}, failed(err, "create snapshot of %s for %s, attempt %d", n.VolumeID, n.ReservationID, n.Attempt)
	}
	return disk.Snapshot{
		ID:          awssdk.ToString(out.SnapshotId),
		VolumeID:    awssdk.ToString(out.VolumeId),
		OwnerID:     awssdk.ToString(out.OwnerId),
		State:       disk.SnapshotState(out.State),
		Description: awssdk.ToString(out.Description),
		StartedAt:   awssdk.ToTime(out.StartTime).UTC(),
		Progress:    awssdk.ToString(out.Progress),
		SizeGiB:     int(awssdk.ToInt32(out.VolumeSize)),
		Tags:        tagsOf(out.Tags),
	}, nil
}

// DeleteSnapshot deletes the snapshot. It is a conflict while an image uses it, gone where it is already.
func (e *EC2) DeleteSnapshot(ctx context.Context, id string) error {
	_, err := e.client.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
	return failed(err, "delete snapshot %s", id)
}

// TagSnapshots sets the tags on all the snapshots, replacing their values. Where one of them is gone none of its
// batch is tagged and the error is gone: list again.
func (e *EC2) TagSnapshots(ctx context.Context, ids []string, tags map[string]string) error {
	for batch := range slices.Chunk(ids, snapshotsPerTag) {
		_, err := e.client.CreateTags(ctx, &ec2.CreateTagsInput{Resources: batch, Tags: tagList(tags)})
		if err != nil {
			return failed(err, "tag %d snapshots from %s on", len(batch), batch[0])
		}
	}
	return nil
}

// UntagSnapshots takes the tags away from all the snapshots, whatever their values; those without are left alone.
func (e *EC2) UntagSnapshots(ctx context.Context, ids, keys []string) error {
	var tags []types.Tag
	for _, key := range keys {
		tags = append(tags, types.Tag{Key: &key})
	}
	for batch := range slices.Chunk(ids, snapshotsPerTag) {
		_, err := e.client.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: batch, Tags: tags})
		if err != nil {
			return failed(err, "untag %d snapshots from %s on", len(batch), batch[0])
		}
	}
	return nil
}

func snapshotOf(s types.Snapshot) disk.Snapshot {
	return disk.Snapshot{
		ID:            awssdk.ToString(s.SnapshotId),
		VolumeID:      awssdk.ToString(s.VolumeId),
		OwnerID:       awssdk.ToString(s.OwnerId),
		State:         disk.SnapshotState(s.State),
		Description:   awssdk.ToString(s.Description),
		StartedAt:     awssdk.ToTime(s.StartTime).UTC(),
		Progress:      awssdk.ToString(s.Progress),
		SizeGiB:       int(awssdk.ToInt32(s.VolumeSize)),
		Tags:          tagsOf(s.Tags),
		StatusMessage: awssdk.ToString(s.StateMessage),
	}
}

func tagList(tags map[string]string) []types.Tag {
	list := make([]types.Tag, 0, len(tags))
	for key, value := range tags {
		list = append(list, types.Tag{Key: &key, Value: &value})
	}
	return list
}
