package cleanup

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// identify finds out what stood behind the reservation, for good: most of it only the pod knows.
func (a *Action) identify(ctx context.Context, d *delivery) (result, error) {
	c := d.record
	p, why, err := a.ownPod(ctx, d)
	if err != nil {
		return result{}, err
	}
	id := postgres.Identity{DiskName: c.DiskName}
	var volumes []pod.PersistentVolume
	n := named{row: c.VolumeID, former: c.FormerVolume}
	outcome, said := done, []string{why}
	if p == nil {
		outcome = missing
		id.PodName, _ = pod.NameFor(c.ReservationID, c.NamedPod)
	} else {
		id.Namespace, id.PodName, id.PodUID, id.PodCreated, id.NodeName = p.Namespace, p.Name, p.UID, p.Created, p.Node
		if id.InstanceID, err = a.instanceOf(ctx, p.Node); err != nil {
			return result{}, err
		}
		if volumes, err = a.volumesOf(ctx, *p); err != nil {
			return result{}, err
		}
		n.home, n.pod = p.HomeVolume(volumes)
	}
	name, held, err := a.Store.DiskOf(ctx, c.ReservationID, c.UserID, cmp.Or(n.row, n.home))
	if err != nil {
		return result{}, err
	}
	id.DiskName = cmp.Or(id.DiskName, name)
	if p != nil || c.Launched || c.Status == reservation.Failed { // what waited in the queue has written to none
		n.disk = held
	}
	v, err := a.which(ctx, c, disk.Key{User: c.UserID, Name: id.DiskName}, n)
	if err != nil {
		return result{}, err
	}
	if v.id != "" && (v.from == theDisk || v.from == anOldRow) && !slices.Contains(n.pod, v.id) {
		c.InstanceID = cmp.Or(id.InstanceID, c.InstanceID)
		if v, err = a.newer(ctx, c, disk.Key{User: c.UserID, Name: id.DiskName}, v); err != nil {
			return result{}, err
		}
	}
	id.VolumeID, id.Misnamed, id.Last = v.id, v.misnamed, v.last
	if v.misnamed != "" {
		said = append(said, fmt.Sprintf("the row names volume %s", v.misnamed))
	}
	for _, pv := range volumes {
		if pv.VolumeID == v.id {
			id.ClaimName, id.ClaimUID, id.PVName, id.PVUID = pv.ClaimName, pv.ClaimUID, pv.Name, pv.UID
		} else {
			said = append(said, fmt.Sprintf("the pod also has volume %s (%s)", pv.VolumeID, pv.Name))
		}
	}
	switch {
	case v.id != "":
		said = append(said, fmt.Sprintf("volume %s by %s", v.id, v.from))
		if c.FormerVolume != "" && c.FormerVolume != v.id {
			a.opts.Log.WarnContext(ctx, "a volume of the reservation's former life is left as it is", "volume", c.FormerVolume)
			said = append(said, fmt.Sprintf("volume %s of its former life is left as it is", c.FormerVolume))
		}
	case len(v.undecided) > 0:
		d.unclear = "cannot tell which of these volumes is the disk: " + strings.Join(v.undecided, ", ")
		outcome, said = unclear, []string{d.unclear}
	case v.last != "":
		said = append(said, fmt.Sprintf("volume %s is no disk's any more", v.last))
	default:
		said = append(said, "no volume is known")
	}
	detail := strings.Join(said, "; ")
	if err := a.Store.RecordIdentity(ctx, c.ReservationID, id, outcome, detail); err != nil {
		return result{}, err
	}
	return result{outcome: outcome, detail: detail, recorded: true}, a.reload(ctx, d)
}

// ownPod returns the reservation's pod, nil where the API server says in each namespace that it has none, or one that
// is somebody else's; why is for people.
func (a *Action) ownPod(ctx context.Context, d *delivery) (own *pod.Pod, why string, err error) {
	if d.pod != nil {
		return d.pod, "", nil
	}
	c := d.record
	name, ok := pod.NameFor(c.ReservationID, c.NamedPod)
	namespaces := pod.Namespaces(c.RowNamespace)
	if !ok || namespaces == nil {
		return nil, "the row names nothing that can be a pod", nil
	}
	why = fmt.Sprintf("no pod %s", name)
	for _, namespace := range namespaces {
		p, err := a.Cluster.GetPod(ctx, namespace, name)
		if fault.Is(err, fault.Gone) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		owner, reason, err := a.ownerOf(ctx, c, pod.Object{Namespace: p.Namespace, PodName: p.Name, UID: p.UID, Created: p.Created})
		if err != nil {
			return nil, "", err
		}
		why = fmt.Sprintf("pod %s/%s: %s", namespace, name, reason)
		switch owner {
		case pod.Belongs:
			d.pod = &p
			return &p, why, nil
		case pod.UnknownOwner:
			if err := a.mayHoldDisk(ctx, c, p); err != nil {
				return nil, "", fault.Errorf(fault.Conflict, "cannot tell whose %s; %w", why, err)
			}
		}
	}
	return nil, why, nil
}

