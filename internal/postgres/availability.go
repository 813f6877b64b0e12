package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// AvailabilityKey is the key of the one follow-up by which the platform's availability is computed anew. Being due is
// the dirty mark: however many cleanups set it, one invocation clears it.
const AvailabilityKey = "all"

// markAvailabilityDirty sets the mark. Set while an invocation is under way, it stays for the next one.
func markAvailabilityDirty(ctx context.Context, tx pgx.Tx) error {
	return requestFollowUp(ctx, tx, FollowUp{Kind: AvailabilityUpdate, Key: AvailabilityKey, Subject: AvailabilityKey})
}
