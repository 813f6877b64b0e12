package stacktest

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver that pgtestdb is told to use
	"github.com/peterldowns/pgtestdb"
	"github.com/peterldowns/pgtestdb/migrators/common"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Database returns the URL of a fresh database with the platform's tables and schema expiry, as the service would
// log in to it. It is dropped when the test ends, and kept where the test has failed.
func Database(t testing.TB) string {
	t.Helper()
	return create(t, migrated{}).URL()
}

// EmptyDatabase is Database without any table.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return create(t, pgtestdb.NoopMigrator{}).URL()
}

// PooledDatabase returns the URLs of one fresh database: through PgBouncer in transaction mode, and past it.
func PooledDatabase(t testing.TB) (pooled, direct string) {
	t.Helper()
	database := create(t, migrated{})
	through := parse(t, Env(t, "STACK_PGBOUNCER_URL"))
	through.Path = database.Database
	return through.String(), database.URL()
}

func create(t testing.TB, migrator pgtestdb.Migrator) *pgtestdb.Config {
	t.Helper()
	super := parse(t, Env(t, "STACK_POSTGRES_URL"))
	password, _ := super.User.Password()
	config := pgtestdb.Config{
		DriverName: "pgx",
		Host:       super.Hostname(), Port: super.Port(), Options: super.RawQuery,
		User: super.User.Username(), Password: password, Database: super.Path[1:],
		TestRole: &pgtestdb.Role{
			Username: Env(t, "POSTGRES_USER"), Password: Env(t, "POSTGRES_PASSWORD"), Capabilities: pgtestdb.DefaultRoleCapabilities,
		},
		ForceTerminateConnections: true, // PgBouncer holds on to a few
	}
	server, err := config.Connect()
	if err == nil {
		err = server.Close()
	}
	if err != nil {
		t.Fatalf("%s (%v)", notUp, err)
	}
	return pgtestdb.Custom(t, config, migrator)
}

// migrated makes the template that every test's database is copied from.
type migrated struct{}

// Hash names the template by the migrations' text, so that an edited migration makes a new one.
func (migrated) Hash() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	return common.HashDirs(os.DirFS(root), "*.sql", "internal/postgres/migrations/platform", "internal/postgres/migrations/expiry")
}

func (migrated) Migrate(ctx context.Context, _ *sql.DB, template pgtestdb.Config) error {
	if err := postgres.MigratePlatformTables(ctx, template.URL()); err != nil {
		return fmt.Errorf("make the platform's tables: %w", err)
	}
	if err := postgres.Migrate(ctx, template.URL()); err != nil {
		return fmt.Errorf("make schema expiry: %w", err)
	}
	return nil
}

func parse(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatalf("read the stack's address of PostgreSQL: %v", err)
	}
	return u
}
