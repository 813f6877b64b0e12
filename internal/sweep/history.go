package sweep

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

type historyStore interface {
	ForgetHistory(ctx context.Context, lease postgres.SweepLease, before time.Time, limit int) (int, error)
}

// forgetMost bounds what one sweep deletes of each table: a backlog is worked off tick by tick.
const forgetMost = 1_000

// history deletes the service's own rows that are long over, so that its tables do not grow for ever.
func history(store historyStore, keep time.Duration) part {
	return part{name: "history", everything: true, plan: func(_ context.Context, p *pass) (plan, error) {
		return plan{apply: func(ctx context.Context) (done, error) {
			forgotten, err := store.ForgetHistory(ctx, p.lease, p.now.Add(-keep), forgetMost)
			return done{counts: map[string]int{"rowsForgotten": forgotten}}, err
		}}, nil
	}}
}
