package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type podStore interface {
	ActiveReservations(ctx context.Context, only []string) ([]postgres.ActiveReservation, error)
	RecordCluster(ctx context.Context, lease postgres.SweepLease, uid string) error
	RecordPods(ctx context.Context, lease postgres.SweepLease, pods []postgres.PodSighting) error
	RecordOOMKills(ctx context.Context, lease postgres.SweepLease, now time.Time, seen []postgres.OOMSighting) ([]postgres.OOMSighting, error)
	RecordMissing(ctx context.Context, lease postgres.SweepLease, now time.Time, ids, begin []string) error
	ForgetMissing(ctx context.Context, lease postgres.SweepLease, now time.Time, seen []string) error
	MissingEnded(ctx context.Context, since time.Time) (int, error)
	FailDead(ctx context.Context, lease postgres.SweepLease, now time.Time, dead []postgres.PodEnding) ([]string, error)
	ExpireMissing(ctx context.Context, lease postgres.SweepLease, now time.Time, confirm time.Duration, missing []postgres.PodEnding) ([]string, error)
}

// Instances is EC2, as far as it tells why a server has vanished; *aws.EC2 is one.
type Instances interface {
	DescribeInstance(ctx context.Context, id string) (disk.Instance, error)
}

const (
	// confirmationsMost bounds the direct GETs of one sweep. The longest missing come first; the others have their turn
	// at the next tick.
	confirmationsMost = 50
	// nodesMost bounds the nodes that one sweep asks for their instance.
	nodesMost = 20
)

// OOM is the action of having found an out-of-memory kill.
const OOM Action = "oom"

// pods looks at the pods of active reservations: it remembers whose they are, records out-of-memory kills, fails
// reservations whose pod is dead and expires those whose pod is missing for good.
type pods struct {
	store     podStore
	cluster   Cluster
	instances Instances
	confirm   time.Duration             // MISSING_CONFIRM
	spot      func(gpuType string) bool // SPOT_GPU_TYPES
}

func (pp pods) part() part { return part{name: "pods", new: true, plan: pp.plan} }

// podFindings is what one look at the cluster has told.
type podFindings struct {
	sightings []postgres.PodSighting
	ooms      []postgres.OOMSighting
	dead      []postgres.PodEnding
	seen      []string // reservations with a series of absences whose pod is back
	absent    []absence
}

// absence is an active reservation without a pod in the listing.
type absence struct {
	postgres.ActiveReservation
	name       string
	namespaces []string
	verdict    reservation.MissingDecision
}

