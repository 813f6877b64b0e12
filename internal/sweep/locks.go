package sweep

import (
	"context"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

type lockStore interface {
	IdleLocks(ctx context.Context, now time.Time) ([]postgres.IdleLock, error)
	ReleaseIdleLocks(ctx context.Context, lease postgres.SweepLease, now time.Time, locks []postgres.IdleLock) ([]postgres.IdleLock, error)
}

// Release is the action of freeing a disk.
const Release Action = "release"

// locks frees disks that nothing is owed to any more. It comes after the snapshots, by which an unsettled disk is known.
func locks(store lockStore) part {
	return part{name: "locks", new: true, everything: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		idle, err := store.IdleLocks(ctx, p.now)
		if err != nil {
			return plan{}, err
		}
		pl := plan{decisions: lockDecisions(idle)}
		if len(idle) == 0 {
			return pl, nil
		}
		pl.apply = func(ctx context.Context) (done, error) {
			released, err := store.ReleaseIdleLocks(ctx, p.lease, p.now, idle)
			return done{lockDecisions(released), map[string]int{"locksReleased": len(released)}}, err
		}
		return pl, nil
	}}
}

func lockDecisions(locks []postgres.IdleLock) []Decision {
	var decisions []Decision
	for _, l := range locks {
		decisions = append(decisions, Decision{ReservationID: l.ReservationID, Subject: fmt.Sprintf("%s/%s", l.UserID, l.DiskName),
			Action: Release, Reason: "the disk is locked for nothing: " + l.Reason})
	}
	return decisions
}
