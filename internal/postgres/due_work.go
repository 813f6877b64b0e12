package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// SweepDue reports whether the next sweep is due: five minutes after the last began, while none is running, and while
// paused only where something begun is still to be ended. An autoscaler reads the same view.
func (db *DB) SweepDue(ctx context.Context) (bool, error) {
	due, _, err := first(query(ctx, db, pgx.RowTo[bool], "select sweep > 0 from expiry.due_work"))
	if err != nil {
		return false, fmt.Errorf("look whether a sweep is due: %w", err)
	}
	return due, nil
}
