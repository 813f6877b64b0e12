package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// FollowUpKind names what a follow-up does.
type FollowUpKind string

// The kinds of follow-ups.
const (
	Warning            FollowUpKind = "warning"
	Notice             FollowUpKind = "notice"
	Cleanup            FollowUpKind = "cleanup"
	SnapshotSync       FollowUpKind = "snapshot.sync"
	SnapshotPurge      FollowUpKind = "snapshot.purge"
	AvailabilityUpdate FollowUpKind = "availability.update"
)

// FollowUp is a piece of work that a sweep decided and a delivery carries out.
type FollowUp struct {
	Kind          FollowUpKind
	Key           string // identifies the work within its kind
	ReservationID string // empty where the work belongs to no reservation
	Subject       string // reservation, snapshot or disk
	Detail        json.RawMessage
	Version       int
	DueAt         time.Time
	Dispatch      int // how often an event was sent for it
	Attempts      int // failures since the last success
	LastError     string
	Traceparent   string // W3C, of who asked for it; empty where nobody traced

	lease uuid.UUID
}

const followUpColumns = `kind, key, coalesce(reservation_id, ''), subject, detail, version, due_at, dispatch, attempts,
	coalesce(last_error, ''), coalesce(traceparent, ''), coalesce(lease_token, '00000000-0000-0000-0000-000000000000')`

func scanFollowUp(row pgx.CollectableRow) (FollowUp, error) {
	var f FollowUp
	err := row.Scan(&f.Kind, &f.Key, &f.ReservationID, &f.Subject, &f.Detail, &f.Version, &f.DueAt, &f.Dispatch, &f.Attempts,
		&f.LastError, &f.Traceparent, &f.lease)
	return f, err
}

// requestFollowUp makes a follow-up due now. Where it is due already nothing changes; where it is done, or is being
// worked on, it becomes due again once more.
func requestFollowUp(ctx context.Context, tx executor, f FollowUp) error {
	return requestFollowUps(ctx, tx, []FollowUp{f})
}

// requestFollowUps is requestFollowUp for many at once, each given once.
func requestFollowUps(ctx context.Context, tx executor, all []FollowUp) error {
	var kinds, keys, reservations, subjects, details []string
	for _, f := range all {
		detail := "{}" // a string: without a prepared statement pgx would send bytes as bytea
		if f.Detail != nil {
			detail = string(f.Detail)
		}
		kinds, keys, reservations = append(kinds, string(f.Kind)), append(keys, f.Key), append(reservations, f.ReservationID)
		subjects, details = append(subjects, f.Subject), append(details, detail)
	}
	_, err := tx.Exec(ctx, `
		insert into expiry.follow_ups as f (kind, key, reservation_id, subject, detail, traceparent)
		select kind, key, nullif(reservation_id, ''), subject, detail::jsonb, nullif($6, '')
		from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) as g (kind, key, reservation_id, subject, detail)
		order by kind, key -- in one order everywhere, against deadlocks
		on conflict (kind, key) do update
		set attempts   = case when f.state = 'done' then 0 else f.attempts end,
		    last_error = case when f.state = 'due' then f.last_error end,
		    state = 'due', outcome = null, finished_at = null,
		    detail = excluded.detail, traceparent = excluded.traceparent,
		    version = f.version + 1, due_at = clock_timestamp(), ask_again_at = '-infinity',
		    updated_at = clock_timestamp()
		where f.state = 'done' or f.lease_expires_at > clock_timestamp()`,
		kinds, keys, reservations, subjects, details, telemetry.TraceParent(ctx))
	if err != nil {
		return fmt.Errorf("request %d follow-ups, %s %s first: %w", len(all), all[0].Kind, all[0].Key, err)
	}
	return nil
}

// wakeCleanups makes the cleanups of these reservations due now that wait, for their pause after a failure or for the
// world: the reservations have come back to life since, of which whoever delivers them next takes note.
func wakeCleanups(ctx context.Context, tx pgx.Tx, ids []string) error {
	_, err := tx.Exec(ctx, `
		update expiry.follow_ups set due_at = clock_timestamp(), ask_again_at = '-infinity', updated_at = clock_timestamp()
		where kind = 'cleanup' and key in (
		    select f.key from expiry.follow_ups f
		    where f.kind = 'cleanup' and f.key = any($1::text[]) and f.state = 'due' and f.due_at > clock_timestamp()
		      and (f.lease_expires_at is null or f.lease_expires_at <= clock_timestamp())
		    order by f.key -- as requestFollowUps
		    for update)`, orNone(ids))
	if err != nil {
		return fmt.Errorf("wake the cleanups of %d reservations: %w", len(ids), err)
	}
	return nil
}