func (pp pods) plan(ctx context.Context, p *pass) (plan, error) {
	l, err := p.listing(ctx)
	if err != nil {
		return plan{}, err
	}
	active, err := pp.store.ActiveReservations(ctx, p.only)
	if err != nil {
		return plan{}, err
	}
	ending := make(map[string]bool)
	for _, d := range p.planned {
		ending[d.ReservationID] = ending[d.ReservationID] || d.Action == Expire
	}
	active = slices.DeleteFunc(active, func(a postgres.ActiveReservation) bool { return ending[a.ID] })
	found := pp.look(l, active, p.now)
	failures := errors.Join(l.failures, pp.nameInstances(ctx, active, l, found.sightings))

	pl := plan{counts: map[string]int{"podsListed": len(l.pods)}}
	before, err := pp.store.MissingEnded(ctx, p.now.Add(-reservation.BrakeMemory))
	if err != nil {
		return plan{}, err
	}
	// All that are absent, and not the few that the direct GETs have confirmed so far: those come and end by and by.
	if !p.brake.pods(len(found.dead), len(found.absent), before) {
		found.absent = slices.DeleteFunc(found.absent, func(a absence) bool { // they leave the direct GETs to the others
			held := a.verdict == reservation.MissingConfirmed
			if held {
				pl.spared = append(pl.spared, spared{a.ID, p.brake.heldBack(), a.MissingFirst.Add(pp.confirm)})
			}
			return held
		})
	}
	pl.counts["missingHeldBack"] = len(pl.spared)
	missing, gone, begin, err := pp.confirmAbsent(ctx, found.absent)
	failures = errors.Join(failures, err)
	for _, d := range found.dead {
		pl.decisions = append(pl.decisions, Decision{ReservationID: d.ID, Action: Fail, Reason: d.Reason})
	}
	for _, m := range missing {
		pl.decisions = append(pl.decisions, Decision{ReservationID: m.ID, Action: Expire, Reason: m.Reason})
	}
	pl.apply = func(ctx context.Context) (done, error) {
		d := done{counts: map[string]int{}}
		steps := []func() error{
			func() error {
				if !l.firstSight {
					return nil
				}
				return pp.store.RecordCluster(ctx, p.lease, l.clusterUID)
			},
			func() error { return pp.store.RecordPods(ctx, p.lease, found.sightings) },
			func() error { return pp.store.ForgetMissing(ctx, p.lease, p.now, found.seen) },
			func() error { return pp.store.RecordMissing(ctx, p.lease, p.now, gone, begin) },
			func() error {
				kills, err := pp.store.RecordOOMKills(ctx, p.lease, p.now, found.ooms)
				d.counts["oomKills"] = len(kills)
				for _, k := range kills {
					d.decisions = append(d.decisions, Decision{ReservationID: k.ReservationID, Action: OOM,
						Reason: fmt.Sprintf("container %s ran out of memory at %s", k.Container, k.FinishedAt.UTC().Format(clockFormat))})
				}
				return err
			},
			func() error {
				ids, err := pp.store.FailDead(ctx, p.lease, p.now, found.dead)
				d.counts["deadFailed"] = len(ids)
				d.decisions = append(d.decisions, carriedOut(pl.decisions, ids)...)
				return err
			},
			func() error {
				ids, err := pp.store.ExpireMissing(ctx, p.lease, p.now, pp.confirm, missing)
				d.counts["missingExpired"] = len(ids)
				d.decisions = append(d.decisions, carriedOut(pl.decisions, ids)...)
				return err
			},
		}
		for _, step := range steps {
			failures = errors.Join(failures, step())
		}
		return d, failures
	}
	return pl, nil
}

// look compares the active reservations with the listing.
func (pp pods) look(l *listing, active []postgres.ActiveReservation, now time.Time) podFindings {
	var found podFindings
	for _, r := range active {
		name, ok := pod.NameFor(r.ID, r.PodName)
		namespaces := pod.Namespaces(r.NamespaceName)
		if !ok || namespaces == nil {
			continue // it names nothing that can be a pod: nothing can be known of it
		}
		p, there, whole := l.find(namespaces, name)
		switch {
		case there:
			if !r.MissingFirst.IsZero() {
				found.seen = append(found.seen, r.ID)
			}
			if !serves(p, r) {
				continue
			}
			if !slices.Contains(r.PodUIDs, p.UID) || (r.InstanceID == "" && pp.spot(r.GPUType)) {
				found.sightings = append(found.sightings, postgres.PodSighting{
					UID: p.UID, ReservationID: r.ID, Namespace: p.Namespace, Name: p.Name, CreatedAt: p.Created})
			}
			for _, k := range pod.OOMs(p) {
				found.ooms = append(found.ooms, postgres.OOMSighting{
					ReservationID: r.ID, ContainerID: k.ContainerID, Container: k.Container, FinishedAt: k.At})
			}
			if dead, why := pod.Dead(p); dead {
				found.dead = append(found.dead, postgres.PodEnding{ActiveReservation: r, Reason: "failed: its server is dead: " + why})
			}
		case whole && reservation.MissingEligible(r.Reservation, now):
			found.absent = append(found.absent, absence{r, name, namespaces, missingVerdict(r, now, pp.confirm)})
		}
	}
	return found
}

// missingVerdict decides about a reservation whose pod is absent once more.
func missingVerdict(r postgres.ActiveReservation, now time.Time, confirm time.Duration) reservation.MissingDecision {
	first, last := r.MissingFirst, r.MissingLast
	if launched, ok := r.LaunchedAt.Time(); ok && launched.After(first) {
		first, last = time.Time{}, time.Time{} // a series of before this launch
	}
	return reservation.MissingVerdict(first, last, now, confirm, true)
}

