package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Waiting is a reservation that has not got its server yet.
type Waiting struct {
	reservation.Reservation
	fingerprint string
}

// stateFingerprint sums up all that reservation.Stuck looks at.
const stateFingerprint = `md5(jsonb_build_array(
		r.status, r.status_history, r.launched_at::text, r.updated_at::text, r.created_at::text)::text)`

// Waiting reads the reservations that are preparing, queued or pending. only narrows it to some; empty means all.
func (db *DB) Waiting(ctx context.Context, only []string) ([]Waiting, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select `+stateFingerprint+`, `+reservationColumns("r")+`
		from reservations r
		where r.status in ('preparing', 'queued', 'pending') and ($1::text[] is null or r.reservation_id = any($1))
		order by r.created_at, r.reservation_id`, orAll(only))
	if err != nil {
		return nil, fmt.Errorf("read waiting reservations: %w", err)
	}
	waiting, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Waiting, error) {
		var w Waiting
		return w, row.Scan(append([]any{&w.fingerprint}, reservationFields(&w.Reservation)...)...)
	})
	if err != nil {
		return nil, fmt.Errorf("read waiting reservations: %w", err)
	}
	return waiting, nil
}

// StuckEnding is a decision to end a reservation that never got its server.
type StuckEnding struct {
	Waiting
	To     reservation.Status // Failed or Cancelled
	Reason string
}

// EndStuck ends those of the given reservations whose state nobody has touched since it was read, and returns the ids
// of those that ended. Each is announced and gets its cleanup with it.
func (db *DB) EndStuck(ctx context.Context, lease SweepLease, now time.Time, stuck []StuckEnding) ([]string, error) {
	endings := make([]Ending, len(stuck))
	for i, s := range stuck {
		endings[i] = Ending{ReservationID: s.ID, To: s.To, Reason: s.Reason, Untimely: true, believed: s.fingerprint}
	}
	return db.endReservations(ctx, lease, now, endings, `
		r.status in ('preparing', 'queued', 'pending') and `+stateFingerprint+` = g.believed`, nil)
}