// DispatchDue picks follow-ups that are due, are not being worked on and have not been asked for within askAgain, and
// raises their dispatch number. What speaks to users comes first, since it is quick and soon too late; then the oldest.
func (db *DB) DispatchDue(ctx context.Context, limit int, askAgain time.Duration) ([]FollowUp, error) {
	picked, err := query(unseen(ctx), db, scanFollowUp, `
		with picked as (
		    select kind as picked_kind, key as picked_key from expiry.follow_ups
		    where state = 'due' and due_at <= clock_timestamp() and ask_again_at <= clock_timestamp()
		      and (lease_expires_at is null or lease_expires_at <= clock_timestamp())
		    order by kind not in ('warning', 'notice'), due_at, key
		    limit $1
		    for update skip locked
		)
		update expiry.follow_ups f
		set dispatch = dispatch + 1, ask_again_at = clock_timestamp() + $2, updated_at = clock_timestamp()
		from picked where f.kind = picked_kind and f.key = picked_key
		returning `+followUpColumns, limit, askAgain)
	if err != nil {
		return nil, fmt.Errorf("pick due follow-ups: %w", err)
	}
	return picked, nil
}

// UndoDispatch lets a follow-up whose event nobody took be dispatched again after pause.
func (db *DB) UndoDispatch(ctx context.Context, f FollowUp, pause time.Duration) error {
	_, err := db.exec(ctx, `
		update expiry.follow_ups set ask_again_at = clock_timestamp() + $4, updated_at = clock_timestamp()
		where kind = $1 and key = $2 and dispatch = $3 and ask_again_at > clock_timestamp() + $4`,
		f.Kind, f.Key, f.Dispatch, pause)
	if err != nil {
		return fmt.Errorf("undo the dispatch of %s %s: %w", f.Kind, f.Key, err)
	}
	return nil
}

// RefuseDispatch records that no event can be made of a follow-up, or that the sink will never take it. It counts as
// a failure and is asked for again when its dispatch was to be repeated.
func (db *DB) RefuseDispatch(ctx context.Context, f FollowUp, cause error) error {
	_, err := db.exec(ctx, `
		update expiry.follow_ups set attempts = attempts + 1, last_error = $4, updated_at = clock_timestamp()
		where kind = $1 and key = $2 and dispatch = $3 and state = 'due'`, f.Kind, f.Key, f.Dispatch, storable(cause.Error()))
	if err != nil {
		return fmt.Errorf("record that the dispatch of %s %s was refused: %w", f.Kind, f.Key, err)
	}
	return nil
}

// NextDispatch returns how long it takes until DispatchDue finds something, 0 where it would now. It reports false
// where nothing is due at any time.
func (db *DB) NextDispatch(ctx context.Context) (time.Duration, bool, error) {
	seconds, err := query(ctx, db, pgx.RowTo[*float64], `
		select extract(epoch from min(greatest(due_at, ask_again_at, lease_expires_at)) - clock_timestamp())::float8
		from expiry.follow_ups where state = 'due'`)
	if err != nil {
		return 0, false, fmt.Errorf("look for the next due follow-up: %w", err)
	}
	if len(seconds) == 0 || seconds[0] == nil {
		return 0, false, nil
	}
	return max(0, time.Duration(*seconds[0]*float64(time.Second))), true, nil
}

// ClaimFollowUp leases a due follow-up to the caller for the given time. Its event has arrived: should the caller die, it
// is asked for again as soon as the lease lapses. It reports false, without an error, where
// the row is absent, done, not due yet or under another's lease: FollowUpStanding says which.
func (db *DB) ClaimFollowUp(ctx context.Context, kind FollowUpKind, key string, token uuid.UUID, lease time.Duration) (FollowUp, bool, error) {
	claimed, err := query(ctx, db, scanFollowUp, `
		update expiry.follow_ups
		set lease_token = $3, lease_expires_at = clock_timestamp() + $4, ask_again_at = '-infinity', updated_at = clock_timestamp()
		where kind = $1 and key = $2 and state = 'due' and due_at <= clock_timestamp()
		  and (lease_expires_at is null or lease_expires_at <= clock_timestamp())
		returning `+followUpColumns, kind, key, token, lease)
	if err != nil {
		return FollowUp{}, false, fmt.Errorf("claim %s %s: %w", kind, key, err)
	}
	if len(claimed) == 0 {
		return FollowUp{}, false, nil
	}
	return claimed[0], true, nil
}

