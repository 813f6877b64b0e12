package model

import (
	"context"
	"maps"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// DescribeInstance is as aws.EC2's.
func (e *EC2) DescribeInstance(_ context.Context, id string) (disk.Instance, error) {
	i, ok := e.instances[id]
	if !ok {
		return disk.Instance{}, fault.Errorf(fault.Gone, "describe instance %s: InvalidInstanceID.NotFound", id)
	}
	return *i, nil
}

// DescribeVolume is as aws.EC2's.
func (e *EC2) DescribeVolume(_ context.Context, id string) (disk.Volume, error) {
	v, ok := e.volumes[id]
	if !ok {
		return disk.Volume{}, fault.Errorf(fault.Gone, "describe volume %s: InvalidVolume.NotFound", id)
	}
	out := v.Volume
	out.Attachments, out.Tags = slices.Clone(v.Attachments), maps.Clone(v.Tags)
	return out, nil
}

// FindVolumes is as aws.EC2's.
func (e *EC2) FindVolumes(_ context.Context, tags map[string]string) ([]disk.Volume, error) {
	var found []disk.Volume
	for _, v := range e.Volumes() {
		if carries(v.Tags, tags) {
			one := v.Volume
			one.Attachments, one.Tags = slices.Clone(v.Attachments), maps.Clone(v.Tags)
			found = append(found, one)
		}
	}
	return found, nil
}

func carries(has, tags map[string]string) bool {
	for key, value := range tags {
		if has[key] != value {
			return false
		}
	}
	return true
}

// DetachVolume is as aws.EC2's.
func (e *EC2) DetachVolume(_ context.Context, id string, a disk.Attachment, force bool) error {
	v, ok := e.volumes[id]
	switch {
	case !ok:
		return fault.Errorf(fault.Gone, "detach volume %s: InvalidVolume.NotFound", id)
	case len(v.Attachments) == 0:
		return fault.Errorf(fault.Conflict, "detach volume %s: IncorrectState: it is %s", id, v.State)
	case v.Attachments[0].InstanceID != a.InstanceID:
		return fault.Errorf(fault.Gone, "detach volume %s: InvalidAttachment.NotFound", id)
	case v.Attachments[0].State == disk.Detaching && !force:
		return fault.Errorf(fault.Conflict, "detach volume %s: IncorrectState: it is detaching", id)
	}
	e.w.watch(Effect{What: "detach volume", Name: id, Owner: v.Owner, Volume: v})
	if v.Writer() != nil && !force || v.Stuck && !force && !e.halted(a.InstanceID) {
		v.Attachments[0].State = disk.Busy // the operating system still holds the device
		return nil
	}
	v.Attachments[0].State = disk.Detaching
	e.w.After(e.w.between(time.Second, 20*time.Second), func() { e.detached(v, a.InstanceID) })
	return nil
}

func (e *EC2) halted(id string) bool {
	i := e.instances[id]
	return i == nil || i.Halted()
}

// DeleteVolume is as aws.EC2's.
func (e *EC2) DeleteVolume(_ context.Context, id string) error {
	v, ok := e.volumes[id]
	switch {
	case !ok:
		return fault.Errorf(fault.Gone, "delete volume %s: InvalidVolume.NotFound", id)
	case len(v.Attachments) > 0:
		return fault.Errorf(fault.Conflict, "delete volume %s: VolumeInUse", id)
	case v.State == disk.VolumeDeleting:
		return nil
	}
	e.w.watch(Effect{What: "delete volume", Name: id, Owner: v.Owner, Volume: v})
	v.State = disk.VolumeDeleting
	e.w.After(e.w.between(0, 40*time.Second), func() { delete(e.volumes, id) })
	return nil
}

// DescribeSnapshots is as aws.EC2's.
func (e *EC2) DescribeSnapshots(context.Context) ([]disk.Snapshot, error) {
	return e.listed(func(s *Snapshot) bool { _, ok := s.Tags[disk.TagUser]; return ok && s.OwnerID == Account }), nil
}

// FindSnapshots is as aws.EC2's.
func (e *EC2) FindSnapshots(_ context.Context, tags map[string]string) ([]disk.Snapshot, error) {
	return e.listed(func(s *Snapshot) bool { return carries(s.Tags, tags) && s.OwnerID == Account }), nil
}

// DescribeSnapshot is as aws.EC2's.
func (e *EC2) DescribeSnapshot(_ context.Context, id string) (disk.Snapshot, error) {
	s, ok := e.snapshots[id]
	if !ok || s.Known.After(e.w.now) {
		return disk.Snapshot{}, fault.Errorf(fault.Gone, "describe snapshot %s: InvalidSnapshot.NotFound", id)
	}
	out := s.Snapshot
	out.Tags = maps.Clone(s.Tags)
	return out, nil
}

// CreateSnapshot is as aws.EC2's. Most complete within minutes, some fail.
func (e *EC2) CreateSnapshot(_ context.Context, n disk.NewSnapshot) (disk.Snapshot, error) {
	v, ok := e.volumes[n.VolumeID]
	if !ok || v.State == disk.VolumeDeleting {
		return disk.Snapshot{}, fault.Errorf(fault.Gone, "create snapshot of %s: InvalidVolume.NotFound", n.VolumeID)
	}
	s := e.Snap(v, n.Tags(), n.Description())
	out := s.Snapshot
	out.Tags = maps.Clone(s.Tags)
	return out, nil
}

// Snap makes a snapshot of a volume, whoever asks for it.
func (e *EC2) Snap(v *Volume, tags map[string]string, description string) *Snapshot {
	s := &Snapshot{Snapshot: disk.Snapshot{ID: e.id("snap"), VolumeID: v.ID, OwnerID: Account, State: disk.SnapshotPending, Description: description,
		StartedAt: e.w.now, Progress: "0%", SizeGiB: v.SizeGiB, Tags: maps.Clone(tags)}, Holds: e.LastWrite(v), Owner: v.Owner}
	if e.w.oneIn(3) { // a new one is not to be seen everywhere at once
		s.Listed, s.Known = e.w.now.Add(e.w.between(0, 90*time.Second)), e.w.now.Add(e.w.between(0, 10*time.Second))
	}
	e.snapshots[s.ID] = s
	fails := e.w.oneIn(12)
	e.w.After(e.w.between(2*time.Second, 8*time.Minute), func() {
		s.State, s.Progress = disk.SnapshotCompleted, "100%"
		if fails && !e.Sound {
			s.State, s.StatusMessage = disk.SnapshotError, "Given snapshot could not be made"
		}
	})
	return s
}

// DeleteSnapshot is as aws.EC2's.
func (e *EC2) DeleteSnapshot(_ context.Context, id string) error {
	s, ok := e.snapshots[id]
	if !ok {
		return fault.Errorf(fault.Gone, "delete snapshot %s: InvalidSnapshot.NotFound", id)
	}
	e.w.watch(Effect{What: "delete snapshot", Name: id, Owner: s.Owner, Snapshot: s})
	delete(e.snapshots, id)
	return nil
}

// TagSnapshots is as aws.EC2's.
func (e *EC2) TagSnapshots(_ context.Context, ids []string, tags map[string]string) error {
	return e.tag(ids, func(s *Snapshot) { maps.Copy(s.Tags, tags) })
}

// UntagSnapshots is as aws.EC2's.
func (e *EC2) UntagSnapshots(_ context.Context, ids, keys []string) error {
	return e.tag(ids, func(s *Snapshot) {
		for _, key := range keys {
			delete(s.Tags, key)
		}
	})
}

func (e *EC2) tag(ids []string, change func(*Snapshot)) error {
	for _, id := range ids {
		if e.snapshots[id] == nil {
			return fault.Errorf(fault.Gone, "tag %d snapshots: InvalidSnapshot.NotFound: %s", len(ids), id)
		}
	}
	for _, id := range ids {
		change(e.snapshots[id])
	}
	return nil
}
