package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// RequestFollowUp is requestFollowUp in a transaction of its own.
func RequestFollowUp(ctx context.Context, db *DB, f FollowUp) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error { return requestFollowUp(ctx, tx, f) })
}

// RecordFact is recordFact in a transaction of its own, which is rolled back where fail is not nil.
func RecordFact(ctx context.Context, db *DB, factType, subject string, data any, fail error) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := recordFact(ctx, tx, factType, subject, data); err != nil {
			return err
		}
		return fail
	})
}

// Exec runs a statement that only tests need.
func Exec(ctx context.Context, db *DB, statement string, args ...any) error {
	_, err := db.exec(ctx, statement, args...)
	return err
}

// Count reads one number.
func Count(ctx context.Context, db *DB, statement string) (int, error) {
	n, err := query(ctx, db, pgx.RowTo[int], statement)
	if err != nil {
		return 0, err
	}
	return n[0], nil
}
