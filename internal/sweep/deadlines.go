package sweep

import (
	"context"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type deadlineStore interface {
	DeadlinesPast(ctx context.Context, now time.Time, grace time.Duration, only []string) ([]postgres.SetMember, error)
	Expire(ctx context.Context, lease postgres.SweepLease, now time.Time, grace time.Duration, expiries []postgres.Expiry) ([]string, error)
}

// clockFormat is how reasons give a time.
const clockFormat = "2006-01-02 15:04:05 UTC"

// deadlines expires what is past its deadline and grace, if the brake allows, and reports deadlines that make no sense.
func deadlines(store deadlineStore, grace time.Duration) part {
	return part{name: "deadlines", new: true, first: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		past, err := store.DeadlinesPast(ctx, p.now, grace, p.only)
		if err != nil {
			return plan{}, err
		}
		var pl plan
		var expiries []postgres.Expiry
		for _, r := range past {
			deadline, anomaly := reservation.EffectiveDeadline(r.Reservation, r.Master, p.now)
			if anomaly != reservation.NoAnomaly {
				pl.leave(anomaly, r.Reservation, r.Master)
			}
			if !reservation.Overdue(r.Reservation, r.Master, p.now, grace) {
				continue
			}
			reason := fmt.Sprintf("expired: its time ended at %s", deadline.Format(clockFormat))
			expiries = append(expiries, postgres.Expiry{ReservationID: r.ID, Deadline: deadline, Reason: reason})
			pl.decisions = append(pl.decisions, Decision{ReservationID: r.ID, Action: Expire, Reason: reason})
		}
		if !p.brake.deadlines(len(expiries)) {
			for _, e := range expiries {
				pl.spared = append(pl.spared, spared{e.ReservationID, p.brake.heldBack(), e.Deadline.Add(grace)})
			}
			return plan{spared: pl.spared, anomalies: pl.anomalies, counts: map[string]int{"expiriesHeldBack": len(expiries)}}, nil
		}
		if len(expiries) == 0 {
			return pl, nil
		}
		pl.apply = func(ctx context.Context) (done, error) {
			ids, err := store.Expire(ctx, p.lease, p.now, grace, expiries)
			return done{carriedOut(pl.decisions, ids), map[string]int{
				"expired": len(ids), "expiriesOvertaken": len(expiries) - len(ids),
			}}, err
		}
		return pl, nil
	}}
}
