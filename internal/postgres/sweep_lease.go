package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// ErrLeaseLost says that a sweep no longer holds its lease: nothing of what was asked for has been written. It is a
// fault.Conflict.
var ErrLeaseLost = fault.Errorf(fault.Conflict, "the sweep has lost its lease")

// SweepLease is a sweep's right to write. Its token is the sweep's id. The zero value gives no right at all, which is
// what a dry run holds: whatever it might try to write fails with ErrLeaseLost.
type SweepLease struct{ token uuid.UUID }

// SweepID returns the id of the sweep that holds the lease.
func (l SweepLease) SweepID() uuid.UUID { return l.token }

// Observation is what a sweep starts from.
type Observation struct {
	Now    time.Time // the database's clock, read once for the whole sweep
	Active int       // all active reservations
	Pause  *Pause    // nil unless paused
	Last   time.Time // when the newest sweep began that was not paused and has decided; zero: there is none
}

const observe = `
	select s.clock, (select count(*) from reservations where status = 'active'), p.paused_at, p.until, p.why,
	       (select started_at from expiry.sweeps where outcome in ('completed', 'partial') and not paused order by started_at desc limit 1)
	from (select clock_timestamp() as clock) s
	left join expiry.pause p on p.until is null or p.until > s.clock`

func scanObservation(row pgx.Row) (Observation, error) {
	var (
		o                    Observation
		pausedAt, till, last *time.Time
		why                  *string
	)
	if err := row.Scan(&o.Now, &o.Active, &pausedAt, &till, &why, &last); err != nil {
		return Observation{}, fmt.Errorf("read the clock, the pause and the number of active reservations: %w", err)
	}
	o.Now, o.Last = o.Now.UTC(), orZero(last)
	if pausedAt != nil {
		o.Pause = &Pause{At: *pausedAt, Until: till, Why: *why}
	}
	return o, nil
}

// Observe reads what a sweep starts from, for a dry run: it takes no lease.
func (db *DB) Observe(ctx context.Context) (Observation, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return scanObservation(db.pool.QueryRow(ctx, observe))
}

// BeginSweep takes the lease for ttl, records the sweep as running and marks those that crashed before it as
// abandoned. It reports false, without an error, where another sweep holds the lease.
func (db *DB) BeginSweep(ctx context.Context, sweepID uuid.UUID, trigger, holder string, ttl time.Duration) (SweepLease, Observation, bool, error) {
	var (
		seen  Observation
		taken bool
	)
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			update expiry.sweep_lease
			set token = $1, holder = $2, expires_at = clock_timestamp() + $3
			where expires_at <= clock_timestamp()`, sweepID, holder, ttl)
		if err != nil {
			return fmt.Errorf("take the sweep's lease: %w", err)
		}
		if taken = tag.RowsAffected() == 1; !taken {
			return nil
		}
		_, err = tx.Exec(ctx, `
			update expiry.sweeps set outcome = 'abandoned', finished_at = clock_timestamp()
			where outcome = 'running'`)
		if err != nil {
			return fmt.Errorf("mark crashed sweeps as abandoned: %w", err)
		}
		if seen, err = scanObservation(tx.QueryRow(ctx, observe)); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			insert into expiry.sweeps (sweep_id, trigger, started_at, paused) values ($1, $2, $3, $4)`,
			sweepID, trigger, seen.Now, seen.Pause != nil)
		if err != nil {
			return fmt.Errorf("record sweep %s: %w", sweepID, err)
		}
		return nil
	})
	if err != nil || !taken {
		return SweepLease{}, Observation{}, false, err
	}
	return SweepLease{token: sweepID}, seen, true, nil
}

// RenewSweep prolongs the lease to ttl from now, or returns ErrLeaseLost.
func (db *DB) RenewSweep(ctx context.Context, lease SweepLease, ttl time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tag, err := db.pool.Exec(ctx, `
		update expiry.sweep_lease set expires_at = clock_timestamp() + $2
		where token = $1 and expires_at > clock_timestamp()`, lease.token, ttl)
	if err != nil {
		return fmt.Errorf("renew the lease of sweep %s: %w", lease.token, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("renew the lease of sweep %s: %w", lease.token, ErrLeaseLost)
	}
	return nil
}

// underLease is inTx for the writes of a sweep. While the transaction runs nobody can take the lease over, so that
// every write of a sweep is committed before the next sweep begins; where it is over already, nothing is written and
// the error is ErrLeaseLost.
//
// `for key share` does both: renewing leaves the key alone and goes on, taking over and finishing change the token,
// which is a key, and wait.
func (db *DB) underLease(ctx context.Context, lease SweepLease, work func(ctx context.Context, tx pgx.Tx) error) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var held bool
		err := tx.QueryRow(unseen(ctx), `
			select true from expiry.sweep_lease where token = $1 and expires_at > clock_timestamp()
			for key share`, lease.token).Scan(&held)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("sweep %s: %w", lease.token, ErrLeaseLost)
		}
		if err != nil {
			return fmt.Errorf("check the lease of sweep %s: %w", lease.token, err)
		}
		return work(ctx, tx)
	})
}

// leased is underLease for one lease.
func (db *DB) leased(lease SweepLease) inTxFunc {
	return func(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
		return db.underLease(ctx, lease, work)
	}
}

// inBatches carries out work in transactions of at most size items. Where one item makes a transaction fail for good
// (a platform's trigger refuses it, say) the batch is halved until that item stands alone: one broken row delays no
// other. The errors come joined.
func inBatches[T any](items []T, size int, work func([]T) error) error {
	var errs []error
	for len(items) > 0 {
		n := min(size, len(items))
		err := work(items[:n])
		var refused *pgconn.PgError
		switch {
		case err == nil:
		case n > 1 && errors.As(err, &refused) && rowsFault(refused.Code):
			err = inBatches(items[:n], (n+1)/2, work)
		case !errors.As(err, &refused) || !rowsFault(refused.Code):
			return errors.Join(append(errs, err)...) // the database or the lease: the rest would fail, too
		}
		if err != nil {
			errs = append(errs, err)
		}
		items = items[n:]
	}
	return errors.Join(errs...)
}

// rowsFault reports whether an SQLSTATE says something about the rows rather than about the database's state: data
// exceptions, a row named twice, violated constraints, and what functions raise.
func rowsFault(sqlstate string) bool {
	switch sqlstate[:2] {
	case "21", "22", "23", "P0":
		return true
	}
	return false
}
