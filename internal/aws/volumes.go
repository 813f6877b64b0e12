package aws

import (
	"context"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// EC2 knows volumes, snapshots and instances.
type EC2 struct {
	client   *ec2.Client
	pageSize int32 // of snapshots
}

// NewEC2 returns a client that has not connected yet.
func NewEC2(cfg awssdk.Config) *EC2 {
	return &EC2{client: ec2.NewFromConfig(bounded(cfg)), pageSize: snapshotsPerPage}
}

// DescribeVolume returns the volume. The error is gone where EC2 says that it does not exist or is deleted.
func (e *EC2) DescribeVolume(ctx context.Context, id string) (disk.Volume, error) {
	out, err := e.client.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{id}})
	if err != nil {
		return disk.Volume{}, failed(err, "describe volume %s", id)
	}
	if len(out.Volumes) != 1 {
		return disk.Volume{}, fault.Errorf(fault.Transient, "describe volume %s: %d in the answer", id, len(out.Volumes))
	}
	v := volumeOf(out.Volumes[0])
	if v.State == disk.VolumeDeleted {
		return disk.Volume{}, fault.Errorf(fault.Gone, "describe volume %s: it is deleted", id)
	}
	return v, nil
}

// volumesPerPage is within EC2's maximum.
const volumesPerPage = 500

// FindVolumes returns every volume of this account that carries all the given tags, all of them or an error. A volume
// that is deleted may still be among them.
func (e *EC2) FindVolumes(ctx context.Context, tags map[string]string) ([]disk.Volume, error) {
	in := &ec2.DescribeVolumesInput{Filters: tagFilters(tags), MaxResults: awssdk.Int32(volumesPerPage)}
	var volumes []disk.Volume
	err := allPages(func(token string) (string, error) {
		if token != "" {
			in.NextToken = &token
		}
		out, err := e.client.DescribeVolumes(ctx, in)
		if err != nil {
			return "", err //nolint:wrapcheck // below, once
		}
		for _, one := range out.Volumes {
			if v := volumeOf(one); carries(v.Tags, tags) {
				volumes = append(volumes, v)
			}
		}
		return awssdk.ToString(out.NextToken), nil
	})
	if err != nil {
		return nil, failed(err, "find volumes by tags %v", tags)
	}
	return volumes, nil
}

// DetachVolume takes the volume off the very attachment that was seen, plainly or by force, and does not wait. It is
// a conflict where the volume is not attached or already on its way, gone where this attachment is no more.
func (e *EC2) DetachVolume(ctx context.Context, volumeID string, a disk.Attachment, force bool) error {
	_, err := e.client.DetachVolume(ctx, &ec2.DetachVolumeInput{
		VolumeId: &volumeID, InstanceId: &a.InstanceID, Device: &a.Device, Force: &force,
	})
	return failed(err, "detach volume %s from %s (force %t)", volumeID, a.InstanceID, force)
}

// DeleteVolume deletes the volume; EC2 takes its time afterwards. It is a conflict while the volume is in use, gone
// where it is already.
func (e *EC2) DeleteVolume(ctx context.Context, id string) error {
	_, err := e.client.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
	return failed(err, "delete volume %s", id)
}

func volumeOf(v types.Volume) disk.Volume {
	volume := disk.Volume{
		ID:        awssdk.ToString(v.VolumeId),
		State:     disk.VolumeState(v.State),
		SizeGiB:   int(awssdk.ToInt32(v.Size)),
		Tags:      tagsOf(v.Tags),
		CreatedAt: awssdk.ToTime(v.CreateTime).UTC(),
		Zone:      awssdk.ToString(v.AvailabilityZone),
	}
	for _, a := range v.Attachments {
		volume.Attachments = append(volume.Attachments, disk.Attachment{
			InstanceID:          awssdk.ToString(a.InstanceId),
			Device:              awssdk.ToString(a.Device),
			State:               disk.AttachmentState(a.State),
			DeleteOnTermination: awssdk.ToBool(a.DeleteOnTermination),
			AttachedAt:          awssdk.ToTime(a.AttachTime).UTC(),
		})
	}
	return volume
}

func tagsOf(tags []types.Tag) map[string]string {
	out := make(map[string]string, len(tags))
	for _, t := range tags {
		out[awssdk.ToString(t.Key)] = awssdk.ToString(t.Value)
	}
	return out
}
