package cleanup

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const (
	grace = 30 * time.Second
	// slack is how much longer than its grace period a pod may take before anything is thought of it.
	slack = 5 * time.Second
	// forceAfter is how long past its grace period a pod without a disk is waited for.
	forceAfter = 2 * time.Minute
	// overdue is how long past its grace period a pod's staying counts as a failure.
	overdue = 5 * time.Minute
	// podPause lies between two deliveries that wait for a pod.
	podPause = 10 * time.Second
	// keepBudget is what a delivery must have left for the disk: one call, its answer recorded.
	keepBudget = 25 * time.Second
)

// retain sees to it that no reclaim policy takes the volume along with the pod's claims. While it fails the pod stays.
func (a *Action) retain(ctx context.Context, d *delivery) (result, error) {
	p, _, err := a.ownPod(ctx, d)
	if err != nil {
		return result{}, err
	}
	var volumes []pod.PersistentVolume
	if p != nil {
		volumes, err = a.volumesOf(ctx, *p)
	} else if d.record.PVName != "" {
		var v pod.PersistentVolume
		if v, err = a.Cluster.GetVolume(ctx, d.record.PVName); fault.Is(err, fault.Gone) {
			return finished(alreadyGone, d.record.PVName)
		}
		if err == nil && d.record.PVUID != "" && v.UID != d.record.PVUID {
			return finished(notOurs, d.record.PVName+" is another by now")
		}
		volumes = append(volumes, v)
	}
	if err != nil {
		return result{}, err
	}
	var patched []string
	for _, v := range volumes {
		if v.Retained() {
			continue
		}
		if _, err := a.Cluster.RetainVolume(ctx, v.Name, v.UID); err != nil {
			return result{}, err
		}
		patched = append(patched, v.Name)
	}
	if len(patched) == 0 {
		return finished(nothing, "")
	}
	return finished(done, strings.Join(patched, ", "))
}

// services deletes those that stand before the reservation's pod and no other. Once the pod is gone only the one named
// after it is found.
func (a *Action) services(ctx context.Context, d *delivery) (result, error) {
	c := d.record
	name, ok := pod.NameFor(c.ReservationID, c.NamedPod)
	namespaces := pod.Namespaces(c.RowNamespace)
	if !ok || namespaces == nil {
		return finished(nothing, "the row names nothing that can be a pod")
	}
	p, _, err := a.ownPod(ctx, d)
	if err != nil {
		return result{}, err
	}
	rows, err := a.Store.Ownership(ctx, c.ReservationID, name, "")
	if err != nil {
		return result{}, err
	}
	var deleted, left []string
	for _, namespace := range namespaces {
		target := pod.Pod{Namespace: namespace, Name: name}
		if p != nil && p.Namespace == namespace {
			target = *p
		}
		found, err := a.servicesOf(ctx, target)
		if err != nil {
			return result{}, err
		}
		for _, s := range found {
			o := pod.Object{Namespace: s.Namespace, PodName: name, UID: s.UID, Created: s.Created}
			verdict, why := pod.BelongsTo(o, pod.Ended{PodName: name, Namespace: c.RowNamespace, Start: c.Started, End: c.Ended,
				NameIsLive: rows.NameIsLive || !rows.Over})
			if verdict != pod.Belongs {
				left = append(left, fmt.Sprintf("%s left alone: %s", s.Name, why))
				continue
			}
			if err := a.Cluster.DeleteService(ctx, s.Namespace, s.Name, s.UID); err != nil && !goneOrReplaced(err) {
				return result{}, err
			}
			deleted = append(deleted, s.Name)
		}
	}
	outcome := nothing
	switch {
	case len(deleted) > 0:
		outcome = done
	case len(left) > 0:
		outcome = notOurs
	}
	return finished(outcome, strings.Join(append(deleted, left...), "; "))
}

