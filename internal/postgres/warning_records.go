package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// WarningSubject is the reservation that a warning or notice is about, as its row is now. Where that names no disk,
// DiskName is of the one that it holds.
type WarningSubject struct {
	reservation.Reservation

	Deadline time.Time           // the effective one; zero unless Anomaly is empty
	Anomaly  reservation.Anomaly // why there is none
	Now      time.Time           // the database's clock at this reading
}

// LoadWarningSubject reads the reservation again. It reports false where the row is gone; the subject then has what is
// remembered of whose it was, for its trace.
func (db *DB) LoadWarningSubject(ctx context.Context, reservationID string) (WarningSubject, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	s, found, err := readWarningSubject(ctx, db.pool, reservationID, "")
	if err == nil && !found {
		s.Reservation, err = db.remembered(ctx, reservationID)
	}
	return s, found, err
}

// remembered says of a reservation whose row is gone what its cleanup or its trace remembers.
func (db *DB) remembered(ctx context.Context, reservationID string) (reservation.Reservation, error) {
	r := reservation.Reservation{ID: reservationID}
	err := db.pool.QueryRow(ctx, `
		select coalesce(c.user_id, t.user_id, ''), coalesce(c.gpu_type, t.gpu_type, ''), coalesce(c.status, t.status, '')
		from (values ($1::text)) as given (reservation_id)
		left join expiry.cleanups c using (reservation_id)
		left join expiry.traces t using (reservation_id)`, reservationID).Scan(&r.UserID, &r.GPUType, &r.Status)
	if err != nil {
		return r, fmt.Errorf("read what is remembered of reservation %s: %w", reservationID, err)
	}
	return r, nil
}

type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readWarningSubject(ctx context.Context, q queryer, reservationID, lock string) (WarningSubject, bool, error) {
	var s WarningSubject
	var master reservation.Reservation
	var held string
	targets := append(reservationFields(&s.Reservation), reservationFields(&master)...)
	err := q.QueryRow(ctx, `
		select `+reservationColumns("r")+`, `+reservationColumns("m")+`, clock_timestamp(),
		       coalesce((select min(d.disk_name) from disks d where d.reservation_id = r.reservation_id and d.in_use), '')
		from reservations r
		left join reservations m on m.reservation_id = r.master_reservation_id and m.reservation_id <> r.reservation_id
		where r.reservation_id = $1 `+lock, reservationID).Scan(append(targets, &s.Now, &held)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return WarningSubject{}, false, nil
	}
	if err != nil {
		return WarningSubject{}, false, fmt.Errorf("read reservation %s: %w", reservationID, err)
	}
	s.DiskName, s.Now = cmp.Or(s.DiskName, held), s.Now.UTC()
	var set *reservation.Reservation
	if master.ID != "" {
		set = &master
	}
	s.Deadline, s.Anomaly = reservation.EffectiveDeadline(s.Reservation, set, s.Now)
	return s, true, nil
}

// RecordWarningSent records that a warning for the deadline has been written: the platform's columns, the fact and the
// follow-up, which is its only record per deadline. It reports false, and changes nothing, where the reservation is not
// active any more, its deadline has moved, or the follow-up's lease has passed to somebody else.
func (db *DB) RecordWarningSent(ctx context.Context, f FollowUp, deadline time.Time, level reservation.Level) (bool, error) {
	errNotOurs := errors.New("not ours to record")
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		s, found, err := readWarningSubject(ctx, tx, f.ReservationID, "for update of r")
		if err != nil {
			return err
		}
		if !found || s.Status != reservation.Active || s.Anomaly != reservation.NoAnomaly || !s.Deadline.Equal(deadline) {
			return errNotOurs
		}
		sent, err := levelsSent(ctx, tx, f.ReservationID, deadline)
		if err != nil {
			return err
		}
		merged := reservation.MergeWarningsSent(s.WarningsSent, append(sent, level))
		var at time.Time
		err = tx.QueryRow(ctx, `
			update reservations
			set warnings_sent = $2, last_warning_time = floor(extract(epoch from clock_timestamp()))::bigint
			where reservation_id = $1 and status = 'active'
			returning clock_timestamp()`, f.ReservationID, string(merged)).Scan(&at)
		if err != nil {
			return fmt.Errorf("record the warning of %s: %w", f.ReservationID, err)
		}
		err = recordFact(ctx, tx, event.ReservationWarned, f.ReservationID, event.Warned{ReservationID: f.ReservationID,
			UserID: s.UserID, LevelMinutes: int(level), ExpiresAt: deadline.UTC(), WarnedAt: at.UTC()})
		if err != nil {
			return err
		}
		held, err := finishFollowUp(ctx, tx, f, "sent")
		if err == nil && !held {
			err = errNotOurs
		}
		return err
	})
	if errors.Is(err, errNotOurs) {
		return false, nil
	}
	return err == nil, err
}

// levelsSent returns the levels already sent for the deadline.
func levelsSent(ctx context.Context, tx pgx.Tx, reservationID string, deadline time.Time) ([]reservation.Level, error) {
	rows, err := tx.Query(ctx, `
		select substring(key from '[0-9]+$')::int from expiry.follow_ups
		where kind = 'warning' and reservation_id = $1 and outcome = 'sent'
		  and key ~ ('/' || $2::text || '/[0-9]{1,6}$')`, reservationID, fmt.Sprint(deadline.Unix()))
	if err != nil {
		return nil, fmt.Errorf("read the warnings of %s: %w", reservationID, err)
	}
	levels, err := pgx.CollectRows(rows, pgx.RowTo[reservation.Level])
	if err != nil {
		return nil, fmt.Errorf("read the warnings of %s: %w", reservationID, err)
	}
	return levels, nil
}

// OOMKill is an out-of-memory kill as recorded.
type OOMKill struct {
	Container  string
	FinishedAt time.Time
}

// NewestOOMKill returns the latest out-of-memory kill of the reservation. It reports false where there was none.
func (db *DB) NewestOOMKill(ctx context.Context, reservationID string) (OOMKill, bool, error) {
	k, found, err := first(query(ctx, db, pgx.RowToStructByPos[OOMKill], `
		select container, finished_at from expiry.oom_kills
		where reservation_id = $1 order by finished_at desc, container_id limit 1`, reservationID))
	if err != nil {
		return OOMKill{}, false, fmt.Errorf("read the out-of-memory kills of %s: %w", reservationID, err)
	}
	return k, found, nil
}
