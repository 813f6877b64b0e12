package sweep

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type stuckStore interface {
	Waiting(ctx context.Context, only []string) ([]postgres.Waiting, error)
	EndStuck(ctx context.Context, lease postgres.SweepLease, now time.Time, stuck []postgres.StuckEnding) ([]string, error)
}

// stuck ends what has been on its way for too long: preparing fails, queued and pending are cancelled. Their cleanup
// removes what may be there of them and frees their disks.
func stuck(store stuckStore) part {
	return part{name: "stuck", new: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		waiting, err := store.Waiting(ctx, p.only)
		if err != nil {
			return plan{}, err
		}
		var pl plan
		var endings []postgres.StuckEnding
		to := make(map[string]reservation.Status)
		for _, w := range waiting {
			ending, isStuck, anomaly := reservation.Stuck(w.Reservation, p.now)
			if anomaly != reservation.NoAnomaly {
				pl.leave(anomaly, w.Reservation, nil)
			}
			if !isStuck {
				continue
			}
			action := Cancel
			if ending.Status == reservation.Failed {
				action = Fail
			}
			reason := string(ending.Status) + ": " + ending.Reason
			to[w.ID] = ending.Status
			endings = append(endings, postgres.StuckEnding{Waiting: w, To: ending.Status, Reason: reason})
			pl.decisions = append(pl.decisions, Decision{ReservationID: w.ID, Action: action, Reason: reason})
		}
		if len(endings) == 0 {
			return pl, nil
		}
		pl.apply = func(ctx context.Context) (done, error) {
			ids, err := store.EndStuck(ctx, p.lease, p.now, endings)
			counts := map[string]int{"stuckOvertaken": len(endings) - len(ids)}
			for _, id := range ids {
				if to[id] == reservation.Failed {
					counts["stuckFailed"]++
				} else {
					counts["stuckCancelled"]++
				}
			}
			return done{carriedOut(pl.decisions, ids), counts}, err
		}
		return pl, nil
	}}
}