// Standing says how a follow-up stands.
type Standing string

// Where a follow-up may stand.
const (
	Absent    Standing = "absent"  // nobody asked for it
	Finished  Standing = "done"    // nothing is left to do
	NotDue    Standing = "not due" // its time has not come
	Held      Standing = "held"    // somebody else works on it
	Claimable Standing = "due"
)

// FollowUpStanding tells why a follow-up could not be claimed.
func (db *DB) FollowUpStanding(ctx context.Context, kind FollowUpKind, key string) (Standing, error) {
	found, err := query(ctx, db, pgx.RowTo[Standing], `
		select case when state = 'done' then 'done'
		            when lease_expires_at > clock_timestamp() then 'held'
		            when due_at > clock_timestamp() then 'not due'
		            else 'due' end
		from expiry.follow_ups where kind = $1 and key = $2`, kind, key)
	if err != nil {
		return "", fmt.Errorf("look at %s %s: %w", kind, key, err)
	}
	if len(found) == 0 {
		return Absent, nil
	}
	return found[0], nil
}

// FinishFollowUp records that the claimed work is done and how it ended. Where it was asked for again meanwhile it
// stays due. It reports whether the lease was still held; where it was not, nothing changed.
func (db *DB) FinishFollowUp(ctx context.Context, f FollowUp, outcome string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return finishFollowUp(ctx, db.pool, f, outcome)
}

// finishFollowUp is FinishFollowUp inside the transaction that made the work done.
func finishFollowUp(ctx context.Context, tx executor, f FollowUp, outcome string) (bool, error) {
	tag, err := tx.Exec(ctx, `
		update expiry.follow_ups
		set state            = case when version = $4 then 'done' else 'due' end,
		    outcome          = case when version = $4 then $5 end,
		    finished_at      = case when version = $4 then clock_timestamp() end,
		    ask_again_at     = '-infinity',
		    attempts = 0, last_error = null, lease_token = null, lease_expires_at = null,
		    updated_at = clock_timestamp()
		where kind = $1 and key = $2 and lease_token = $3`,
		f.Kind, f.Key, f.lease, f.Version, outcome)
	if err != nil {
		return false, fmt.Errorf("finish %s %s: %w", f.Kind, f.Key, err)
	}
	return tag.RowsAffected() == 1, nil
}

// PostponeFollowUp gives the claimed work back, to be looked at again after pause: it waits for the world, it did not
// fail. Where it was asked for again meanwhile it is due at once. It reports whether the lease was still held.
func (db *DB) PostponeFollowUp(ctx context.Context, f FollowUp, pause time.Duration) (bool, error) {
	return db.giveBack(ctx, f, "postpone", `
		due_at = case when version = $4 then clock_timestamp() + $5 else due_at end, attempts = 0, last_error = null`,
		f.Version, pause)
}

// FailFollowUp gives the claimed work back with the reason it failed, to be tried again after pause. It reports
// whether the lease was still held.
func (db *DB) FailFollowUp(ctx context.Context, f FollowUp, cause error, pause time.Duration) (bool, error) {
	return db.giveBack(ctx, f, "record the failure of", `
		due_at = clock_timestamp() + $5, attempts = attempts + 1, last_error = $4`, storable(cause.Error()), pause)
}

// HandBackFollowUp gives the claimed work back as it was: due, and no failure. It reports whether the lease was
// still held.
func (db *DB) HandBackFollowUp(ctx context.Context, f FollowUp) (bool, error) {
	return db.giveBack(ctx, f, "hand back", "due_at = due_at")
}

func (db *DB) giveBack(ctx context.Context, f FollowUp, doing, set string, args ...any) (bool, error) {
	touched, err := db.exec(ctx, `
		update expiry.follow_ups
		set ask_again_at = '-infinity', lease_token = null, lease_expires_at = null, updated_at = clock_timestamp(), `+set+`
		where kind = $1 and key = $2 and lease_token = $3`, append([]any{f.Kind, f.Key, f.lease}, args...)...)
	if err != nil {
		return false, fmt.Errorf("%s %s %s: %w", doing, f.Kind, f.Key, err)
	}
	return touched == 1, nil
}
