package stacktest

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver that pgtestdb is told to use
	"github.com/peterldowns/pgtestdb"
	"github.com/peterldowns/pgtestdb/migrators/common"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Database returns the URL of a fresh database with the platform's tables and schema expiry, for their owner; AsService
// makes it the service's. It is dropped when the test ends, and kept where the test has failed.
func Database(t testing.TB) string {
	t.Helper()
	return create(t, migrated{ServiceRole(t)}).URL()
}

// EmptyDatabase is Database without any table.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return create(t, pgtestdb.NoopMigrator{}).URL()
}

// PooledDatabase returns the URLs of one fresh database: through PgBouncer in transaction mode, and past it.
func PooledDatabase(t testing.TB) (pooled, direct string) {
	t.Helper()
	database := create(t, migrated{ServiceRole(t)})
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
	}
	server, err := config.Connect()
	if err == nil {
		err = server.Close()
	}
	if err != nil {
		t.Fatalf("%s (%v)", notUp, err)
	}
	database := pgtestdb.Custom(t, config, migrator)
	t.Cleanup(func() {
		if !t.Failed() { // first, and by force: PgBouncer holds on to some connections, and may just be making another
			force(t, super.String(), "drop database "+pgx.Identifier{database.Database}.Sanitize()+" with (force)")
		}
	})
	return database
}

// force runs a statement whose failure another step will report.
func force(t testing.TB, url, statement string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		_, err = conn.Exec(ctx, statement)
		err = errors.Join(err, conn.Close(ctx))
	}
	if err != nil {
		t.Logf("%s: %v", statement, err)
	}
}

// migrated makes the template that every test's database is copied from, with what is granted to the service.
type migrated struct{ service string }

// Hash names the template by the text of the migrations and grants, so that an edited one makes a new one.
func (m migrated) Hash() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	migrations, err := common.HashDirs(os.DirFS(root), "*.sql", "internal/postgres/migrations/platform", "internal/postgres/migrations/expiry")
	if err != nil {
		return "", fmt.Errorf("hash the migrations: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(migrations+postgres.Grants(m.service)))), nil
}

func (m migrated) Migrate(ctx context.Context, _ *sql.DB, template pgtestdb.Config) error {
	if err := postgres.MigratePlatformTables(ctx, template.URL()); err != nil {
		return fmt.Errorf("make the platform's tables: %w", err)
	}
	if err := postgres.Migrate(ctx, template.URL()); err != nil {
		return fmt.Errorf("make schema expiry: %w", err)
	}
	return postgres.Grant(ctx, template.URL(), m.service)
}

func parse(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatalf("read the stack's address of PostgreSQL: %v", err)
	}
	return u
}
