package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Text reads one text.
func Text(ctx context.Context, db *DB, statement string, args ...any) (string, error) {
	text, _, err := first(query(ctx, db, pgx.RowTo[string], statement, args...))
	return text, err
}
