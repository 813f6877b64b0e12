package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Backlog counts what there is and what is not done, at one moment. Times are zero where there is none.
type Backlog struct {
	Now          time.Time
	Reservations map[string]int // by status, as the column has it

	Cleanups      int // not settled, those that are only asked for included
	CleanupsStuck int
	OldestCleanup time.Time
	DisksHeld     int // in use by a reservation that has ended

	Snapshots      int // neither completed nor given up
	OldestSnapshot time.Time

	FollowUps FollowUpCounts

	Facts        int // not announced
	FactsFailing int // of these, those that were tried
	OldestFact   time.Time
	FactError    string // of the one tried last

	DeadLetters int // not sent again since they came
}

// FollowUpCounts are the follow-ups that are not done, each counted once.
type FollowUpCounts struct {
	UnderWay int // under lease
	Due      int // their time has come
	Waiting  int // their time is yet to come, and nothing failed
	Failing  int // tried again later
	Stuck    int // failed so often that they count as stuck
}

// Backlog reads the counts. From stuckAfter failures in a row on, work counts as stuck.
func (db *DB) Backlog(ctx context.Context, stuckAfter int) (Backlog, error) {
	b, _, err := first(query(ctx, db, scanBacklog, `
		with clock as (
		    select clock_timestamp() as now
		), statuses as (
		    select coalesce(jsonb_object_agg(status, n), '{}') as counts
		    from (select coalesce(status, '') as status, count(*) as n from reservations group by 1) s
		), open_cleanups as (
		    `+unfinished+`
		), cleanups as (
		    select count(*) as n, min(since) as oldest from open_cleanups
		), held as (
		    select count(*) as n from disks d join reservations r using (reservation_id)
		    where d.in_use and r.status in ('expired', 'cancelled', 'failed')
		), snapshots as (
		    select count(*) as n, min(intended_at) as oldest from expiry.snapshots where state in ('intended', 'pending')
		), follow_ups as (
		    select kind, attempts >= $1 as stuck, attempts > 0 as failing, lease_expires_at > now as under_way, due_at <= now as due
		    from expiry.follow_ups, clock where state = 'due'
		), counted as (
		    select count(*) filter (where stuck and kind in ('cleanup', 'snapshot.sync')) as cleanups_stuck,
		           count(*) filter (where stuck) as stuck,
		           count(*) filter (where under_way and not stuck) as under_way,
		           count(*) filter (where failing and under_way is not true and not stuck) as failing,
		           count(*) filter (where due and not failing and under_way is not true) as due,
		           count(*) filter (where not due and not failing and under_way is not true) as waiting
		    from follow_ups
		), facts as (
		    select count(*) as n, min(occurred_at) as oldest, count(*) filter (where attempts > 0) as failing,
		           (array_agg(last_error order by try_again_at desc) filter (where last_error is not null))[1] as error
		    from expiry.facts where published_at is null
		), letters as (
		    select count(*) as n from expiry.dead_letters where replayed_at is null or replayed_at < received_at
		)
		select clock.now, statuses.counts, cleanups.n, counted.cleanups_stuck, cleanups.oldest, held.n, snapshots.n, snapshots.oldest,
		       counted.under_way, counted.due, counted.waiting, counted.failing, counted.stuck,
		       facts.n, facts.failing, facts.oldest, coalesce(facts.error, ''), letters.n
		from clock, statuses, cleanups, held, snapshots, counted, facts, letters`, stuckAfter))
	if err != nil {
		return Backlog{}, fmt.Errorf("count what is not done: %w", err)
	}
	return b, nil
}

func scanBacklog(row pgx.CollectableRow) (Backlog, error) {
	var b Backlog
	var counts json.RawMessage
	var cleanup, snapshot, fact *time.Time
	err := row.Scan(&b.Now, &counts, &b.Cleanups, &b.CleanupsStuck, &cleanup, &b.DisksHeld, &b.Snapshots, &snapshot,
		&b.FollowUps.UnderWay, &b.FollowUps.Due, &b.FollowUps.Waiting, &b.FollowUps.Failing, &b.FollowUps.Stuck,
		&b.Facts, &b.FactsFailing, &fact, &b.FactError, &b.DeadLetters)
	if err == nil {
		err = json.Unmarshal(counts, &b.Reservations)
	}
	if err != nil {
		return Backlog{}, fmt.Errorf("read the counts: %w", err)
	}
	b.Now = b.Now.UTC()
	b.OldestCleanup, b.OldestSnapshot, b.OldestFact = orZero(cleanup), orZero(snapshot), orZero(fact)
	return b, nil
}

// unfinished selects the cleanups that are not done: begun and not settled, or asked for and not begun. Of a reservation
// that is live again none is to be done.
var unfinished = `
		    select c.reservation_id, c.requested_at as since, true as begun
		    from expiry.cleanups c left join reservations r using (reservation_id)
		    where c.settled_at is null and (r.reservation_id is null or ` + isOver + `)
		    union all
		    select f.reservation_id, f.created_at, false from expiry.follow_ups f
		    where f.kind = 'cleanup' and f.state = 'due'
		      and not exists (select from expiry.cleanups c where c.reservation_id = f.reservation_id)`

