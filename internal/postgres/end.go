package postgres

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Ending is a decision to end a reservation.
type Ending struct {
	ReservationID string
	To            reservation.Status // Expired, Failed or Cancelled
	Reason        string             // one plain sentence for the user, the history, the fact and the log
	Untimely      bool               // it did not end as agreed: the reason goes into failure_reason, too

	// believed is what the decision was made from, as text that the guard of its statement compares.
	believed string
}

// endBatch is how many reservations end in one transaction: few enough that nobody waits long for a row.
const endBatch = 500

// endedFact names the fact that announces an ending.
var endedFact = map[reservation.Status]string{
	reservation.Expired:   event.ReservationExpired,
	reservation.Failed:    event.ReservationFailed,
	reservation.Cancelled: event.ReservationCancelled,
}

// endReservations ends those of the given reservations for which guard still holds, announces each and asks for its
// cleanup, in transactions of endBatch. It returns the ids of those that ended; the others have changed since the decision, or
// somebody is changing them at this moment, and the next tick looks at them anew.
//
// guard is a condition on r (the reservation), m (its set's master, if it has one), g.believed (Ending.believed) and
// @now; guardArgs are its further named arguments. It is evaluated with both rows locked: whoever extends or cancels
// has either committed, and is seen, or comes after.
func (db *DB) endReservations(ctx context.Context, lease SweepLease, now time.Time, endings []Ending, guard string, guardArgs pgx.NamedArgs) ([]string, error) {
	var ended []string
	err := inBatches(endings, endBatch, func(batch []Ending) error {
		var done []string
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			locked, err := lockReservations(ctx, tx, batch)
			if err != nil {
				return err
			}
			done, err = endLocked(ctx, tx, now, batch, locked, guard, guardArgs)
			return err
		})
		if err != nil {
			return err
		}
		ended = append(ended, done...)
		return nil
	})
	return ended, err
}

// lockReservations locks the rows and those of their masters, and returns the ids that it got. It never waits for
// anybody while it holds locks: a user's transaction can neither be made to wait for long nor be chosen as the victim
// of a deadlock. A row in somebody's hands is left for the next tick.
func lockReservations(ctx context.Context, tx pgx.Tx, batch []Ending) ([]string, error) {
	ids := make([]string, len(batch))
	for i, e := range batch {
		ids[i] = e.ReservationID
	}
	rows, err := tx.Query(ctx, `
		select reservation_id from reservations
		where reservation_id in (
		    select unnest($1::text[])
		    union
		    select master_reservation_id from reservations where reservation_id = any($1::text[]))
		order by reservation_id
		for no key update skip locked`, ids) // no key: a row of disks that refers to it is no obstacle
	if err != nil {
		return nil, fmt.Errorf("lock %d reservations: %w", len(ids), err)
	}
	locked, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("lock %d reservations: %w", len(ids), err)
	}
	return locked, nil
}