// servicesOf returns the services that stand before this pod alone. That the one named after it is not there is believed
// of a direct GET only. All pods are asked for only where there is a service which might be another's, too.
func (a *Action) servicesOf(ctx context.Context, p pod.Pod) ([]pod.Service, error) {
	services, err := a.Cluster.ListServices(ctx, p.Namespace)
	if err != nil {
		return nil, err
	}
	if ssh := pod.SSHService(p.Name); !slices.ContainsFunc(services, func(s pod.Service) bool { return s.Name == ssh }) {
		switch s, err := a.Cluster.GetService(ctx, p.Namespace, ssh); {
		case err == nil:
			services = append(services, s)
		case !fault.Is(err, fault.Gone):
			return nil, err
		}
	}
	if len(pod.ServicesOf(p, nil, services)) == 0 {
		return nil, nil
	}
	pods, err := a.Cluster.ListPods(ctx, p.Namespace)
	if err != nil {
		return nil, err
	}
	return pod.ServicesOf(p, pods, services), nil
}

// goneOrReplaced reports that the very thing is not there any more, whatever has its name by now.
func goneOrReplaced(err error) bool {
	return fault.Is(err, fault.Gone) || fault.Is(err, fault.Conflict)
}

// endPod deletes the reservation's pod and waits for it to be gone.
func (a *Action) endPod(ctx context.Context, d *delivery) (result, error) {
	d.pod = nil // as it is now
	p, why, err := a.ownPod(ctx, d)
	if err != nil {
		return result{}, err
	}
	if p == nil {
		return a.podGone(ctx, d, alreadyGone, why)
	}
	if err := a.noteTermination(ctx, d, *p); err != nil {
		return result{}, err
	}
	if p.Deleting.IsZero() || p.Deleting.After(a.now(d).Add(grace+slack)) {
		if err := a.Cluster.DeletePod(ctx, p.Namespace, p.Name, p.UID, grace); err != nil && !goneOrReplaced(err) {
			return result{}, err
		}
	}
	last, forced := *p, ""
	gone, err := a.until(ctx, a.opts.Interval, func(ctx context.Context) (gone bool, err error) {
		if last, gone, err = a.lookAt(ctx, *p); gone || err != nil {
			return gone, err
		}
		if err := a.noteTermination(ctx, d, last); err != nil || forced != "" {
			return false, err
		}
		why := a.mayForce(ctx, d, last)
		if why == "" {
			return false, nil
		}
		a.opts.Log.WarnContext(ctx, "pod forced", "pod", last.Name, "reason", why)
		if err := a.Cluster.ForceDeletePod(ctx, last.Namespace, last.Name, last.UID); err != nil && !goneOrReplaced(err) {
			return false, err
		}
		forced = why
		_, gone, err = a.lookAt(ctx, *p)
		return gone, err
	})
	switch {
	case err != nil:
		return result{}, err
	case gone && forced != "":
		return a.podGone(ctx, d, "forced", forced)
	case gone:
		return a.podGone(ctx, d, done, "")
	case !last.Deleting.IsZero() && a.now(d).After(last.Deleting.Add(overdue)):
		return result{}, fmt.Errorf("pod %s/%s on node %q is still there, its grace period over since %s",
			last.Namespace, last.Name, last.Node, last.Deleting.Format(time.RFC3339))
	}
	return waiting(podPause, fmt.Sprintf("pod %s/%s is stopping", last.Namespace, last.Name))
}

// lookAt returns the pod as it is now, or reports it gone; p, where neither can be told.
func (a *Action) lookAt(ctx context.Context, p pod.Pod) (now pod.Pod, gone bool, err error) {
	now, err = a.Cluster.GetPod(ctx, p.Namespace, p.Name)
	switch {
	case fault.Is(err, fault.Gone), err == nil && now.UID != p.UID:
		return p, true, nil
	case err != nil:
		return p, false, err
	}
	return now, false, nil
}

func (a *Action) podGone(ctx context.Context, d *delivery, outcome, detail string) (result, error) {
	if err := a.home.SameCluster(ctx); err != nil {
		return result{}, err
	}
	err := a.Store.RecordPodGone(ctx, d.id, outcome, detail)
	return result{outcome: outcome, detail: detail, recorded: true}, err
}

