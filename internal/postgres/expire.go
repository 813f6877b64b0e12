package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// SetMember is a reservation together with the master of its multinode set.
type SetMember struct {
	reservation.Reservation
	Master *reservation.Reservation // nil where it has none, or the row is gone
}

func scanSetMember(row pgx.CollectableRow) (SetMember, error) {
	var member SetMember
	var master reservation.Reservation
	err := row.Scan(append(reservationFields(&member.Reservation), reservationFields(&master)...)...)
	if master.ID != "" {
		member.Master = &master
	}
	return member, err
}

// DeadlinesPast reads the active reservations that are overdue (reservation.Overdue) and those whose deadline is
// unknown, which are to be reported. only narrows it to some reservations; empty means all.
func (db *DB) DeadlinesPast(ctx context.Context, now time.Time, grace time.Duration, only []string) ([]SetMember, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select `+reservationColumns("r")+`, `+reservationColumns("m")+fromWithMaster+`
		where r.status = 'active' and coalesce(`+effectiveDeadline+` + @grace::interval < @now, true)
		  and (@only::text[] is null or r.reservation_id = any(@only))
		order by r.expires_at, r.reservation_id`, pgx.NamedArgs{"now": now, "grace": grace, "only": orAll(only)})
	if err != nil {
		return nil, fmt.Errorf("read past deadlines: %w", err)
	}
	past, err := pgx.CollectRows(rows, scanSetMember)
	if err != nil {
		return nil, fmt.Errorf("read past deadlines: %w", err)
	}
	return past, nil
}

// Expiry is a decision to expire a reservation at the end of its time.
type Expiry struct {
	ReservationID string
	Deadline      time.Time // the effective one, as it was believed to be
	Reason        string
}

// Expire expires those of the given reservations that are still active with the same deadline, grace past by the
// database's clock, and returns the ids of those that did. Each is announced and gets its cleanup with it.
func (db *DB) Expire(ctx context.Context, lease SweepLease, now time.Time, grace time.Duration, expiries []Expiry) ([]string, error) {
	endings := make([]Ending, len(expiries))
	for i, e := range expiries {
		endings[i] = Ending{
			ReservationID: e.ReservationID, To: reservation.Expired, Reason: e.Reason,
			believed: e.Deadline.UTC().Format(time.RFC3339Nano),
		}
	}
	return db.endReservations(ctx, lease, now, endings, `
		r.status = 'active'
		and `+effectiveDeadline+` = g.believed::timestamptz
		and g.believed::timestamptz + @grace::interval < clock_timestamp()`, pgx.NamedArgs{"grace": grace})
}

// orAll makes "all" of an empty selection: SQL's null.
func orAll(only []string) []string {
	if len(only) == 0 {
		return nil
	}
	return only
}
