package simulation

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// One contract for each model and the real adapter: what the simulation relies upon must hold of both. The adapters'
// packages have more about the wire: pages, codes, permissions.

// kubernetesAPI is all that the services ask of Kubernetes.
type kubernetesAPI interface {
	cleanup.Cluster
	snapshot.Cluster
	sweep.Cluster
}

// kubernetesSide is one of the two, with somebody who makes things in it.
type kubernetesSide interface {
	api() kubernetesAPI
	namespace() string
	makePod(name string, labels map[string]string) (uid string)
	makeService(name string, selector map[string]string) (uid string)
	makeVolume(claim, volume, volumeID string) (claimUID, volumeUID string)
	makeNode(name, instance string)
	files(pod string) []string
	eventually(condition func() bool)
}

func kubernetesContract(t *testing.T, s kubernetesSide) {
	ctx, k, ns := context.Background(), s.api(), s.namespace()
	is := func(want fault.Kind, err error) {
		t.Helper()
		require.Error(t, err)
		require.Equal(t, want, fault.KindOf(err), err)
	}
	gone := func(get func() error) func() bool { return func() bool { return fault.Is(get(), fault.Gone) } }
	getPod := func(name string) func() error { return func() error { _, err := k.GetPod(ctx, ns, name); return err } }

	// What is not there is gone, and an empty list is no error.
	is(fault.Gone, getPod("none")())
	_, err := k.GetNode(ctx, "none")
	is(fault.Gone, err)
	_, err = k.GetService(ctx, ns, "none")
	is(fault.Gone, err)
	_, err = k.GetClaim(ctx, ns, "none")
	is(fault.Gone, err)
	_, err = k.GetVolume(ctx, "none")
	is(fault.Gone, err)
	_, err = k.RetainVolume(ctx, "none", "u")
	is(fault.Gone, err)
	is(fault.Gone, k.DeletePod(ctx, ns, "none", "u", time.Minute))
	is(fault.Gone, k.ForceDeletePod(ctx, ns, "none", "u"))
	is(fault.Gone, k.DeleteService(ctx, ns, "none", "u"))
	is(fault.Gone, k.DeleteClaim(ctx, ns, "none", "u"))
	is(fault.Gone, k.DeleteVolume(ctx, "none", "u"))
	is(fault.Gone, k.WriteFile(ctx, ns, "none", pod.MainContainer, pod.File{Dir: pod.Home, Name: "x", Content: "y"}))
	_, err = k.RunListing(ctx, ns, "none", pod.MainContainer, pod.Home)
	is(fault.Gone, err)
	empty, err := k.ListPods(ctx, "no-such-namespace")
	require.NoError(t, err)
	require.Empty(t, empty)

	// A pod that runs: its status, its files.
	labels := map[string]string{"pod": "one"}
	uid := s.makePod("gpu-dev-one", labels)
	p, err := k.GetPod(ctx, ns, "gpu-dev-one")
	require.NoError(t, err)
	require.Equal(t, uid, p.UID)
	require.Equal(t, pod.Running, p.Phase)
	require.Zero(t, p.Deleting)
	require.Zero(t, p.Created.Nanosecond(), "creation times are cut to the second")
	require.Subset(t, p.Labels, labels)
	main, ok := p.Main()
	require.True(t, ok && main.Running)
	all, err := k.ListPods(ctx, ns)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, uid, all[0].UID)
	for _, name := range []string{"WARN_30.txt", "WARN_15.txt", "OTHER.txt", "WARN_15.txt"} {
		require.NoError(t, k.WriteFile(ctx, ns, "gpu-dev-one", pod.MainContainer, pod.File{Dir: pod.Home, Name: name, Content: name, Replaces: replaced(name)}))
	}
	require.ElementsMatch(t, []string{"WARN_15.txt", "OTHER.txt"}, s.files("gpu-dev-one"))
	listing, err := k.RunListing(ctx, ns, "gpu-dev-one", pod.MainContainer, pod.Home)
	require.NoError(t, err)
	require.NotEmpty(t, listing.Size)

	// Services go by their UID only.
	serviceUID := s.makeService("gpu-dev-one-ssh", labels)
	services, err := k.ListServices(ctx, ns)
	require.NoError(t, err)
	require.Len(t, services, 1)
	require.Equal(t, labels, services[0].Selector)
	require.Equal(t, serviceUID, services[0].UID)
	is(fault.Conflict, k.DeleteService(ctx, ns, "gpu-dev-one-ssh", "another"))
	require.NoError(t, k.DeleteService(ctx, ns, "gpu-dev-one-ssh", serviceUID))
	_, err = k.GetService(ctx, ns, "gpu-dev-one-ssh")
	is(fault.Gone, err)

	// So do pods, which take their time.
	is(fault.Conflict, k.DeletePod(ctx, ns, "gpu-dev-one", "another", 30*time.Second))
	is(fault.Conflict, k.ForceDeletePod(ctx, ns, "gpu-dev-one", "another"))
	require.NoError(t, k.DeletePod(ctx, ns, "gpu-dev-one", uid, 30*time.Second))
	s.eventually(gone(getPod("gpu-dev-one")))
	is(fault.Gone, k.DeletePod(ctx, ns, "gpu-dev-one", uid, 30*time.Second))
	forced := s.makePod("gpu-dev-two", labels)
	require.NoError(t, k.ForceDeletePod(ctx, ns, "gpu-dev-two", forced))
	is(fault.Gone, getPod("gpu-dev-two")())
	require.NotEqual(t, forced, s.makePod("gpu-dev-two", labels), "another of that name is another")

	// A volume is retained, and goes with its claim only when asked to.
	claimUID, volumeUID := s.makeVolume("disk", "pv-"+ns, "vol-0123456789abcdef0")
	claim, err := k.GetClaim(ctx, ns, "disk")
	require.NoError(t, err)
	require.Equal(t, "pv-"+ns, claim.VolumeName)
	v, err := k.GetVolume(ctx, "pv-"+ns)
	require.NoError(t, err)
	require.Equal(t, "vol-0123456789abcdef0", v.VolumeID)
	require.Equal(t, claimUID, v.ClaimUID)
	require.False(t, v.Retained())
	_, err = k.RetainVolume(ctx, "pv-"+ns, "another")
	is(fault.Conflict, err)
	for range 2 {
		v, err = k.RetainVolume(ctx, "pv-"+ns, volumeUID)
		require.NoError(t, err)
		require.True(t, v.Retained())
	}
	is(fault.Conflict, k.DeleteClaim(ctx, ns, "disk", "another"))
	require.NoError(t, k.DeleteClaim(ctx, ns, "disk", claimUID))
	s.eventually(gone(func() error { _, err := k.GetClaim(ctx, ns, "disk"); return err }))
	_, err = k.GetVolume(ctx, "pv-"+ns)
	require.NoError(t, err, "it outlives its claim")
	is(fault.Conflict, k.DeleteVolume(ctx, "pv-"+ns, "another"))
	require.NoError(t, k.DeleteVolume(ctx, "pv-"+ns, volumeUID))
	s.eventually(gone(func() error { _, err := k.GetVolume(ctx, "pv-"+ns); return err }))

	// The cluster and its nodes.
	s.makeNode("node-"+ns, "i-0123456789abcdef0")
	n, err := k.GetNode(ctx, "node-"+ns)
	require.NoError(t, err)
	require.Equal(t, "i-0123456789abcdef0", n.InstanceID)
	first, err := k.ClusterUID(ctx)
	require.NoError(t, err)
	second, err := k.ClusterUID(ctx)
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.NotEmpty(t, first)
}

