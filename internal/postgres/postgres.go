// Package postgres is the only place that speaks SQL: the platform's tables, which it reads and changes under
// guard, and schema expiry, which is this service's own. Each exported method is one statement or one transaction,
// and all of it works through PgBouncer in transaction mode: no session state survives a call.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// DB is a pool of connections. It is safe for concurrent use.
type DB struct {
	pool *pgxpool.Pool
}

// Options tune Open. The zero value is right for most callers.
type Options struct {
	MaxConns int32           // 0: 16
	Tracer   pgx.QueryTracer // nil: none
	// Configure has the last word: for simulations, which keep prepared statements, as PgBouncer in transaction mode
	// does not, lest their database spend its time planning the same ones. nil: none.
	Configure func(*pgxpool.Config)
}

// statementTimeout bounds every statement on the client's side, where PgBouncer would swallow a SET.
const statementTimeout = 15 * time.Second

// Open prepares a pool for url and dials nothing: the first query does.
func Open(ctx context.Context, url string, opts Options) (*DB, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("parse the database URL: malformed") // pgx's own message may quote the password
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statements: works behind PgBouncer
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.ConnConfig.Tracer = opts.Tracer
	config.MaxConns = 16
	if opts.MaxConns > 0 {
		config.MaxConns = opts.MaxConns
	}
	config.MinConns = 0
	if opts.Configure != nil {
		opts.Configure(config)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the database pool: %w", err)
	}
	return &DB{pool: pool}, nil
}

// Close waits for borrowed connections and closes the pool.
func (db *DB) Close() { db.pool.Close() }

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	if err := db.pool.Ping(ctx); err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	return nil
}

// Now returns the database's clock, the only one that decides.
func (db *DB) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if err := db.pool.QueryRow(ctx, "select clock_timestamp()").Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("read the database clock: %w", err)
	}
	return now.UTC(), nil
}

// serializationFailure and deadlockDetected are worth the same transaction once more.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	transactionAttempts  = 5
)

// inTx runs work in one transaction, and again from the start where PostgreSQL asked for that. The context it hands on
// bounds all of that: work has no business with another.
func (db *DB) inTx(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var err error
	for range transactionAttempts {
		err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error { return work(ctx, tx) })
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || (pgErr.Code != serializationFailure && pgErr.Code != deadlockDetected) {
			return err
		}
	}
	return err
}

// executor is a transaction, or the pool for a statement that is one by itself, which spares it two ways to the database.
type executor interface {
	Exec(ctx context.Context, statement string, args ...any) (pgconn.CommandTag, error)
}

// exec runs one statement by itself and returns how many rows it touched.
func (db *DB) exec(ctx context.Context, statement string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tag, err := db.pool.Exec(ctx, statement, args...)
	return tag.RowsAffected(), err
}

// query runs one statement by itself and collects what it returns.
func query[T any](ctx context.Context, db *DB, scan pgx.RowToFunc[T], statement string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// unseen has statements make no spans: those that pick and tick off one piece of work after the other, and those that
// check a lease, say nothing by themselves and would be half of a sweep's.
func unseen(ctx context.Context) context.Context { return trace.ContextWithSpan(ctx, noop.Span{}) }

// storable drops what a text column refuses: NUL, and bytes that are no UTF-8. Errors and events of others may hold both.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "")
}
