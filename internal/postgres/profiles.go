package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Profile is what telemetry says of a reservation.
type Profile struct {
	UserID   string
	GPUType  string
	Deadline time.Time // zero where there is none
	// The pod that was seen last, else the one that the row names; empty where there is none.
	Namespace, PodName, PodUID string
}

// Profiles reads the profiles of those of the given reservations that there are.
func (db *DB) Profiles(ctx context.Context, ids []string) (map[string]Profile, error) {
	profiles := make(map[string]Profile, len(ids))
	_, err := query(ctx, db, func(row pgx.CollectableRow) (struct{}, error) {
		var id string
		var p Profile
		var deadline reservation.Instant
		err := row.Scan(&id, &p.UserID, &p.GPUType, &deadline, &p.Namespace, &p.PodName, &p.PodUID)
		p.Deadline, _ = deadline.Time()
		profiles[id] = p
		return struct{}{}, err
	}, `
		select r.reservation_id, coalesce(r.user_id, ''), coalesce(r.gpu_type, ''), r.expires_at,
		       coalesce(p.namespace, r.namespace, ''), coalesce(p.name, r.pod_name, ''), coalesce(p.uid, '')
		from reservations r
		left join lateral (
		    select namespace, name, uid from expiry.pods where reservation_id = r.reservation_id order by first_seen_at desc limit 1
		) p on true
		where r.reservation_id = any($1::text[])`, ids)
	if err != nil {
		return nil, fmt.Errorf("read whose %d reservations are: %w", len(ids), err)
	}
	return profiles, nil
}

// Punctuality is how well sweeps keep up.
type Punctuality struct {
	Overdue      int       // active past deadline and grace
	LastFinished time.Time // when the newest sweep but the given one ended; zero where there was none
}

// Punctuality is read at the end of the given sweep. Deadlines that make no sense, which nobody may act on, are not overdue.
func (db *DB) Punctuality(ctx context.Context, sweepID string, now time.Time, grace time.Duration) (Punctuality, error) {
	p, _, err := first(query(ctx, db, func(row pgx.CollectableRow) (Punctuality, error) {
		var p Punctuality
		var last *time.Time
		err := row.Scan(&p.Overdue, &last)
		p.LastFinished = orZero(last)
		return p, err
	}, `
		select (select count(*)`+fromWithMaster+`
		        where r.status = 'active' and `+effectiveDeadline+` + @grace::interval < @now),
		       (select finished_at from expiry.sweeps
		        where outcome in ('completed', 'partial') and sweep_id::text <> @sweep order by started_at desc limit 1)`,
		pgx.NamedArgs{"now": now, "grace": grace, "sweep": sweepID}))
	if err != nil {
		return Punctuality{}, fmt.Errorf("read how punctual sweeps are: %w", err)
	}
	return p, nil
}