// UnfinishedCleanup is a cleanup that is not done.
type UnfinishedCleanup struct {
	ReservationID string
	UserID        string
	DiskName      string
	Since         time.Time // when it was asked for
	Begun         bool
	StepsDone     int
	OpenStep      Step   // the one begun first of those that are open; empty where none is
	WaitsFor      string // what that one says of itself
	StepError     string // its last failure

	// FollowUp goes on with it, and is nil where none is due: the next tick asks for one.
	FollowUp *FollowUpRecord
}

// UnfinishedCleanups reads the oldest of them.
func (db *DB) UnfinishedCleanups(ctx context.Context, limit int) ([]UnfinishedCleanup, error) {
	open, err := query(ctx, db, func(row pgx.CollectableRow) (UnfinishedCleanup, error) {
		var u UnfinishedCleanup
		err := row.Scan(&u.ReservationID, &u.UserID, &u.DiskName, &u.Since, &u.Begun, &u.StepsDone, &u.OpenStep, &u.WaitsFor, &u.StepError)
		return u, err
	}, `
		select u.reservation_id, coalesce(c.user_id, r.user_id, ''), coalesce(c.disk_name, r.disk_name, ''), u.since, u.begun,
		       (select count(*) from expiry.cleanup_steps s where s.reservation_id = u.reservation_id and s.finished_at is not null),
		       coalesce(step.step, ''), coalesce(step.detail, ''), coalesce(step.last_error, '')
		from (`+unfinished+`) u
		left join expiry.cleanups c on c.reservation_id = u.reservation_id
		left join reservations r on r.reservation_id = u.reservation_id
		left join lateral (
		    select s.step, s.detail, s.last_error from expiry.cleanup_steps s
		    where s.reservation_id = u.reservation_id and s.finished_at is null
		    order by s.started_at, s.step limit 1) step on true
		order by u.since, u.reservation_id
		limit $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("read the unfinished cleanups: %w", err)
	}
	ids := make([]string, len(open))
	for i, u := range open {
		ids[i] = u.ReservationID
	}
	goingOn, err := query(ctx, db, scanFollowUpRecord, `
		select distinct on (reservation_id) `+followUpRecordColumns+`
		from expiry.follow_ups
		where reservation_id = any($1) and state = 'due' and kind in ('cleanup', 'snapshot.sync')
		order by reservation_id, due_at`, ids)
	if err != nil {
		return nil, fmt.Errorf("read what goes on with the unfinished cleanups: %w", err)
	}
	for i := range open {
		for j := range goingOn {
			if goingOn[j].ReservationID == open[i].ReservationID {
				open[i].FollowUp = &goingOn[j]
			}
		}
	}
	return open, nil
}

// OpenSnapshots reads the oldest snapshots that have neither completed nor been given up.
func (db *DB) OpenSnapshots(ctx context.Context, limit int) ([]SnapshotRecord, error) {
	open, err := query(ctx, db, scanSnapshot, `
		select `+snapshotColumns+`
		from expiry.snapshots s where s.state in ('intended', 'pending') order by s.intended_at, s.intent_id limit $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("read the open snapshots: %w", err)
	}
	return open, nil
}

// FollowUpRecord is a follow-up with all that its row tells. Times are zero where the column is null.
type FollowUpRecord struct {
	FollowUp
	Done       bool
	Outcome    string    // one word once done
	HeldUntil  time.Time // while somebody works on it
	CreatedAt  time.Time
	FinishedAt time.Time
}

const followUpRecordColumns = followUpColumns + `,
	state = 'done', coalesce(outcome, ''), case when lease_expires_at > clock_timestamp() then lease_expires_at end, created_at, finished_at`

func scanFollowUpRecord(row pgx.CollectableRow) (FollowUpRecord, error) {
	var f FollowUpRecord
	var held, finished *time.Time
	err := row.Scan(&f.Kind, &f.Key, &f.ReservationID, &f.Subject, &f.Detail, &f.Version, &f.DueAt, &f.Dispatch, &f.Attempts,
		&f.LastError, &f.Traceparent, &f.lease, &f.Done, &f.Outcome, &held, &f.CreatedAt, &finished)
	f.HeldUntil, f.FinishedAt = orZero(held), orZero(finished)
	return f, err
}

// FailingFollowUps reads the follow-ups that have failed at least so often in a row, the most failures first.
func (db *DB) FailingFollowUps(ctx context.Context, atLeast, limit int) ([]FollowUpRecord, error) {
	failing, err := query(ctx, db, scanFollowUpRecord, `
		select `+followUpRecordColumns+`
		from expiry.follow_ups where state = 'due' and attempts >= $1
		order by attempts desc, created_at, kind, key limit $2`, atLeast, limit)
	if err != nil {
		return nil, fmt.Errorf("read the failing follow-ups: %w", err)
	}
	return failing, nil
}
