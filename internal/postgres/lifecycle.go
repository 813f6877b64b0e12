package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Stage is how far a reservation's life is, as far as its trace is concerned: with each stage other spans are over.
type Stage int

// The stages. One that waits in the queue has none.
const (
	StagePreparing Stage = iota + 1
	StageActive
	StageEnded   // and there is a cleanup, which is not settled
	StageSettled // nothing more will be over
)

// Lifecycle is what is recorded of a reservation's life, under a lease on its trace. Times are zero where nothing tells them.
type Lifecycle struct {
	reservation.Reservation // without a row: what its cleanup or its trace remembers

	Stage    Stage
	Ended    time.Time
	Vanished bool      // the row was deleted before there was a cleanup: found so at Ended
	ToldAt   time.Time // when the first warning or notice was asked for
	Cleanup  *LifecycleCleanup
	Written  []string // names of spans that the collector has acknowledged
	Doubtful bool     // others may have arrived, too
}

// LifecycleCleanup is what is recorded of the cleanup.
type LifecycleCleanup struct {
	Reason       string
	RequestedAt  time.Time
	DiskReleased time.Time // with a volume or without
	SettledAt    time.Time
	Outcome      string
	Namespace    string
	PodName      string
	PodUID       string
	VolumeID     string
	DiskName     string
	ContentURL   string // s3://…, the listing
	Steps        []StepRecord
	Snapshots    []LifecycleSnapshot // in order of their attempts
}

// LifecycleSnapshot is one attempt at a snapshot.
type LifecycleSnapshot struct {
	SnapshotID string
	State      SnapshotState
	IntendedAt time.Time
	SettledAt  time.Time // zero while it is open
	Detail     string    // why it failed
}

// TraceMark is what has become of the spans of a Lifecycle.
type TraceMark struct {
	ReservationID string
	Stage         Stage    // all that is over in it is written
	Written       []string // all that are written, those of before included
	Doubtful      bool
	Pause         time.Duration // until it may be claimed again
}

// lives selects (reservation_id, stage) of every reservation whose trace is or will be written here: those that live,
// those that have ended and have a cleanup, and those whose row is gone without one, of which nothing more will be heard.
// What ended before this service came is history.
const lives = `
	select r.reservation_id, case r.status when 'preparing' then 1 else 2 end as stage
	from reservations r where r.status in ('preparing', 'active')
	union all
	select c.reservation_id, case when c.settled_at is null then 3 else 4 end
	from expiry.cleanups c left join reservations r using (reservation_id)
	where r.reservation_id is null or r.status in ('expired', 'cancelled', 'failed')
	union all
	select g.reservation_id, 4 from expiry.traces g
	where g.stage < 4 and not exists (select from reservations r where r.reservation_id = g.reservation_id)
	  and not exists (select from expiry.cleanups c where c.reservation_id = g.reservation_id)`

// ClaimTraces leases up to limit traces in which something is over that is not written, those nearest their end first.
// also are reservations whose cleanup may have finished a step. Whoever claims must call SettleTraces before the lease
// ends; a trace whose lease has lapsed comes out as Doubtful.
func (db *DB) ClaimTraces(ctx context.Context, token uuid.UUID, lease time.Duration, limit int, also ...string) ([]Lifecycle, error) {
	var claimed []Lifecycle
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if claimed, err = leaseTraces(ctx, tx, token, lease, limit, also); err != nil || len(claimed) == 0 {
			return err
		}
		byID, ids := map[string]*Lifecycle{}, []string(nil)
		for i := range claimed {
			byID[claimed[i].ID], ids = &claimed[i], append(ids, claimed[i].ID)
		}
		var reads pgx.Batch // a delivery's answer waits for it
		readRows(&reads, ids, byID)
		readSteps(&reads, ids, byID)
		readSnapshots(&reads, ids, byID)
		return tx.SendBatch(ctx, &reads).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("claim traces to write: %w", err)
	}
	return claimed, nil
}

