package postgres_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestTheSchemaIsCheckedAgainstTheBinary(t *testing.T) {
	t.Parallel()
	address := stacktest.EmptyDatabase(t)
	db := open(t, address)
	require.ErrorIs(t, db.CheckSchema(t.Context()), postgres.ErrSchema, "missing")

	require.NoError(t, postgres.Migrate(t.Context(), address))
	require.NoError(t, db.CheckSchema(t.Context()))

	require.NoError(t, postgres.Exec(t.Context(), db, "insert into expiry.schema_version (version_id, is_applied) values (9999, true)"))
	require.NoError(t, db.CheckSchema(t.Context()), "a newer one, while an upgrade rolls out, will do")
	require.NoError(t, postgres.Exec(t.Context(), db, "delete from expiry.schema_version where version_id > 0"))
	require.ErrorIs(t, db.CheckSchema(t.Context()), postgres.ErrSchema, "older")
}

func TestMigrateTouchesNothingButSchemaExpiry(t *testing.T) {
	t.Parallel()
	address := stacktest.EmptyDatabase(t)
	require.NoError(t, postgres.Migrate(t.Context(), address))
	require.Zero(t, count(t, open(t, address), "select count(*) from information_schema.tables where table_schema = 'public'"))
	require.Zero(t, count(t, open(t, address), `
		select count(*) from pg_constraint where contype = 'f' and connamespace = 'expiry'::regnamespace
		and not exists (select from pg_class where oid = confrelid and relnamespace = 'expiry'::regnamespace)`))
}

// count reads one number, past the package's own methods.
func count(t *testing.T, db *postgres.DB, query string) int {
	t.Helper()
	n, err := postgres.Count(t.Context(), db, query)
	require.NoError(t, err)
	return n
}

func TestPlatformTablesThatExistAreLeftAlone(t *testing.T) {
	t.Parallel()
	address := stacktest.EmptyDatabase(t)
	db := open(t, address)
	require.NoError(t, postgres.MigratePlatformTables(t.Context(), address))
	require.NoError(t, postgres.Exec(t.Context(), db, "insert into reservations (reservation_id, user_id, status) values ('r1', 'ada', 'active')"))
	require.NoError(t, postgres.Exec(t.Context(), db, "drop schema expiry cascade"))
	require.NoError(t, postgres.MigratePlatformTables(t.Context(), address))
	require.Equal(t, 1, count(t, db, "select count(*) from reservations"))
}

// ways are the addresses of an empty database.
var ways = map[string]func(t *testing.T) string{
	"direct": func(t *testing.T) string { return stacktest.EmptyDatabase(t) },
	"through PgBouncer": func(t *testing.T) string {
		direct, err := url.Parse(stacktest.EmptyDatabase(t))
		require.NoError(t, err)
		pooled, err := url.Parse(stacktest.Env(t, "STACK_PGBOUNCER_URL"))
		require.NoError(t, err)
		pooled.Path = direct.Path
		return pooled.String()
	},
}

func TestManyMigrationsAtOnceEndWell(t *testing.T) {
	t.Parallel()
	for name, through := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := through(t)
			group, ctx := errgroup.WithContext(context.WithoutCancel(t.Context()))
			for range 4 {
				group.Go(func() error { return postgres.Migrate(ctx, address) })
			}
			require.NoError(t, group.Wait())
			require.NoError(t, open(t, address).CheckSchema(t.Context()))
		})
	}
}

func TestAMigrationDoesNotWaitLongForALock(t *testing.T) {
	t.Parallel()
	for name, through := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := through(t)
			db := open(t, address)
			require.NoError(t, postgres.Exec(t.Context(), db, "create schema expiry"))
			somebody, err := pgx.Connect(t.Context(), address)
			require.NoError(t, err)
			t.Cleanup(func() { _ = somebody.Close(context.Background()) })
			busy, err := somebody.Begin(t.Context())
			require.NoError(t, err)
			_, err = busy.Exec(t.Context(), "create table expiry.facts ()")
			require.NoError(t, err)

			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			require.ErrorIs(t, postgres.Migrate(ctx, address), postgres.ErrLocked)
			require.NoError(t, busy.Rollback(t.Context()))
			require.NoError(t, postgres.Migrate(t.Context(), address))
		})
	}
}

func TestAMalformedAddressIsNotQuoted(t *testing.T) {
	t.Parallel()
	const address = "postgres://user:hunter2@host:port/db"
	_, err := postgres.Open(t.Context(), address, postgres.Options{})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
	err = postgres.Migrate(t.Context(), address)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}
