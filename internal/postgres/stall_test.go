package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// A caller without a deadline must not wait for ever for somebody who holds a lock: not for a statement by itself, and
// not for one inside of a transaction.
func TestNoStatementWaitsForALockBeyondItsTime(t *testing.T) {
	t.Parallel()
	url := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), url, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	locker, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = locker.Close(context.Background()) })
	tx, err := locker.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "lock table reservations in access exclusive mode")
	require.NoError(t, err)

	calls := map[string]func(ctx context.Context) error{
		"a statement": func(ctx context.Context) error { _, err := db.Observe(ctx); return err },
		"a transaction": func(ctx context.Context) error {
			_, _, _, err := db.BeginSweep(ctx, uuid.New(), "test", "test", time.Minute)
			return err
		},
	}
	ended := make(chan error, len(calls))
	began := time.Now()
	for _, call := range calls {
		go func() { ended <- call(context.WithoutCancel(t.Context())) }()
	}
	for range calls {
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.DeadlineExceeded)
		case <-time.After(30 * time.Second):
			t.Error("it waits for ever")
			require.NoError(t, tx.Rollback(t.Context()))
		}
	}
	require.Less(t, time.Since(began), 20*time.Second)
}
