package snapshot_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/snapshot"
)

// outside is EC2 and Kubernetes. Every call is noted in order, and may fail before it takes effect or after. It sees to
// it that nothing is taken away from a disk that somebody else holds.
type outside struct {
	EC2     snapshot.EC2
	Cluster snapshot.Cluster

	t *testing.T
	w *world

	lock   sync.Mutex
	calls  []string
	before func(call string) error
	after  func(call string) error
}

func call[V any](o *outside, name string, work func() (V, error)) (v V, err error) {
	o.lock.Lock()
	o.calls = append(o.calls, name)
	before, after := o.before, o.after
	o.lock.Unlock()
	if before != nil {
		if err := before(name); err != nil {
			return v, err
		}
	}
	v, err = work()
	if after != nil {
		if lost := after(name); lost != nil {
			return v, lost
		}
	}
	return v, err
}

func do(o *outside, name string, work func() error) error {
	_, err := call(o, name, func() (struct{}, error) { return struct{}{}, work() })
	return err
}

// touch is do for what takes something away: the disk must be in no other hands, by what everybody can read.
func touch(o *outside, name string, work func() error) error {
	return do(o, name, func() error {
		holder := read[string](o.t, o.w, "select coalesce(max(reservation_id), '') from disks where user_id = $1 and disk_name = $2", user, diskName)
		assert.NotEqual(o.t, o.w.newer, holder, "%s touches what is somebody else's", name)
		return work()
	})
}

func (o *outside) count(name string) (n int) {
	o.lock.Lock()
	defer o.lock.Unlock()
	for _, c := range o.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (o *outside) reset(before, after func(string) error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.calls, o.before, o.after = nil, before, after
}

func (o *outside) DescribeInstance(ctx context.Context, id string) (disk.Instance, error) {
	return call(o, "DescribeInstance", func() (disk.Instance, error) { return o.EC2.DescribeInstance(ctx, id) })
}

func (o *outside) DescribeVolume(ctx context.Context, id string) (disk.Volume, error) {
	return call(o, "DescribeVolume", func() (disk.Volume, error) { return o.EC2.DescribeVolume(ctx, id) })
}

func (o *outside) DetachVolume(ctx context.Context, volumeID string, a disk.Attachment, force bool) error {
	name := "DetachVolume"
	if force {
		name = "ForceDetachVolume"
	}
	return touch(o, name, func() error { return o.EC2.DetachVolume(ctx, volumeID, a, force) })
}

// deleteEBS is DeleteVolume of EC2; Kubernetes' has another signature.
func (o *outside) deleteEBS(ctx context.Context, id string) error {
	return touch(o, "DeleteVolume", func() error { return o.EC2.DeleteVolume(ctx, id) })
}

func (o *outside) DescribeSnapshot(ctx context.Context, id string) (disk.Snapshot, error) {
	return call(o, "DescribeSnapshot", func() (disk.Snapshot, error) { return o.EC2.DescribeSnapshot(ctx, id) })
}

func (o *outside) FindSnapshots(ctx context.Context, tags map[string]string) ([]disk.Snapshot, error) {
	return call(o, "FindSnapshots", func() ([]disk.Snapshot, error) { return o.EC2.FindSnapshots(ctx, tags) })
}

func (o *outside) CreateSnapshot(ctx context.Context, n disk.NewSnapshot) (s disk.Snapshot, err error) {
	err = touch(o, "CreateSnapshot", func() error {
		s, err = o.EC2.CreateSnapshot(ctx, n)
		return err
	})
	return s, err
}

func (o *outside) DeleteSnapshot(ctx context.Context, id string) error {
	return do(o, "DeleteSnapshot", func() error { return o.EC2.DeleteSnapshot(ctx, id) })
}

func (o *outside) TagSnapshots(ctx context.Context, ids []string, tags map[string]string) error {
	return do(o, "TagSnapshots", func() error { return o.EC2.TagSnapshots(ctx, ids, tags) })
}

func (o *outside) ClusterUID(ctx context.Context) (string, error) {
	return call(o, "ClusterUID", func() (string, error) { return o.Cluster.ClusterUID(ctx) })
}

func (o *outside) GetVolume(ctx context.Context, name string) (pod.PersistentVolume, error) {
	return call(o, "GetVolume", func() (pod.PersistentVolume, error) { return o.Cluster.GetVolume(ctx, name) })
}

func (o *outside) RetainVolume(ctx context.Context, name, uid string) (pod.PersistentVolume, error) {
	return call(o, "RetainVolume", func() (pod.PersistentVolume, error) { return o.Cluster.RetainVolume(ctx, name, uid) })
}

func (o *outside) DeleteClaim(ctx context.Context, namespace, name, uid string) error {
	return do(o, "DeleteClaim", func() error { return o.Cluster.DeleteClaim(ctx, namespace, name, uid) })
}

func (o *outside) deleteObject(ctx context.Context, name, uid string) error {
	return do(o, "DeletePersistentVolume", func() error { return o.Cluster.DeleteVolume(ctx, name, uid) })
}

// The two sides have a method of the same name.
type cloudSide struct{ *outside }

func (c cloudSide) DeleteVolume(ctx context.Context, id string) error { return c.deleteEBS(ctx, id) }

type kubeSide struct{ *outside }

func (k kubeSide) DeleteVolume(ctx context.Context, name, uid string) error {
	return k.deleteObject(ctx, name, uid)
}