// ownerOf decides, by what the rows say at this moment, whether a pod is the reservation's own.
func (a *Action) ownerOf(ctx context.Context, c postgres.CleanupRecord, o pod.Object) (pod.Verdict, string, error) {
	rows, err := a.Store.Ownership(ctx, c.ReservationID, o.PodName, o.UID)
	if err != nil {
		return pod.UnknownOwner, "", err
	}
	if !rows.Over {
		return pod.UnknownOwner, "", fault.Errorf(fault.Conflict, "reservation %s is live again", c.ReservationID)
	}
	if rows.Theirs {
		return pod.NotOurs, "its UID was seen as another reservation's", nil
	}
	life := pod.Ended{PodName: o.PodName, Namespace: c.RowNamespace, Start: c.Started, End: c.Ended, UID: c.PodUID, NameIsLive: rows.NameIsLive}
	if slices.Contains(rows.UIDs, o.UID) { // any other may have been made anew since a sweep looked
		life.UID = o.UID
	}
	verdict, why := pod.BelongsTo(o, life)
	if rows.NameIsLive {
		// A live reservation's name protects the pod, but does not prove that the ended one's is gone.
		life.NameIsLive = false
		if other, reason := pod.BelongsTo(o, life); other != pod.NotOurs {
			return pod.UnknownOwner, why + ", but " + reason, nil
		}
	}
	return verdict, why, nil
}

// mayHoldDisk is an error where a pod of which nobody can tell whose it is has the reservation's volume, or any while
// that is not known: it would go on writing. Without it such a pod is left alone and nothing waits for it.
func (a *Action) mayHoldDisk(ctx context.Context, c postgres.CleanupRecord, p pod.Pod) error {
	volumes, err := a.volumesOf(ctx, p)
	if err != nil {
		return err
	}
	ids := slices.Clone(p.VolumeIDs)
	for _, v := range volumes {
		ids = append(ids, v.VolumeID)
	}
	if c.VolumeID != "" && slices.Contains(ids, c.VolumeID) || c.VolumeID == "" && len(ids) > 0 {
		return fmt.Errorf("it has %s", strings.Join(ids, ", "))
	}
	return nil
}

// instanceOf returns the EC2 instance of a node, empty where there is none to be known.
func (a *Action) instanceOf(ctx context.Context, node string) (string, error) {
	if node == "" {
		return "", nil
	}
	n, err := a.Cluster.GetNode(ctx, node)
	if fault.Is(err, fault.Gone) {
		return "", nil
	}
	return n.InstanceID, err
}

// volumesOf returns the PersistentVolumes through which the pod mounts EBS volumes.
func (a *Action) volumesOf(ctx context.Context, p pod.Pod) ([]pod.PersistentVolume, error) {
	var volumes []pod.PersistentVolume
	for _, name := range p.Claims {
		claim, err := a.Cluster.GetClaim(ctx, p.Namespace, name)
		if fault.Is(err, fault.Gone) || err == nil && claim.VolumeName == "" {
			continue // never bound, or taken away under the pod: no way leads to a volume
		}
		if err != nil {
			return nil, err
		}
		v, err := a.Cluster.GetVolume(ctx, claim.VolumeName)
		if fault.Is(err, fault.Gone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if v.VolumeID != "" {
			v.ClaimNamespace, v.ClaimName, v.ClaimUID = p.Namespace, name, claim.UID
			volumes = append(volumes, v)
		}
	}
	return volumes, nil
}

// nameDisk learns the disk's name from its volume's tags where nothing else has told it.
func (a *Action) nameDisk(ctx context.Context, d *delivery) error {
	c := &d.record
	if c.DiskName != "" || c.VolumeID == "" {
		return nil
	}
	v, err := a.EC2.DescribeVolume(ctx, c.VolumeID)
	if _, err = a.home.Gone(ctx, err); err != nil || v.Tags[disk.TagDisk] == "" || (disk.Key{User: c.UserID}).Others(v) != "" {
		return err // another's volume names no disk of this user: the keeper refuses it
	}
	c.DiskName = v.Tags[disk.TagDisk]
	return a.Store.RecordDiskName(ctx, c.ReservationID, c.DiskName)
}
