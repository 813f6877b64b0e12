package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// The outcomes of a warning that was never written.
const (
	PassedOver = "passed_over" // a more urgent level became due first
	Void       = "void"        // the deadline passed or moved, or the reservation ended
)

// warningPrefix is how the key of every warning for r's present deadline begins.
var warningPrefix = `r.reservation_id || '/' || floor(extract(epoch from ` + effectiveDeadline + `))::bigint || '/'`

// Approaching is an active reservation whose deadline is near.
type Approaching struct {
	ReservationID string
	Deadline      time.Time           // the effective one
	Recorded      []reservation.Level // the levels that are due, sent or passed over for this deadline
}

// DeadlinesNear reads the active reservations whose deadline is known, not past and at most within ahead, with those
// of the levels that are recorded for it. only narrows it to some reservations; empty means all.
func (db *DB) DeadlinesNear(ctx context.Context, now time.Time, within time.Duration, levels []reservation.Level, only []string) ([]Approaching, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	minutes := make([]int, len(levels))
	for i, level := range levels {
		minutes[i] = int(level)
	}
	rows, err := db.pool.Query(ctx, `
		select r.reservation_id, `+effectiveDeadline+`, array(
		    select level from unnest(@levels::bigint[]) as level
		    where exists (
		        select from expiry.follow_ups f
		        where f.kind = 'warning' and f.key = `+warningPrefix+` || level and coalesce(f.outcome, '') <> 'void'))`+
		fromWithMaster+`
		where r.status = 'active' and `+effectiveDeadline+` > @now and `+effectiveDeadline+` <= @now::timestamptz + @within::interval
		  and (@only::text[] is null or r.reservation_id = any(@only))
		order by 2, 1`, pgx.NamedArgs{"now": now, "within": within, "levels": minutes, "only": orAll(only)})
	if err != nil {
		return nil, fmt.Errorf("read near deadlines: %w", err)
	}
	near, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Approaching, error) {
		var a Approaching
		err := row.Scan(&a.ReservationID, &a.Deadline, &a.Recorded)
		a.Deadline = a.Deadline.UTC()
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("read near deadlines: %w", err)
	}
	return near, nil
}

// WarningRequest is a decision to warn: the level to send, and the less urgent ones that it passes over.
type WarningRequest struct {
	ReservationID string
	Deadline      time.Time // the effective one, as it was believed to be
	Level         reservation.Level
	PassedOver    []reservation.Level
}

// warnBatch is how many reservations get their warning requested in one transaction.
const warnBatch = 500

// RequestWarnings makes the warnings due for those reservations that are still active with the same deadline, and
// records the levels passed over, among them those that were requested before and are not written yet. It returns
// the ids of the reservations to be warned.
func (db *DB) RequestWarnings(ctx context.Context, lease SweepLease, now time.Time, requests []WarningRequest) ([]string, error) {
	var warned []string
	err := inBatches(requests, warnBatch, func(batch []WarningRequest) error {
		var valid []string
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			var err error
			valid, err = requestWarnings(ctx, tx, now, batch)
			return err
		})
		if err != nil {
			return err
		}
		warned = append(warned, valid...)
		return nil
	})
	return warned, err
}

func requestWarnings(ctx context.Context, tx pgx.Tx, now time.Time, batch []WarningRequest) ([]string, error) {
	byID := make(map[string]WarningRequest, len(batch))
	var ids []string
	var deadlines []time.Time
	for _, w := range batch {
		byID[w.ReservationID] = w
		ids, deadlines = append(ids, w.ReservationID), append(deadlines, w.Deadline)
	}
	rows, err := tx.Query(ctx, `
		select r.reservation_id`+fromWithMaster+`
		join unnest(@ids::text[], @deadlines::timestamptz[]) as g (id, deadline) on g.id = r.reservation_id
		where r.status = 'active' and `+effectiveDeadline+` = g.deadline`,
		pgx.NamedArgs{"now": now, "ids": ids, "deadlines": deadlines})
	if err != nil {
		return nil, fmt.Errorf("check %d deadlines: %w", len(batch), err)
	}
	valid, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("check %d deadlines: %w", len(batch), err)
	}
	if len(valid) == 0 {
		return nil, nil
	}
	var due, passedOver []FollowUp
	for _, id := range valid {
		w := byID[id]
		due = append(due, w.followUp(w.Level))
		for _, level := range w.PassedOver {
			passedOver = append(passedOver, w.followUp(level))
		}
	}
	if err := passOver(ctx, tx, due, passedOver); err != nil {
		return nil, err
	}
	return valid, requestFollowUps(ctx, tx, due)
}

func (w WarningRequest) followUp(level reservation.Level) FollowUp {
	return FollowUp{
		Kind: Warning, Key: event.WarningKey(w.ReservationID, w.Deadline, int(level)),
		ReservationID: w.ReservationID, Subject: w.ReservationID,
	}
}

// passOver records levels as passed over, and with them whatever other warning of these reservations is still due: the
// more urgent one replaces it. One that is being written at this moment ends as sent all the same, by its lease.
func passOver(ctx context.Context, tx pgx.Tx, due, passedOver []FollowUp) error {
	var keys, reservations, dueKeys, warned []string
	for _, f := range passedOver {
		keys, reservations = append(keys, f.Key), append(reservations, f.ReservationID)
	}
	for _, f := range due {
		dueKeys, warned = append(dueKeys, f.Key), append(warned, f.ReservationID)
	}
	_, err := tx.Exec(ctx, `
		update expiry.follow_ups f
		set state = 'done', outcome = 'passed_over', finished_at = clock_timestamp(), updated_at = clock_timestamp()
		where f.kind = 'warning' and f.state = 'due' and f.reservation_id = any($1::text[]) and not f.key = any($2::text[])`,
		warned, dueKeys)
	if err != nil {
		return fmt.Errorf("pass over the warnings that are still due: %w", err)
	}
	_, err = tx.Exec(ctx, `
		insert into expiry.follow_ups as f (kind, key, reservation_id, subject, state, outcome, finished_at)
		select 'warning', key, id, id, 'done', 'passed_over', clock_timestamp()
		from unnest($1::text[], $2::text[]) as g (key, id)
		on conflict (kind, key) do update
		set outcome = 'passed_over', updated_at = clock_timestamp() where f.outcome = 'void'`, keys, reservations)
	if err != nil {
		return fmt.Errorf("record the warnings passed over: %w", err)
	}
	return nil
}

// VoidWarnings closes the due warnings that have become pointless: the reservation is not active any more, its deadline
// has passed, moved or become unknown. It returns how many. only narrows it to some reservations; empty means all.
func (db *DB) VoidWarnings(ctx context.Context, lease SweepLease, now time.Time, only []string) (int, error) {
	var voided int
	err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			update expiry.follow_ups f
			set state = 'done', outcome = 'void', finished_at = clock_timestamp(), updated_at = clock_timestamp()
			where f.kind = 'warning' and f.state = 'due' and (@only::text[] is null or f.reservation_id = any(@only))
			  and not exists (
			      select`+fromWithMaster+`
			      where r.reservation_id = f.reservation_id and r.status = 'active' and `+effectiveDeadline+` > @now
			        and starts_with(f.key, `+warningPrefix+`))`, pgx.NamedArgs{"now": now, "only": orAll(only)})
		if err != nil {
			return fmt.Errorf("close pointless warnings: %w", err)
		}
		voided = int(tag.RowsAffected())
		return nil
	})
	return voided, err
}