func endLocked(ctx context.Context, tx pgx.Tx, now time.Time, batch []Ending, locked []string, guard string, guardArgs pgx.NamedArgs) ([]string, error) {
	args := pgx.NamedArgs{"now": now, "at": now.UTC().Format(time.RFC3339Nano), "locked": locked}
	maps.Copy(args, guardArgs)
	byID := make(map[string]Ending, len(batch))
	var ids, to, reasons, believed []string
	var untimely []bool
	for _, e := range batch {
		byID[e.ReservationID] = e
		ids, to = append(ids, e.ReservationID), append(to, string(e.To))
		reasons, believed = append(reasons, e.Reason), append(believed, e.believed)
		untimely = append(untimely, e.Untimely)
	}
	args["ids"], args["to"], args["reasons"], args["believed"], args["untimely"] = ids, to, reasons, believed, untimely
	rows, err := tx.Query(ctx, `
		update reservations r
		set status                  = g.status,
		    reservation_ended       = @now,
		    failed_at               = case when g.status = 'failed' then @now else r.failed_at end,
		    cancelled_at            = case when g.status = 'cancelled' then @now else r.cancelled_at end,
		    failure_reason          = case when g.untimely then g.reason else r.failure_reason end,
		    current_detailed_status = g.reason,
		    status_history          = case when jsonb_typeof(coalesce(r.status_history, '[]')) = 'array'
		        then coalesce(r.status_history, '[]') ||
		             jsonb_build_object('status', g.status, 'timestamp', @at::text, 'message', g.reason)
		        else r.status_history end
		from unnest(@ids::text[], @to::text[], @reasons::text[], @untimely::bool[], @believed::text[])
		     as g (id, status, reason, untimely, believed)
		join reservations own on own.reservation_id = g.id
		left join reservations m on m.reservation_id = own.master_reservation_id and m.reservation_id <> own.reservation_id
		where r.reservation_id = own.reservation_id and r.reservation_id = any(@locked::text[])
		  and (m.reservation_id is null or m.reservation_id = any(@locked::text[]))
		  and (`+guard+`)
		returning r.reservation_id, coalesce(r.user_id, ''), case when `+effectiveDeadline+` < @now then `+effectiveDeadline+` end`, args)
	if err != nil {
		return nil, fmt.Errorf("end %d reservations: %w", len(batch), err)
	}
	var ended []string
	var facts []newFact
	var cleanups []FollowUp
	for rows.Next() {
		var data event.Ended
		if err := rows.Scan(&data.ReservationID, &data.UserID, &data.ExpiresAt); err != nil {
			rows.Close()
			return nil, fmt.Errorf("read which reservations ended: %w", err)
		}
		e := byID[data.ReservationID]
		data.Reason, data.EndedAt = e.Reason, now
		ended = append(ended, e.ReservationID)
		facts = append(facts, newFact{Type: endedFact[e.To], Subject: e.ReservationID, Data: data})
		cleanups = append(cleanups, FollowUp{Kind: Cleanup, Key: e.ReservationID, ReservationID: e.ReservationID, Subject: e.ReservationID})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("end %d reservations: %w", len(batch), err)
	}
	if len(ended) == 0 {
		return nil, nil
	}
	// One of which a cleanup was asked for before has come back to life since. Whoever is at work on it sees for himself.
	_, err = tx.Exec(ctx, `
		update expiry.cleanups set revived_at = clock_timestamp()
		where reservation_id in (select reservation_id from expiry.cleanups
		                         where revived_at is null and reservation_id = any($1::text[]) for no key update skip locked)`, ended)
	if err != nil {
		return nil, fmt.Errorf("record that %d reservations had come back to life: %w", len(ended), err)
	}
	if err := recordFacts(ctx, tx, facts); err != nil {
		return nil, err
	}
	if err := requestFollowUps(ctx, tx, cleanups); err != nil {
		return nil, err
	}
	return ended, wakeCleanups(ctx, tx, ended)
}

// soundDeadline is reservation.DeadlineAnomaly's NoAnomaly in SQL, for the row under the given alias.
func soundDeadline(alias string) string {
	return strings.ReplaceAll(`(
		    x.expires_at >= '2000-01-01 00:00:00Z' and x.expires_at <= @now::timestamptz + interval '17520 hours'
		    and not coalesce(x.created_at < '2000-01-01 00:00:00Z' or x.created_at = 'infinity' or x.expires_at < x.created_at, false)
		    and not coalesce(x.launched_at < '2000-01-01 00:00:00Z' or x.launched_at = 'infinity' or x.expires_at < x.launched_at, false))`,
		"x.", alias+".")
}

// effectiveDeadline is reservation.EffectiveDeadline in SQL, for r left joined to its master m: NULL where unknown.
var effectiveDeadline = `(case
		when ` + soundDeadline("r") + `
		 and (m.reservation_id is null or ` + soundDeadline("m") + ` or coalesce(m.status, '') in ('expired', 'cancelled', 'failed'))
		then greatest(r.expires_at, case when ` + soundDeadline("m") + ` then m.expires_at end) end)`

// fromWithMaster joins each reservation r to its set's master m.
const fromWithMaster = `
		from reservations r
		left join reservations m on m.reservation_id = r.master_reservation_id and m.reservation_id <> r.reservation_id`
