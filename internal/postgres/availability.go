package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
)

// markAvailabilityDirty asks for the platform's availability to be computed anew. The one follow-up being due is the
// mark: however many cleanups set it, one invocation clears it, and set during an invocation it stays for the next.
func markAvailabilityDirty(ctx context.Context, tx pgx.Tx) error {
	return requestFollowUp(ctx, tx, FollowUp{Kind: AvailabilityUpdate, Key: event.AvailabilityKey, Subject: event.AvailabilityKey})
}