func replaced(name string) string {
	if name == "OTHER.txt" {
		return ""
	}
	return "WARN_"
}

// ec2API is all that the services ask of EC2.
type ec2API interface {
	cleanup.EC2
	snapshot.EC2
	sweep.EC2
}

// ec2Side is one of the two, with somebody who makes things in it.
type ec2Side interface {
	api() ec2API
	makeVolume(tags map[string]string) string
	makeInstance() string
	attach(volume, instance string)
	halt(instance string)
	eventually(condition func() bool)
}

func mustFind(t *testing.T, e ec2API, key disk.Key) []disk.Volume {
	t.Helper()
	found, err := e.FindVolumes(context.Background(), key.Tags())
	require.NoError(t, err)
	return found
}

func ec2Contract(t *testing.T, s ec2Side) {
	ctx, e := context.Background(), s.api()
	is := func(want fault.Kind, err error) {
		t.Helper()
		require.Error(t, err)
		require.Equal(t, want, fault.KindOf(err), err)
	}
	const noVolume, noSnapshot = "vol-00000000000000000", "snap-00000000000000000"
	// What is not there is gone.
	_, err := e.DescribeVolume(ctx, noVolume)
	is(fault.Gone, err)
	_, err = e.DescribeSnapshot(ctx, noSnapshot)
	is(fault.Gone, err)
	_, err = e.DescribeInstance(ctx, "i-00000000000000000")
	is(fault.Gone, err)
	is(fault.Gone, e.DeleteVolume(ctx, noVolume))
	is(fault.Gone, e.DeleteSnapshot(ctx, noSnapshot))
	is(fault.Gone, e.DetachVolume(ctx, noVolume, disk.Attachment{InstanceID: "i-00000000000000000", Device: "/dev/xvdf"}, false))
	is(fault.Gone, e.TagSnapshots(ctx, []string{noSnapshot}, map[string]string{"a": "b"}))
	_, err = e.CreateSnapshot(ctx, disk.NewSnapshot{VolumeID: noVolume, ReservationID: "r", Attempt: 1})
	is(fault.Gone, err)

	// A volume in use is neither deleted nor without a writer.
	volume, instance := s.makeVolume(map[string]string{disk.TagDisk: "work"}), s.makeInstance()
	s.attach(volume, instance)
	v, err := e.DescribeVolume(ctx, volume)
	require.NoError(t, err)
	require.Equal(t, disk.VolumeInUse, v.State)
	require.Len(t, v.Attachments, 1)
	require.Equal(t, instance, v.Attachments[0].InstanceID)
	require.Equal(t, disk.Attached, v.Attachments[0].State)
	require.Equal(t, "work", v.Tags[disk.TagDisk])
	is(fault.Conflict, e.DeleteVolume(ctx, volume))
	i, err := e.DescribeInstance(ctx, instance)
	require.NoError(t, err)
	require.False(t, i.Halted())

	key := disk.Key{User: "ada", Name: "of " + instance}
	require.Empty(t, mustFind(t, e, key))
	tagged := s.makeVolume(key.Tags())
	s.eventually(func() bool { found := mustFind(t, e, key); return len(found) == 1 && found[0].ID == tagged })

	// It is detached from the very attachment that was seen.
	require.NoError(t, e.DetachVolume(ctx, volume, v.Attachments[0], false))
	s.eventually(func() bool {
		now, err := e.DescribeVolume(ctx, volume)
		free, _ := disk.WriterGone(now)
		return err == nil && free
	})
	is(fault.Conflict, e.DetachVolume(ctx, volume, v.Attachments[0], false))

	// A snapshot is found by its tags, and completes by itself.
	n := disk.NewSnapshot{VolumeID: volume, Disk: disk.Key{User: "ada", Name: "work"}, ReservationID: "r-1", Attempt: 1, IntentID: "intent-" + volume, CreatedAt: v.CreatedAt}
	made, err := e.CreateSnapshot(ctx, n)
	require.NoError(t, err)
	require.Equal(t, volume, made.VolumeID)
	require.True(t, made.MadeBy("r-1", 1))
	require.Equal(t, n.Tags(), made.Tags)
	var seen disk.Snapshot
	s.eventually(func() bool {
		seen, err = e.DescribeSnapshot(ctx, made.ID)
		return err == nil && seen.State == disk.SnapshotCompleted
	})
	require.Equal(t, n.Tags(), seen.Tags)
	require.NotEmpty(t, seen.OwnerID)
	require.Equal(t, seen.StartedAt, made.StartedAt)
	s.eventually(func() bool {
		found, err := e.FindSnapshots(ctx, disk.IntentTags(n.IntentID))
		return err == nil && len(found) == 1 && found[0].ID == made.ID
	})
	found, err := e.FindSnapshots(ctx, disk.IntentTags("of nobody"))
	require.NoError(t, err)
	require.Empty(t, found)
	listed := func(id string) bool {
		all, err := e.DescribeSnapshots(ctx)
		require.NoError(t, err)
		for _, one := range all {
			if one.ID == id {
				return true
			}
		}
		return false
	}
	s.eventually(func() bool { return listed(made.ID) })

	// Tags come and go; one that is gone keeps all of a call from being done.
	marked := map[string]string{disk.TagDeleteDate: "2026-03-01"}
	is(fault.Gone, e.TagSnapshots(ctx, []string{made.ID, noSnapshot}, marked))
	require.NoError(t, e.TagSnapshots(ctx, []string{made.ID}, marked))
	seen, err = e.DescribeSnapshot(ctx, made.ID)
	require.NoError(t, err)
	require.Equal(t, "2026-03-01", seen.Tags[disk.TagDeleteDate])
	require.NoError(t, e.UntagSnapshots(ctx, []string{made.ID}, disk.DeletionTagKeys()))
	seen, err = e.DescribeSnapshot(ctx, made.ID)
	require.NoError(t, err)
	require.Equal(t, n.Tags(), seen.Tags)

	// What is deleted goes, a snapshot outlives its volume.
	require.NoError(t, e.DeleteVolume(ctx, volume))
	s.eventually(func() bool { _, err := e.DescribeVolume(ctx, volume); return fault.Is(err, fault.Gone) })
	is(fault.Gone, e.DeleteVolume(ctx, volume))
	_, err = e.DescribeSnapshot(ctx, made.ID)
	require.NoError(t, err)
	require.NoError(t, e.DeleteSnapshot(ctx, made.ID))
	_, err = e.DescribeSnapshot(ctx, made.ID)
	is(fault.Gone, err)
	is(fault.Gone, e.DeleteSnapshot(ctx, made.ID))

	s.halt(instance)
	i, err = e.DescribeInstance(ctx, instance)
	require.NoError(t, err)
	require.True(t, i.Halted())
}
