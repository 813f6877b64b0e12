package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Pause says since when, until when and why sweeps decide nothing new.
type Pause struct {
	At    time.Time  `json:"at"`
	Until *time.Time `json:"until,omitempty"` // nil: until resumed
	Why   string     `json:"why"`
}

// Pause stops sweeps from deciding anything new, for a time or, with 0, until Resume. A second pause replaces the
// first; a sweep that has begun goes on.
func (db *DB) Pause(ctx context.Context, why string, during time.Duration) (Pause, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var p Pause
	err := db.pool.QueryRow(ctx, `
		insert into expiry.pause as p (paused_at, until, why)
		values (clock_timestamp(), case when $2 > interval '0' then clock_timestamp() + $2 end, $1)
		on conflict (singleton) do update
		set paused_at = excluded.paused_at, until = excluded.until, why = excluded.why
		returning p.paused_at, p.until, p.why`, why, during).Scan(&p.At, &p.Until, &p.Why)
	if err != nil {
		return Pause{}, fmt.Errorf("pause: %w", err)
	}
	return p, nil
}

// Resume ends the pause. It reports whether there was one; asking twice does no harm.
func (db *DB) Resume(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var wasPaused bool
	err := db.pool.QueryRow(ctx, `
		with ended as (delete from expiry.pause returning until)
		select exists (select from ended where until is null or until > clock_timestamp())`).Scan(&wasPaused)
	if err != nil {
		return false, fmt.Errorf("resume: %w", err)
	}
	return wasPaused, nil
}

// Paused returns the pause that holds at this moment, nil where none does.
func (db *DB) Paused(ctx context.Context) (*Pause, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select paused_at, until, why from expiry.pause where until is null or until > clock_timestamp()`)
	if err != nil {
		return nil, fmt.Errorf("read the pause: %w", err)
	}
	paused, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Pause, error) {
		var p Pause
		return p, row.Scan(&p.At, &p.Until, &p.Why)
	})
	if err != nil {
		return nil, fmt.Errorf("read the pause: %w", err)
	}
	if len(paused) == 0 {
		return nil, nil //nolint:nilnil // not paused is no error
	}
	return &paused[0], nil
}