// serves reports whether a pod can be taken for that of an active reservation which has its name. Where two live ones
// share the name, or the pod is older than the reservation, nobody can tell.
func serves(p pod.Pod, r postgres.ActiveReservation) bool {
	created, ok := r.CreatedAt.Time()
	return ok && !r.NameShared && p.UID != "" && !p.Created.Before(created.Add(-pod.ClockTolerance))
}

// nameInstances adds to the sightings of spot servers their instance, which nobody can tell once the node is gone.
func (pp pods) nameInstances(ctx context.Context, active []postgres.ActiveReservation, l *listing, sightings []postgres.PodSighting) error {
	spot := make(map[string]bool)
	for _, r := range active {
		if pp.spot(r.GPUType) {
			spot[r.ID] = true
		}
	}
	var failures error
	instances := make(map[string]string)
	for i := range sightings {
		node := l.byName[podKey{sightings[i].Namespace, sightings[i].Name}].Node
		if !spot[sightings[i].ReservationID] || node == "" {
			continue
		}
		if _, asked := instances[node]; !asked {
			if len(instances) == nodesMost {
				break
			}
			n, err := pp.cluster.GetNode(ctx, node)
			if err != nil && !fault.Is(err, fault.Gone) {
				failures = errors.Join(failures, err)
			}
			instances[node] = n.InstanceID
		}
		sightings[i].InstanceID = instances[node]
	}
	return failures
}

// confirmAbsent asks the API server for each absent pod itself, the longest missing first. It returns the reservations
// that may end, those whose absence is to be recorded, and with which of them a series begins.
func (pp pods) confirmAbsent(ctx context.Context, absent []absence) (missing []postgres.PodEnding, gone, begin []string, err error) {
	slices.SortStableFunc(absent, func(a, b absence) int {
		switch {
		case a.MissingFirst.IsZero() == b.MissingFirst.IsZero():
			return a.MissingFirst.Compare(b.MissingFirst)
		case b.MissingFirst.IsZero():
			return -1
		}
		return 1
	})
	for _, a := range absent[:min(len(absent), confirmationsMost)] {
		isGone, failure := pp.gone(ctx, a)
		if failure != nil {
			err = errors.Join(err, failure)
			continue
		}
		if !isGone {
			continue
		}
		gone = append(gone, a.ID)
		switch a.verdict {
		case reservation.MissingNoted:
			begin = append(begin, a.ID)
		case reservation.MissingConfirmed:
			missing = append(missing, postgres.PodEnding{ActiveReservation: a.ActiveReservation, Reason: fmt.Sprintf(
				"expired: its server %s has been missing since %s%s", a.name, a.MissingFirst.UTC().Format(clockFormat), pp.whyMissing(ctx, a))})
		case reservation.MissingWaiting, reservation.MissingIgnored:
		}
	}
	return missing, gone, begin, err
}

// gone reports whether a direct GET says in each namespace that there is no such pod.
func (pp pods) gone(ctx context.Context, a absence) (bool, error) {
	for _, namespace := range a.namespaces {
		_, err := pp.cluster.GetPod(ctx, namespace, a.name)
		if err == nil {
			return false, nil // the listing was stale
		}
		if !fault.Is(err, fault.Gone) {
			return false, err
		}
	}
	return true, nil
}

// whyMissing tells of a spot server whether EC2 took the instance back, as far as that can be known.
func (pp pods) whyMissing(ctx context.Context, a absence) string {
	if !pp.spot(a.GPUType) {
		return ""
	}
	const unknown = "; whether EC2 reclaimed its spot instance is unknown"
	if a.InstanceID == "" {
		return unknown
	}
	instance, err := pp.instances.DescribeInstance(ctx, a.InstanceID)
	switch {
	case err != nil:
		return unknown
	case instance.Reclaimed():
		return fmt.Sprintf("; EC2 reclaimed its spot instance %s", a.InstanceID)
	}
	return fmt.Sprintf("; its instance %s is %s, not reclaimed by EC2", a.InstanceID, instance.State)
}
