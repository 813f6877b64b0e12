package sweep

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type warningStore interface {
	DeadlinesNear(ctx context.Context, now time.Time, within time.Duration, levels []reservation.Level, only []string) ([]postgres.Approaching, error)
	RequestWarnings(ctx context.Context, lease postgres.SweepLease, now time.Time, requests []postgres.WarningRequest) ([]string, error)
	VoidWarnings(ctx context.Context, lease postgres.SweepLease, now time.Time, only []string) (int, error)
}

// warnings asks for the most urgent warning due of each reservation whose deadline is near, and closes those that have
// become pointless.
func warnings(store warningStore, levels []reservation.Level) part {
	earliest := slices.Max(levels).Duration()
	return part{name: "warnings", new: true, first: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		near, err := store.DeadlinesNear(ctx, p.now, earliest, levels, p.only)
		if err != nil {
			return plan{}, err
		}
		var pl plan
		var requests []postgres.WarningRequest
		for _, a := range near {
			level, passedOver, due := reservation.DueWarning(a.Deadline, p.now, levels, a.Recorded)
			if !due {
				continue
			}
			requests = append(requests, postgres.WarningRequest{
				ReservationID: a.ReservationID, Deadline: a.Deadline, Level: level, PassedOver: passedOver,
			})
			reason := fmt.Sprintf("%d-minute warning: its time ends at %s", level, a.Deadline.Format(clockFormat))
			if len(passedOver) > 0 {
				reason += fmt.Sprintf("; passed over: %d", passedOver)
			}
			pl.decisions = append(pl.decisions, Decision{ReservationID: a.ReservationID, Action: Warn, Reason: reason})
		}
		pl.apply = func(ctx context.Context) (done, error) {
			voided, err := store.VoidWarnings(ctx, p.lease, p.now, p.only)
			if err != nil {
				return done{}, err
			}
			ids, err := store.RequestWarnings(ctx, p.lease, p.now, requests)
			return done{carriedOut(pl.decisions, ids), map[string]int{"warningsRequested": len(ids), "warningsVoided": voided}}, err
		}
		return pl, nil
	}}
}
