package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
)

// OOMSighting is an out-of-memory kill that a pod's status shows.
type OOMSighting struct {
	ReservationID string
	ContainerID   string
	Container     string
	FinishedAt    time.Time // zero where the kubelet did not say
}

// oomBatch is how many kills are recorded in one transaction.
const oomBatch = 100

// RecordOOMKills counts each kill once, on the reservation's row while that is active, announces it and asks for the
// notice in the user's home. It returns those that were new.
func (db *DB) RecordOOMKills(ctx context.Context, lease SweepLease, now time.Time, seen []OOMSighting) ([]OOMSighting, error) {
	var recorded []OOMSighting
	err := inBatches(seen, oomBatch, func(batch []OOMSighting) error {
		var fresh []OOMSighting
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) (err error) {
			if fresh, err = newOOMKills(ctx, tx, now, batch); err != nil || len(fresh) == 0 {
				return err
			}
			return countOOMKills(ctx, tx, fresh)
		})
		if err == nil {
			recorded = append(recorded, fresh...)
		}
		return err
	})
	return recorded, err
}

// newOOMKills stores the kills that are not known yet of reservations that are active, and returns them. One without
// a finish time is known by its container id alone and is taken to have happened now.
func newOOMKills(ctx context.Context, tx pgx.Tx, now time.Time, batch []OOMSighting) ([]OOMSighting, error) {
	var ids, containerIDs, containers []string
	var finished []*time.Time
	for _, k := range batch {
		ids, containerIDs, containers = append(ids, k.ReservationID), append(containerIDs, k.ContainerID), append(containers, k.Container)
		var at *time.Time
		if !k.FinishedAt.IsZero() {
			at = &k.FinishedAt
		}
		finished = append(finished, at)
	}
	rows, err := tx.Query(ctx, `
		insert into expiry.oom_kills (reservation_id, container_id, container, finished_at)
		select s.id, s.container_id, s.container, coalesce(s.finished_at, $1)
		from unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[]) as s (id, container_id, container, finished_at)
		join reservations r on r.reservation_id = s.id and r.status = 'active'
		where not exists (
		    select from expiry.oom_kills k
		    where k.reservation_id = s.id and k.container_id = s.container_id
		      and k.finished_at = coalesce(s.finished_at, k.finished_at))
		on conflict do nothing
		returning reservation_id, container_id, container, finished_at`, now, ids, containerIDs, containers, finished)
	if err != nil {
		return nil, fmt.Errorf("record %d out-of-memory kills: %w", len(batch), err)
	}
	fresh, err := pgx.CollectRows(rows, pgx.RowToStructByPos[OOMSighting])
	if err != nil {
		return nil, fmt.Errorf("record %d out-of-memory kills: %w", len(batch), err)
	}
	return fresh, nil
}

func countOOMKills(ctx context.Context, tx pgx.Tx, fresh []OOMSighting) error {
	var ids, containers []string
	var finished []time.Time
	for _, k := range fresh {
		ids, containers, finished = append(ids, k.ReservationID), append(containers, k.Container), append(finished, k.FinishedAt)
	}
	rows, err := tx.Query(ctx, `
		with kills as (
		    select id, count(*)::int as n, max(at) as newest, (array_agg(container order by at desc))[1] as container
		    from unnest($1::text[], $2::text[], $3::timestamptz[]) as k (id, container, at)
		    group by id
		)
		update reservations r
		set oom_count     = coalesce(r.oom_count, 0) + kills.n,
		    oom_container = case when r.last_oom_at is null or r.last_oom_at <= kills.newest then kills.container else r.oom_container end,
		    last_oom_at   = greatest(r.last_oom_at, kills.newest)
		from kills
		where r.reservation_id = kills.id and r.status = 'active'
		returning r.reservation_id, coalesce(r.user_id, '')`, ids, containers, finished)
	if err != nil {
		return fmt.Errorf("count %d out-of-memory kills: %w", len(fresh), err)
	}
	users := make(map[string]string)
	var id, user string
	if _, err := pgx.ForEachRow(rows, []any{&id, &user}, func() error { users[id] = user; return nil }); err != nil {
		return fmt.Errorf("count %d out-of-memory kills: %w", len(fresh), err)
	}
	var facts []newFact
	var notices []FollowUp
	for _, k := range fresh {
		user, active := users[k.ReservationID]
		if !active {
			continue
		}
		facts = append(facts, newFact{Type: event.ReservationOOMKilled, Subject: k.ReservationID, Data: event.OOMKilled{
			ReservationID: k.ReservationID, UserID: user, Container: k.Container, KilledAt: k.FinishedAt.UTC()}})
		notices = append(notices, FollowUp{Kind: Notice, Key: event.NoticeKey(k.ReservationID, k.ContainerID, k.FinishedAt),
			ReservationID: k.ReservationID, Subject: k.ReservationID})
	}
	if err := recordFacts(ctx, tx, facts); err != nil {
		return err
	}
	return requestFollowUps(ctx, tx, notices)
}
