package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

type leftoverStore interface {
	Leftovers(ctx context.Context, now time.Time, only []string) ([]postgres.Leftover, error)
	RequestCleanups(ctx context.Context, lease postgres.SweepLease, now time.Time, ids []string) ([]string, error)
	PodCandidates(ctx context.Context, names []string) ([]postgres.PodCandidate, error)
	RecordRevived(ctx context.Context, lease postgres.SweepLease) (int, error)
	CleanUpAgain(ctx context.Context, lease postgres.SweepLease, reservationID string, p postgres.SeenPod, why string) (bool, error)
}

// CleanUp is the action of asking for a cleanup.
const CleanUp Action = "clean_up"

// cleanups asks for the cleanup of every ended reservation whose cleanup is not done, whoever ended it. While paused
// it goes on with those that were begun.
func cleanups(store leftoverStore) part {
	return part{name: "cleanups", plan: func(ctx context.Context, p *pass) (plan, error) {
		left, err := store.Leftovers(ctx, p.now, p.only)
		if err != nil {
			return plan{}, err
		}
		var pl plan
		var ids []string
		for _, l := range left {
			if p.paused && !l.Begun {
				continue
			}
			reason := fmt.Sprintf("it is %s and was never cleaned up", l.Status)
			switch {
			case l.Again:
				reason = "it has ended again since its cleanup was asked for"
			case l.Begun:
				reason = "its cleanup is unfinished and nobody was asked to go on"
			}
			ids = append(ids, l.ReservationID)
			pl.decisions = append(pl.decisions, Decision{ReservationID: l.ReservationID, Action: CleanUp, Reason: reason})
		}
		pl.apply = func(ctx context.Context) (done, error) {
			revived, failed := store.RecordRevived(ctx, p.lease)
			requested, err := store.RequestCleanups(ctx, p.lease, p.now, ids)
			counts := map[string]int{"cleanupsRequested": len(requested), "cleanupsRevived": revived}
			return done{carriedOut(pl.decisions, requested), counts}, errors.Join(failed, err)
		}
		return pl, nil
	}}
}

// deletionPatience is how long a pod that somebody has asked to go is given before it counts as left over.
const deletionPatience = 5 * time.Minute

// strays asks for the cleanup of ended reservations whose pod is still, or again, there. Pods of no reservation are
// counted and left alone, and so are those that cannot be told to be an ended reservation's own.
func strays(store leftoverStore) part {
	return part{name: "strays", new: true, everything: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		l, err := p.listing(ctx)
		if err != nil {
			return plan{}, err
		}
		var names []string
		for _, one := range l.pods {
			if strings.HasPrefix(one.Name, pod.NamePrefix) {
				names = append(names, one.Name)
			}
		}
		candidates, err := store.PodCandidates(ctx, slices.Compact(slices.Sorted(slices.Values(names))))
		if err != nil {
			return plan{}, err
		}
		byName := make(map[string][]postgres.PodCandidate)
		for _, c := range candidates {
			byName[c.PodName] = append(byName[c.PodName], c)
		}
		pl := plan{counts: map[string]int{}}
		var seen []postgres.SeenPod // by decision
		for _, one := range l.pods {
			if !strings.HasPrefix(one.Name, pod.NamePrefix) || goingAlready(one, p.now) {
				continue
			}
			owner, what, why := ownerOf(one, byName[one.Name])
			if what != "" {
				pl.counts[what]++
			}
			if owner == nil || planned(p, owner.ReservationID, CleanUp) || owner.CleansUp(one.UID, one.Created) {
				continue
			}
			seen = append(seen, postgres.SeenPod{Namespace: one.Namespace, Name: one.Name, UID: one.UID, Created: one.Created})
			pl.decisions = append(pl.decisions, Decision{ReservationID: owner.ReservationID, Action: CleanUp,
				Reason: fmt.Sprintf("it is %s but pod %s/%s is there: %s", owner.Status, one.Namespace, one.Name, why)})
		}
		pl.apply = func(ctx context.Context) (done, error) {
			var d done
			var failures error
			for i, decision := range pl.decisions {
				requested, err := store.CleanUpAgain(ctx, p.lease, decision.ReservationID, seen[i], decision.Reason)
				failures = errors.Join(failures, err)
				if requested {
					d.decisions = append(d.decisions, decision)
				}
			}
			d.counts = map[string]int{"straysRequested": len(d.decisions)}
			return d, failures
		}
		return pl, nil
	}}
}

// planned reports whether a part before has decided so, in a dry run.
func planned(p *pass, id string, action Action) bool {
	return slices.ContainsFunc(p.planned, func(d Decision) bool { return d.ReservationID == id && d.Action == action })
}

func goingAlready(p pod.Pod, now time.Time) bool {
	return !p.Deleting.IsZero() && now.Before(p.Deleting.Add(deletionPatience))
}

// ownerOf returns the ended reservation to which a pod belongs, nil where there is none; what then says how the pod
// is counted. A live reservation with the pod's name has it. Several may have had the name, and users cancel what has
// ended long ago, so that its life reaches into another's: whoever was seen with the pod has it, else who started last.
func ownerOf(p pod.Pod, candidates []postgres.PodCandidate) (owner *postgres.PodCandidate, what, why string) {
	live := slices.ContainsFunc(candidates, func(c postgres.PodCandidate) bool { return !c.Status.Ended() })
	if live {
		return nil, "", ""
	}
	object := pod.Object{Namespace: p.Namespace, PodName: p.Name, UID: p.UID, Created: p.Created}
	for i, c := range slices.Backward(candidates) { // who started last comes first
		ended := pod.Ended{PodName: c.PodName, Namespace: c.Namespace}
		ended.Start, _ = c.Started.Time()
		ended.End, _ = c.Ended.Time()
		if slices.Contains(c.UIDs, p.UID) {
			ended.UID = p.UID
		}
		verdict, reason := pod.BelongsTo(object, ended)
		switch {
		case verdict == pod.Belongs && (owner == nil || ended.UID != ""):
			owner, why = &candidates[i], reason
		case verdict == pod.UnknownOwner:
			what = "podsOfUnknownOwner"
		}
	}
	if owner != nil {
		return owner, "", why
	}
	return nil, cmp.Or(what, "podsWithoutReservation"), ""
}