// noteTermination records that the kubelet reports every container terminated. Once the pod is gone nobody can tell.
func (a *Action) noteTermination(ctx context.Context, d *delivery, p pod.Pod) error {
	if d.record.ContainersTerminated || !allTerminated(p) {
		return nil
	}
	d.record.ContainersTerminated = true
	return a.Store.RecordTermination(ctx, d.id)
}

// allTerminated asks for each container's own state: a pod's phase is also set by those who only believe its node lost.
func allTerminated(p pod.Pod) bool {
	return len(p.Containers) > 0 && !slices.ContainsFunc(p.Containers, func(c pod.Container) bool { return c.Current == nil })
}

// mayForce returns why the pod may be taken out of the API although its processes may still run, empty where it may not.
// With a disk that is only where they cannot: a process that runs on would write to a volume thought to be free.
func (a *Action) mayForce(ctx context.Context, d *delivery, p pod.Pod) string {
	c := d.record
	if p.Deleting.IsZero() || a.now(d).Before(p.Deleting.Add(slack)) {
		return ""
	}
	if c.VolumeID == "" && c.DiskName == "" && len(p.Claims)+len(p.VolumeIDs) == 0 {
		if a.now(d).Before(p.Deleting.Add(forceAfter)) {
			return ""
		}
		return fmt.Sprintf("it has no disk and did not stop in %s", grace+forceAfter)
	}
	if p.Node == "" {
		return "" // it never ran, and goes by itself
	}
	node, err := a.Cluster.GetNode(ctx, p.Node)
	nodeGone := fault.Is(err, fault.Gone)
	if err != nil && !nodeGone {
		a.opts.Log.WarnContext(ctx, "cannot tell whether the pod's node is gone", "node", p.Node, "error", err)
	}
	return a.halted(ctx, p.Node, nodeGone, cmp.Or(node.InstanceID, c.InstanceID))
}

// halted returns why nothing runs on a node any more: EC2 says that its instance has stopped, or node and instance are
// both gone. Either alone may be somebody's mistake: a node object can be deleted under a kubelet that runs on.
func (a *Action) halted(ctx context.Context, node string, nodeGone bool, instance string) string {
	if instance == "" {
		if nodeGone {
			return fmt.Sprintf("node %s is gone, its instance was never known", node)
		}
		return ""
	}
	i, err := a.EC2.DescribeInstance(ctx, instance)
	gone, err := a.home.Gone(ctx, err)
	switch {
	case err != nil:
		a.opts.Log.WarnContext(ctx, "cannot tell whether the pod's instance has stopped", "instance", instance, "error", err)
	case gone && nodeGone:
		return fmt.Sprintf("node %s and its instance %s are gone", node, instance)
	case !gone && i.Halted():
		return fmt.Sprintf("instance %s is %s", instance, i.State)
	}
	return ""
}

// keepDisk hands the volume to the keeper. Where there is none the disk is free.
func (a *Action) keepDisk(ctx context.Context, d *delivery) (result, error) {
	if err := a.reload(ctx, d); err != nil {
		return result{}, err
	}
	if d.record.VolumeID == "" {
		none, over, err := a.seekVolume(ctx, d)
		switch {
		case err != nil:
			return result{}, err
		case over != "":
			return result{outcome: string(over), recorded: true}, nil
		case none != "":
			outcome, err := a.Store.FinishWithoutVolume(ctx, d.id, none)
			return result{outcome: outcome, detail: none, recorded: true}, err
		}
	}
	if d.record.VolumeUnsaid { // the row named it late
		if err := a.Store.RecordIdentity(ctx, d.id, postgres.Identity{VolumeID: d.record.VolumeID}, done, ""); err != nil {
			return result{}, err
		}
	}
	if err := a.nameDisk(ctx, d); err != nil {
		return result{}, err
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Sub(a.opts.Now()) < keepBudget {
		return waiting(time.Second, "too little of the delivery is left for the disk")
	}
	kept, err := a.Disk.Keep(ctx, d.record)
	switch {
	case err != nil:
		return result{}, err
	case kept.LookAgain > 0:
		return waiting(kept.LookAgain, "") // the keeper has noted what for
	case !kept.IsRecorded():
		d.handed = kept.Outcome
	}
	return result{outcome: kept.Outcome, recorded: true}, nil
}
