package simulation

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// ask is a call that returns something.
func ask[T any](ctx context.Context, w *world, service, what string, effect func() (T, error)) (answer T, err error) {
	err = w.call(ctx, service, what, func() (err error) {
		answer, err = effect()
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return answer, nil
}

// cluster is the model's, reached over a network.
type cluster struct {
	w *world
	*model.Cluster
	pods     map[string][]pod.Pod     // by namespace, as they were last listed
	services map[string][]pod.Service // the same
}

func newCluster(w *world) cluster {
	return cluster{w, w.outside.Cluster, map[string][]pod.Pod{}, map[string][]pod.Service{}}
}

func (c cluster) ClusterUID(ctx context.Context) (string, error) {
	return ask(ctx, c.w, kubernetes, "cluster", func() (string, error) {
		uid, err := c.Cluster.ClusterUID(ctx)
		if c.w.people.elsewhere(ctx, c.w) {
			c.w.faults.count("kubernetes: another cluster")
			uid = "another cluster"
		}
		return uid, err
	})
}

func (c cluster) GetNode(ctx context.Context, name string) (pod.Node, error) {
	return ask(ctx, c.w, kubernetes, "get node "+name, func() (pod.Node, error) { return c.Cluster.GetNode(ctx, name) })
}

// ListPods may show what was there a while ago, or nothing.
func (c cluster) ListPods(ctx context.Context, namespace string) ([]pod.Pod, error) {
	return ask(ctx, c.w, kubernetes, "list pods "+namespace, func() ([]pod.Pod, error) {
		pods, err := c.Cluster.ListPods(ctx, namespace)
		if c.w.sabotaged(podsGone) {
			return nil, nil
		}
		return page(ctx, c.w, c.pods, namespace, pods), err
	})
}

// page is what a list shows: what is there now, what was when somebody last asked, or nothing.
func page[T any](ctx context.Context, w *world, last map[string][]T, namespace string, now []T) []T {
	before := last[namespace]
	last[namespace] = now
	switch {
	case w.people.elsewhere(ctx, w):
		return nil
	case !w.oneIn(w.faults.perCall[kubernetes] / 2):
		return now
	case w.oneIn(2):
		w.faults.count("kubernetes: empty page")
		return nil
	}
	w.faults.count("kubernetes: stale page")
	return before
}

func (c cluster) GetPod(ctx context.Context, namespace, name string) (pod.Pod, error) {
	return ask(ctx, c.w, kubernetes, "get pod "+namespace+"/"+name, func() (pod.Pod, error) {
		if c.w.people.elsewhere(ctx, c.w) || c.w.sabotaged(podsGone) {
			return pod.Pod{}, fault.Errorf(fault.Gone, "get pods %s/%s: not found", namespace, name)
		}
		return c.Cluster.GetPod(ctx, namespace, name)
	})
}

func (c cluster) DeletePod(ctx context.Context, namespace, name, uid string, grace time.Duration) error {
	return c.w.call(ctx, kubernetes, "delete pod "+name, func() error { return c.Cluster.DeletePod(ctx, namespace, name, uid, grace) })
}

func (c cluster) ForceDeletePod(ctx context.Context, namespace, name, uid string) error {
	return c.w.call(ctx, kubernetes, "force pod "+name, func() error { return c.Cluster.ForceDeletePod(ctx, namespace, name, uid) })
}

func (c cluster) WriteFile(ctx context.Context, namespace, name, container string, f pod.File) error {
	return c.w.call(ctx, kubernetes, "write "+f.Name+" in "+name, func() error {
		if c.w.sabotaged(warningsLost) {
			return nil
		}
		return c.Cluster.WriteFile(ctx, namespace, name, container, f)
	})
}

func (c cluster) RunListing(ctx context.Context, namespace, name, container, dir string) (pod.Listing, error) {
	return ask(ctx, c.w, kubernetes, "list the disk in "+name, func() (pod.Listing, error) {
		if c.w.sabotaged(warnedLate) {
			_ = c.Cluster.WriteFile(ctx, namespace, name, container, pod.File{Name: "WARN_LATE.txt"})
		}
		return c.Cluster.RunListing(ctx, namespace, name, container, dir)
	})
}

// ListServices may show what was there a while ago, or nothing.
func (c cluster) ListServices(ctx context.Context, namespace string) ([]pod.Service, error) {
	return ask(ctx, c.w, kubernetes, "list services "+namespace, func() ([]pod.Service, error) {
		services, err := c.Cluster.ListServices(ctx, namespace)
		return page(ctx, c.w, c.services, namespace, services), err
	})
}

func (c cluster) GetService(ctx context.Context, namespace, name string) (pod.Service, error) {
	return ask(ctx, c.w, kubernetes, "get service "+name, func() (pod.Service, error) {
		if c.w.people.elsewhere(ctx, c.w) {
			return pod.Service{}, fault.Errorf(fault.Gone, "get services %s/%s: not found", namespace, name)
		}
		return c.Cluster.GetService(ctx, namespace, name)
	})
}

func (c cluster) DeleteService(ctx context.Context, namespace, name, uid string) error {
	return c.w.call(ctx, kubernetes, "delete service "+name, func() error { return c.Cluster.DeleteService(ctx, namespace, name, uid) })
}

func (c cluster) GetClaim(ctx context.Context, namespace, name string) (pod.Claim, error) {
	return ask(ctx, c.w, kubernetes, "get claim "+name, func() (pod.Claim, error) { return c.Cluster.GetClaim(ctx, namespace, name) })
}

func (c cluster) GetVolume(ctx context.Context, name string) (pod.PersistentVolume, error) {
	return ask(ctx, c.w, kubernetes, "get pv "+name, func() (pod.PersistentVolume, error) { return c.Cluster.GetVolume(ctx, name) })
}

func (c cluster) RetainVolume(ctx context.Context, name, uid string) (pod.PersistentVolume, error) {
	return ask(ctx, c.w, kubernetes, "retain pv "+name, func() (pod.PersistentVolume, error) { return c.Cluster.RetainVolume(ctx, name, uid) })
}

func (c cluster) DeleteClaim(ctx context.Context, namespace, name, uid string) error {
	return c.w.call(ctx, kubernetes, "delete claim "+name, func() error { return c.Cluster.DeleteClaim(ctx, namespace, name, uid) })
}

func (c cluster) DeleteVolume(ctx context.Context, name, uid string) error {
	return c.w.call(ctx, kubernetes, "delete pv "+name, func() error { return c.Cluster.DeleteVolume(ctx, name, uid) })
}

// amazon is the model's EC2, reached over a network.
type amazon struct {
	w *world
	*model.EC2
}

// read is what a call that changes nothing reaches: EC2 as it is, or a part of its API that has yet to hear of the latest.
// Whatever is deleted, detached or made is what is there now.
func (a amazon) read() *model.EC2 {
	f := a.w.faults
	if f.behind == nil || a.w.now().Sub(f.heard) > staleFor || !f.deaf && !a.w.oneIn(f.perCall[ec2]/2) {
		return a.EC2
	}
	f.count("ec2: stale answer")
	a.w.say("ec2", "answers as of %s", f.heard.Format(time.TimeOnly))
	return f.behind
}

func (a amazon) DescribeInstance(ctx context.Context, id string) (disk.Instance, error) {
	return ask(ctx, a.w, ec2, "describe "+id, func() (disk.Instance, error) {
		if a.w.people.otherAccount(ctx, a.w) {
			return disk.Instance{}, fault.Errorf(fault.Gone, "describe %s: it is not in this account", id)
		}
		return a.read().DescribeInstance(ctx, id)
	})
}

func (a amazon) DescribeVolume(ctx context.Context, id string) (disk.Volume, error) {
	return ask(ctx, a.w, ec2, "describe "+id, func() (disk.Volume, error) {
		if a.w.people.otherAccount(ctx, a.w) || a.w.sabotaged(volumesGone) {
			return disk.Volume{}, fault.Errorf(fault.Gone, "describe %s: it is not in this account", id)
		}
		v, err := a.read().DescribeVolume(ctx, id)
		if a.w.sabotaged(volumesFree) {
			v.State, v.Attachments = disk.VolumeAvailable, nil
		}
		if there := a.Volume(id); there != nil && a.w.sabotaged(volumesLeft) {
			if held, _ := a.w.checks.held(there); held {
				return disk.Volume{}, fault.Errorf(fault.Gone, "describe %s: it has a snapshot", id)
			}
		}
		return v, err
	})
}

// FindVolumes may show nothing, but not twice within seconds.
func (a amazon) FindVolumes(ctx context.Context, tags map[string]string) ([]disk.Volume, error) {
	return ask(ctx, a.w, ec2, "find volumes", func() ([]disk.Volume, error) {
		if a.w.people.otherAccount(ctx, a.w) {
			return nil, nil
		}
		f := a.w.faults
		if a.w.now().Sub(f.empty) > time.Minute && a.w.oneIn(f.perCall[ec2]/4) {
			f.empty = a.w.now()
			f.count("ec2: empty page")
			return nil, nil
		}
		return a.read().FindVolumes(ctx, tags)
	})
}

func (a amazon) DetachVolume(ctx context.Context, id string, at disk.Attachment, force bool) error {
	what := "detach "
	if force {
		what = "detach by force "
	}
	return a.w.call(ctx, ec2, what+id, func() error { return a.EC2.DetachVolume(ctx, id, at, force) })
}

func (a amazon) DeleteVolume(ctx context.Context, id string) error {
	return a.w.call(ctx, ec2, "delete "+id, func() error { return a.EC2.DeleteVolume(ctx, id) })
}

// DescribeSnapshots may show nothing.
func (a amazon) DescribeSnapshots(ctx context.Context) ([]disk.Snapshot, error) {
	return ask(ctx, a.w, ec2, "list snapshots", func() ([]disk.Snapshot, error) { return a.page(ctx, a.read().DescribeSnapshots) })
}

// FindSnapshots may show nothing.
func (a amazon) FindSnapshots(ctx context.Context, tags map[string]string) ([]disk.Snapshot, error) {
	return ask(ctx, a.w, ec2, "find snapshots", func() ([]disk.Snapshot, error) {
		reached := a.read()
		return a.page(ctx, func(ctx context.Context) ([]disk.Snapshot, error) { return reached.FindSnapshots(ctx, tags) })
	})
}

func (a amazon) page(ctx context.Context, list func(context.Context) ([]disk.Snapshot, error)) ([]disk.Snapshot, error) {
	if a.w.people.otherAccount(ctx, a.w) || a.w.sabotaged(snapshotsHidden) {
		return nil, nil
	}
	if a.w.oneIn(a.w.faults.perCall[ec2]) {
		a.w.faults.count("ec2: empty page")
		return nil, nil
	}
	return list(ctx)
}

func (a amazon) DescribeSnapshot(ctx context.Context, id string) (disk.Snapshot, error) {
	return ask(ctx, a.w, ec2, "describe "+id, func() (disk.Snapshot, error) {
		if a.w.people.otherAccount(ctx, a.w) {
			return disk.Snapshot{}, fault.Errorf(fault.Gone, "describe %s: it is not in this account", id)
		}
		s, err := a.read().DescribeSnapshot(ctx, id)
		a.w.people.tidyUp(a.w, id)
		if a.w.sabotaged(pendingCompleted) {
			s.State = disk.SnapshotCompleted
		}
		for _, made := range a.Snapshots() {
			if made.ID == id && err == nil && a.w.sabotaged(snapshotsForeign) {
				s.Tags[disk.TagReservation] = made.Owner
			}
		}
		return s, err
	})
}

func (a amazon) CreateSnapshot(ctx context.Context, n disk.NewSnapshot) (disk.Snapshot, error) {
	return ask(ctx, a.w, ec2, "create snapshot of "+n.VolumeID, func() (disk.Snapshot, error) {
		if a.w.sabotaged(disksMistaken) {
			n.Disk.Name += " of another"
		}
		a.w.checks.captures(n)
		s, err := a.EC2.CreateSnapshot(ctx, n)
		if err == nil && a.w.sabotaged(snapshotsForeign) {
			return s, a.EC2.UntagSnapshots(ctx, []string{s.ID}, []string{disk.TagReservation})
		}
		if err == nil && a.w.sabotaged(snapshotsHidden) {
			return s, fault.Errorf(fault.Transient, "create snapshot of %s: no answer", n.VolumeID)
		}
		return s, err
	})
}

func (a amazon) DeleteSnapshot(ctx context.Context, id string) error {
	return a.w.call(ctx, ec2, "delete "+id, func() error { return a.EC2.DeleteSnapshot(ctx, id) })
}

func (a amazon) TagSnapshots(ctx context.Context, ids []string, tags map[string]string) error {
	return a.w.call(ctx, ec2, "tag snapshots", func() error { return a.EC2.TagSnapshots(ctx, ids, tags) })
}

func (a amazon) UntagSnapshots(ctx context.Context, ids, keys []string) error {
	return a.w.call(ctx, ec2, "untag snapshots", func() error { return a.EC2.UntagSnapshots(ctx, ids, keys) })
}

// services are the rest of AWS, reached over a network.
type services struct {
	w *world
	*model.Network
}

func (s services) DeleteRecords(ctx context.Context, fqdn string) ([]string, error) {
	return ask(ctx, s.w, network, "delete records "+fqdn, func() ([]string, error) {
		if s.w.sabotaged(recordsStay) {
			return nil, nil
		}
		return s.Network.DeleteRecords(ctx, fqdn)
	})
}

func (s services) DeleteRule(ctx context.Context, arn string) error {
	return s.w.call(ctx, network, "delete rule "+arn, func() error { return s.Network.DeleteRule(ctx, arn) })
}

func (s services) DeleteTargetGroup(ctx context.Context, arn string) error {
	return s.w.call(ctx, network, "delete target group "+arn, func() error { return s.Network.DeleteTargetGroup(ctx, arn) })
}

func (s services) PutListing(ctx context.Context, key string, text []byte) (string, error) {
	return ask(ctx, s.w, network, "put listing", func() (string, error) { return s.Network.PutListing(ctx, key, text) })
}

func (s services) Invoke(ctx context.Context, payload []byte) error {
	return s.w.call(ctx, network, "invoke", func() error { return s.Network.Invoke(ctx, payload) })
}

// Account may be another one, by credentials that somebody has mixed up.
func (s services) Account(ctx context.Context) (disk.Account, error) {
	return ask(ctx, s.w, network, "account", func() (disk.Account, error) {
		account, err := s.Network.Account(ctx)
		if s.w.people.otherAccount(ctx, s.w) {
			s.w.faults.count("aws: another account")
			account.ID = "999999999999"
		}
		return account, err
	})
}
