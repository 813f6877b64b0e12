package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

const (
	expiryVersions   = "expiry.schema_version"
	platformVersions = "expiry.platform_tables_version"

	uniqueViolation = "23505"
)

// ErrLocked says that others held for too long what a migration needs. Who waits for a lock makes everybody else wait
// behind it, the platform too.
var ErrLocked = errors.New("another session holds a lock that this needs: find it in pg_stat_activity (its xact_start is old), let it end, and run the same again")

// Migrate creates or upgrades schema expiry and nothing else, and calls done for each migration that it applied. It is
// idempotent.
func Migrate(ctx context.Context, url string, done ...func(file string, took time.Duration)) error {
	return migrate(ctx, url, "expiry", expiryVersions, done)
}

// MigratePlatformTables creates the platform's tables where they are absent, for demos and tests, and calls done for
// each migration that it applied. It is idempotent.
func MigratePlatformTables(ctx context.Context, url string, done ...func(file string, took time.Duration)) error {
	return migrate(ctx, url, "platform", platformVersions, done)
}

func migrate(ctx context.Context, url, folder, versions string, done []func(string, time.Duration)) error {
	config, err := connConfig(url)
	if err != nil {
		return err
	}
	db := sql.OpenDB(impatient{stdlib.GetConnector(*config)})
	defer func() { _ = db.Close() }()
	if err := createSchema(ctx, db); err != nil {
		return fmt.Errorf("create schema expiry: %w", locked(err))
	}
	provider, err := newProvider(db, folder, versions)
	if err != nil {
		return err
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", folder, locked(err))
	}
	for _, a := range applied {
		for _, tell := range done {
			tell(path.Base(a.Source.Path), a.Duration)
		}
	}
	return nil
}

func createSchema(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var taken *pgconn.PgError // "if not exists" does not look at what another is just creating
	if _, err := tx.ExecContext(ctx, "create schema if not exists expiry"); errors.As(err, &taken) && taken.Code == uniqueViolation {
		return nil
	} else if err != nil {
		return err
	}
	return tx.Commit()
}

func locked(err error) error {
	var held *pgconn.PgError
	if errors.As(err, &held) && held.Code == lockNotAvailable {
		return fmt.Errorf("%w (%w)", ErrLocked, err)
	}
	return err
}

// impatient makes connections in whose transactions nothing waits long for a lock. It is set in each of them: PgBouncer
// would give a session's setting to others.
type impatient struct{ driver.Connector }

// Connect implements driver.Connector.
func (i impatient) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := i.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return impatientConn{c.(*stdlib.Conn)}, nil
}

type impatientConn struct{ *stdlib.Conn }

// BeginTx implements driver.ConnBeginTx.
func (c impatientConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.Conn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	if _, err := c.ExecContext(ctx, "set local lock_timeout = '5s'", nil); err != nil {
		_ = tx.Rollback()
		return nil, err
	}
	return tx, nil
}

func newProvider(db *sql.DB, folder, versions string) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+folder)
	if err != nil {
		return nil, fmt.Errorf("read migrations of %s: %w", folder, err)
	}
	store, err := database.NewStore(database.DialectPostgres, versions)
	if err != nil {
		return nil, fmt.Errorf("open version table %s: %w", versions, err)
	}
	// A table, not an advisory lock: that would belong to a session, which PgBouncer does not keep for us.
	locker, err := lock.NewPostgresTableLocker(
		lock.WithTableName("expiry.migration_lock"),
		lock.WithTableLockTimeout(250*time.Millisecond, 4*60), // a minute
	)
	if err != nil {
		return nil, fmt.Errorf("prepare the migration lock: %w", err)
	}
	provider, err := goose.NewProvider("", db, files, goose.WithStore(store), goose.WithLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("load migrations of %s: %w", folder, err)
	}
	return provider, nil
}

// ErrSchema says that schema expiry is missing or older than this binary.
var ErrSchema = errors.New("schema expiry is missing or out of date: run `reservation-expiry migrate`")

// CheckSchema returns ErrSchema unless schema expiry has every migration this binary carries.
func (db *DB) CheckSchema(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var exists bool
	err := db.pool.QueryRow(ctx, "select to_regclass($1) is not null", expiryVersions).Scan(&exists)
	if err != nil {
		return fmt.Errorf("look for schema expiry: %w", err)
	}
	if !exists {
		return ErrSchema
	}
	var version int64
	err = db.pool.QueryRow(ctx, "select coalesce(max(version_id), 0) from expiry.schema_version where is_applied").Scan(&version)
	if err != nil {
		return fmt.Errorf("read the version of schema expiry: %w", err)
	}
	if version < latestVersion() {
		return ErrSchema
	}
	return nil
}

// latestVersion is the highest migration number embedded in this binary.
func latestVersion() int64 {
	entries, err := migrations.ReadDir("migrations/expiry")
	if err != nil || len(entries) == 0 {
		panic("the binary carries no migrations") // embedded at build time: cannot happen at run time
	}
	version, err := goose.NumericComponent(entries[len(entries)-1].Name())
	if err != nil {
		panic(err)
	}
	return version
}

func connConfig(url string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("parse the database URL: malformed") // pgx's own message may quote the password
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statements: works behind PgBouncer
	return config, nil
}
