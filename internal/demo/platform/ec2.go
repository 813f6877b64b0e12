package platform

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const zone = "us-east-1a"

func (p *Platform) runInstance(ctx context.Context) (string, error) {
	one := awssdk.Int32(1)
	made, err := p.EC2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: awssdk.String("ami-12345678"), MinCount: one, MaxCount: one})
	if err != nil {
		return "", fmt.Errorf("run an instance: %w", err)
	}
	return *made.Instances[0].InstanceId, nil
}

// reclaim ends a spot instance as EC2 does, by no call of anybody's, when it needs the capacity.
func (p *Platform) reclaim(ctx context.Context, instance string) error {
	return p.alter(ctx, instance, map[string]any{"state": "terminated", "lifecycle": "spot", "state_reason_code": "Server.SpotInstanceTermination"})
}

func tagged(kind types.ResourceType, tags map[string]string) []types.TagSpecification {
	spec := types.TagSpecification{ResourceType: kind}
	for k, v := range tags {
		spec.Tags = append(spec.Tags, types.Tag{Key: awssdk.String(k), Value: awssdk.String(v)})
	}
	return []types.TagSpecification{spec}
}

// CreateVolume makes the volume of a disk.
func (p *Platform) CreateVolume(ctx context.Context, user, disk string) (string, error) {
	made, err := p.EC2.CreateVolume(ctx, &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String(zone), Size: awssdk.Int32(10),
		TagSpecifications: tagged(types.ResourceTypeVolume, map[string]string{"gpu-dev-user": user, "disk_name": disk})})
	if err != nil {
		return "", fmt.Errorf("make the volume of disk %s: %w", disk, err)
	}
	return *made.VolumeId, nil
}

// AttachDisk makes the volume of a reservation's disk and attaches it to the node of its server. The rows say so.
func (p *Platform) AttachDisk(ctx context.Context, s *Server) (err error) {
	if s.Node == (Node{}) {
		s.Node = p.node(s.ID)
	}
	if s.Volume, err = p.CreateVolume(ctx, s.User, s.Disk); err != nil {
		return err
	}
	p.mu.Lock()
	p.devices++
	device := fmt.Sprintf("/dev/xvd%c%c", 'b'+p.devices/26, 'a'+p.devices%26)
	p.mu.Unlock()
	if _, err = p.EC2.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &s.Volume, InstanceId: &s.Node.Instance, Device: &device}); err != nil {
		return fmt.Errorf("attach %s: %w", s.Volume, err)
	}
	if err := p.Exec(ctx, "update reservations set ebs_volume_id = $2 where reservation_id = $1", s.ID, s.Volume); err != nil {
		return err
	}
	return p.Exec(ctx, "update disks set ebs_volume_id = $3 where user_id = $1 and disk_name = $2", s.User, s.Disk, s.Volume)
}

// Snapshot makes a snapshot of a disk as the platform does, and has it look that old.
func (p *Platform) Snapshot(ctx context.Context, user, disk, volume string, age time.Duration, more map[string]string) (string, error) {
	tags := map[string]string{
		"gpu-dev-user": user, "disk_name": disk, "gpu-dev-snapshot-type": "shutdown", "SnapshotType": "shutdown",
		"created_at": strconv.FormatInt(time.Now().Add(-age).Unix(), 10), "disk_size": "1.0G",
	}
	maps.Copy(tags, more)
	made, err := p.EC2.CreateSnapshot(ctx, &ec2.CreateSnapshotInput{VolumeId: &volume,
		Description: awssdk.String("gpu-dev shutdown snapshot for " + user), TagSpecifications: tagged(types.ResourceTypeSnapshot, tags)})
	if err != nil {
		return "", fmt.Errorf("make a snapshot of %s: %w", volume, err)
	}
	return *made.SnapshotId, p.backdate(ctx, *made.SnapshotId, age)
}

// Copy copies a snapshot, tags and all, as somebody does who moves data between regions.
func (p *Platform) Copy(ctx context.Context, snapshot, user, disk string, age time.Duration) (string, error) {
	made, err := p.EC2.CopySnapshot(ctx, &ec2.CopySnapshotInput{SourceSnapshotId: &snapshot, SourceRegion: awssdk.String("us-east-1"),
		TagSpecifications: tagged(types.ResourceTypeSnapshot, map[string]string{"gpu-dev-user": user, "disk_name": disk})})
	if err != nil {
		return "", fmt.Errorf("copy snapshot %s: %w", snapshot, err)
	}
	return *made.SnapshotId, p.backdate(ctx, *made.SnapshotId, age)
}

func (p *Platform) backdate(ctx context.Context, snapshot string, age time.Duration) error {
	return p.alter(ctx, snapshot, map[string]any{"start_time": time.Now().UTC().Add(-age).Format("2006-01-02T15:04:05")})
}

// DeleteVolume deletes a volume that is not attached.
func (p *Platform) DeleteVolume(ctx context.Context, volume string) error {
	if _, err := p.EC2.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &volume}); err != nil {
		return fmt.Errorf("delete volume %s: %w", volume, err)
	}
	return nil
}

// Snapshots returns all of the account's.
func (p *Platform) Snapshots(ctx context.Context) ([]types.Snapshot, error) {
	found, err := p.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
	if err != nil {
		return nil, fmt.Errorf("describe snapshots: %w", err)
	}
	return found.Snapshots, nil
}

// Volumes returns all of the account's.
func (p *Platform) Volumes(ctx context.Context) ([]types.Volume, error) {
	found, err := p.EC2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{})
	if err != nil {
		return nil, fmt.Errorf("describe volumes: %w", err)
	}
	return found.Volumes, nil
}