func leaseTraces(ctx context.Context, tx pgx.Tx, token uuid.UUID, lease time.Duration, limit int, also []string) ([]Lifecycle, error) {
	rows, err := tx.Query(ctx, `
		with due as (
		    select reservation_id from (`+lives+`) l
		    left join expiry.traces t using (reservation_id)
		    where (l.stage > coalesce(t.stage, 0) or l.stage = 3 and reservation_id = any($4::text[]))
		      and (t.lease_expires_at is null or t.lease_expires_at <= clock_timestamp())
		    order by l.stage desc, reservation_id
		    limit $3
		)
		insert into expiry.traces as t (
		    reservation_id, lease_token, lease_expires_at, user_id, gpu_type, status, created_at, launched_at)
		select reservation_id, $1, clock_timestamp() + $2, r.user_id, r.gpu_type, r.status, r.created_at, r.launched_at
		from due left join reservations r using (reservation_id)
		order by reservation_id -- in one order everywhere, against deadlocks
		on conflict (reservation_id) do update
		set doubtful = t.doubtful or t.lease_token is not null,
		    lease_token = excluded.lease_token, lease_expires_at = excluded.lease_expires_at,
		    user_id = coalesce(excluded.user_id, t.user_id), gpu_type = coalesce(excluded.gpu_type, t.gpu_type),
		    status = coalesce(excluded.status, t.status), created_at = coalesce(excluded.created_at, t.created_at),
		    launched_at = coalesce(excluded.launched_at, t.launched_at)
		where t.lease_expires_at is null or t.lease_expires_at <= clock_timestamp()
		returning t.reservation_id, t.written, t.doubtful`, token, lease, limit, also)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Lifecycle, err error) {
		return l, row.Scan(&l.ID, &l.Written, &l.Doubtful)
	})
}

func readRows(reads *pgx.Batch, ids []string, byID map[string]*Lifecycle) {
	reads.Queue(`
		select t.reservation_id, coalesce(l.stage, 0), `+reservationColumns("r")+`,
		       r.reservation_id is null and c.reservation_id is null,
		       case when r.reservation_id is null and c.reservation_id is null then clock_timestamp()
		            when r.status in ('expired', 'cancelled', 'failed') then
		           coalesce(`+endWritten+`, least(r.updated_at, c.requested_at)) end,
		       (select min(f.created_at) from expiry.follow_ups f
		        where f.reservation_id = t.reservation_id and f.kind in ('warning', 'notice')),
		       c.reservation_id is not null, coalesce(c.user_id, t.user_id, ''), coalesce(c.reason, ''), c.requested_at,
		       coalesce(c.disk_released_at,
		                (select max(f.occurred_at) from expiry.facts f
		                 where f.subject = c.reservation_id and f.type = $2 and f.occurred_at >= c.requested_at)),
		       c.settled_at, coalesce(c.outcome, ''), coalesce(c.namespace, ''), coalesce(c.pod_name, ''), coalesce(c.pod_uid, ''),
		       coalesce(c.volume_id, ''), coalesce(c.disk_name, ''), coalesce(c.content_key, ''),
		       coalesce(c.status, t.status, ''), coalesce(c.gpu_type, t.gpu_type, ''),
		       coalesce(c.created_at, t.created_at), coalesce(c.launched_at, t.launched_at), c.expires_at
		from expiry.traces t
		left join (`+lives+`) l using (reservation_id)
		left join reservations r using (reservation_id)
		left join expiry.cleanups c using (reservation_id)
		where t.reservation_id = any($1::text[])`, ids, event.DiskReleased).Query(each(func(rows pgx.Rows) error {
		var (
			id                                 string
			stage                              Stage
			r, remembered                      reservation.Reservation
			ended                              reservation.Instant
			told, requested, released, settled *time.Time
			vanished, hasCleanup               bool
			c                                  LifecycleCleanup
		)
		targets := append([]any{&id, &stage}, reservationFields(&r)...)
		targets = append(targets, &vanished, &ended, &told, &hasCleanup, &remembered.UserID, &c.Reason, &requested, &released,
			&settled, &c.Outcome, &c.Namespace, &c.PodName, &c.PodUID, &c.VolumeID, &c.DiskName, &c.ContentURL,
			&remembered.Status, &remembered.GPUType, &remembered.CreatedAt, &remembered.LaunchedAt, &remembered.ExpiresAt)
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		if r.ID == "" { // the platform has deleted the row
			r = remembered
		}
		l := byID[id]
		l.Reservation, l.Stage, l.ToldAt, l.Vanished = r, stage, orZero(told), vanished
		l.ID = id
		l.Ended, _ = ended.Time()
		if hasCleanup && stage >= StageEnded {
			c.RequestedAt, c.DiskReleased, c.SettledAt = orZero(requested), orZero(released), orZero(settled)
			l.Cleanup = &c
		}
		return nil
	}))
}

