package stacktest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestADatabaseHasBothSchemasAndIsSharedWithNobody(t *testing.T) {
	t.Parallel()
	mine, yours := connect(t, stacktest.Database(t)), connect(t, stacktest.Database(t))
	for _, conn := range []*pgx.Conn{mine, yours} {
		require.Equal(t, 4, count(t, conn, `select count(*) from information_schema.tables where table_schema = 'public'
			and table_name in ('reservations', 'disks', 'domain_mappings', 'alb_target_groups')`))
		require.NotZero(t, count(t, conn, "select count(*) from information_schema.tables where table_schema = 'expiry'"))
	}
	_, err := mine.Exec(t.Context(), "create table only_mine ()")
	require.NoError(t, err)
	require.Zero(t, count(t, yours, "select count(*) from information_schema.tables where table_name = 'only_mine'"))
}

func TestAnEmptyDatabaseHasNoTables(t *testing.T) {
	t.Parallel()
	conn := connect(t, stacktest.EmptyDatabase(t))
	require.Zero(t, count(t, conn, "select count(*) from information_schema.tables where table_schema in ('public', 'expiry')"))
}

func TestThePoolerGivesASessionToNobody(t *testing.T) {
	t.Parallel()
	pooled, direct := stacktest.PooledDatabase(t)
	config, err := pgx.ParseConfig(pooled)
	require.NoError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	first, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	second, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = first.Close(context.Background())
		_ = second.Close(context.Background())
	})

	// Two clients, one after the other, are served by the same backend: that is transaction mode.
	backend := count(t, first, "select pg_backend_pid()")
	require.Equal(t, backend, count(t, second, "select pg_backend_pid()"))
	require.Equal(t, 1, count(t, connect(t, direct), "select count(*) from pg_stat_activity where pid = $1", backend))
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func count(t *testing.T, conn *pgx.Conn, query string, args ...any) int {
	t.Helper()
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}