func readSteps(reads *pgx.Batch, ids []string, byID map[string]*Lifecycle) {
	reads.Queue(`
		select reservation_id, step, started_at, finished_at, coalesce(outcome, ''), coalesce(detail, ''), attempts, coalesce(last_error, '')
		from expiry.cleanup_steps where reservation_id = any($1)
		order by started_at, step`, ids).Query(each(func(rows pgx.Rows) error {
		var id string
		var s StepRecord
		var finished *time.Time
		if err := rows.Scan(&id, &s.Step, &s.StartedAt, &finished, &s.Outcome, &s.Detail, &s.Attempts, &s.LastError); err != nil {
			return err
		}
		s.FinishedAt = orZero(finished)
		if c := byID[id].Cleanup; c != nil {
			c.Steps = append(c.Steps, s)
		}
		return nil
	}))
}

func readSnapshots(reads *pgx.Batch, ids []string, byID map[string]*Lifecycle) {
	reads.Queue(`
		select reservation_id, coalesce(snapshot_id, ''), state, intended_at, settled_at, coalesce(detail, '')
		from expiry.snapshots where reservation_id = any($1)
		order by attempt`, ids).Query(each(func(rows pgx.Rows) error {
		var id string
		var s LifecycleSnapshot
		var settled *time.Time
		if err := rows.Scan(&id, &s.SnapshotID, &s.State, &s.IntendedAt, &settled, &s.Detail); err != nil {
			return err
		}
		s.SettledAt = orZero(settled)
		if c := byID[id].Cleanup; c != nil {
			c.Snapshots = append(c.Snapshots, s)
		}
		return nil
	}))
}

// each reads all rows of a batch's query.
func each(read func(pgx.Rows) error) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		for rows.Next() {
			if err := read(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	}
}

// SettleTraces records what has become of claimed traces and gives them back. Those whose lease is lost stay as they are.
func (db *DB) SettleTraces(ctx context.Context, token uuid.UUID, marks []TraceMark) error {
	var ids, written []string
	var stages []int32
	var doubtful []bool
	var pauses []float64
	for _, m := range marks {
		ids, written = append(ids, m.ReservationID), append(written, strings.Join(m.Written, ","))
		stages = append(stages, int32(m.Stage)) //nolint:gosec // there are a handful of stages
		doubtful = append(doubtful, m.Doubtful)
		pauses = append(pauses, m.Pause.Seconds())
	}
	_, err := db.exec(ctx, `
		update expiry.traces t
		set stage = greatest(t.stage, m.stage), written = string_to_array(m.written, ','), doubtful = m.doubtful,
		    lease_token = null,
		    lease_expires_at = case when m.pause > 0 then clock_timestamp() + make_interval(secs => m.pause) end,
		    updated_at = clock_timestamp()
		from unnest($2::text[], $3::int[], $4::text[], $5::bool[], $6::float8[]) as m (id, stage, written, doubtful, pause)
		where t.reservation_id = m.id and t.lease_token = $1`, token, ids, stages, written, doubtful, pauses)
	if err != nil {
		return fmt.Errorf("record what was written of %d traces: %w", len(marks), err)
	}
	return nil
}
