package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// ActiveReservation is an active reservation and what is remembered of its pod. Times are zero where nothing is.
type ActiveReservation struct {
	reservation.Reservation
	NameShared   bool // another live reservation has the same pod name
	MissingFirst time.Time
	MissingLast  time.Time
	PodUIDs      []string
	InstanceID   string // of the pod seen last

	fingerprint string
}

// ActiveReservations reads every active reservation. only narrows it to some; empty means all.
func (db *DB) ActiveReservations(ctx context.Context, only []string) ([]ActiveReservation, error) {
	active, err := query(ctx, db, func(row pgx.CollectableRow) (ActiveReservation, error) {
		var a ActiveReservation
		var first, last *time.Time
		err := row.Scan(append([]any{&a.fingerprint, &a.NameShared, &first, &last, &a.PodUIDs, &a.InstanceID}, reservationFields(&a.Reservation)...)...)
		a.MissingFirst, a.MissingLast = orZero(first), orZero(last)
		return a, err
	}, `
		with named as (
		    select coalesce(nullif(pod_name, ''), 'gpu-dev-' || left(reservation_id, 8)) as pod_name
		    from reservations
		    where status in ('pending', 'queued', 'preparing', 'active')
		    group by 1 having count(*) > 1
		), seen as (
		    select reservation_id, array_agg(uid) as uids,
		           (array_agg(coalesce(instance_id, '') order by first_seen_at desc))[1] as instance_id
		    from expiry.pods group by 1
		)
		select `+podFingerprint+`, named.pod_name is not null, m.first_seen_at, m.last_seen_at, coalesce(seen.uids, '{}'), coalesce(seen.instance_id, ''),
		       `+reservationColumns("r")+`
		from reservations r
		left join named on named.pod_name = coalesce(nullif(r.pod_name, ''), 'gpu-dev-' || left(r.reservation_id, 8))
		left join expiry.missing_pods m on m.reservation_id = r.reservation_id
		left join seen on seen.reservation_id = r.reservation_id
		where r.status = 'active' and ($1::text[] is null or r.reservation_id = any($1))
		order by r.launched_at, r.reservation_id`, orAll(only))
	if err != nil {
		return nil, fmt.Errorf("read active reservations: %w", err)
	}
	return active, nil
}

// PodNamespaces returns the namespace column's values of the reservations that are live, or ended after since: those of
// the most live ones first.
func (db *DB) PodNamespaces(ctx context.Context, since time.Time) ([]string, error) {
	namespaces, err := query(ctx, db, pgx.RowTo[string], `
		select coalesce(namespace, '') from reservations
		where status in ('preparing', 'active') or (status in ('expired', 'cancelled', 'failed') and updated_at > $1)
		group by 1
		order by count(*) filter (where status in ('preparing', 'active')) desc, 1`, since)
	if err != nil {
		return nil, fmt.Errorf("read the reservations' namespaces: %w", err)
	}
	return namespaces, nil
}

// RecordCluster remembers the cluster in which the reservations live. The first one stays.
func (db *DB) RecordCluster(ctx context.Context, lease SweepLease, uid string) error {
	return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into expiry.cluster (uid) values ($1) on conflict do nothing", uid); err != nil {
			return fmt.Errorf("record cluster %s: %w", uid, err)
		}
		return nil
	})
}

// PodSighting is a pod seen serving a live reservation.
type PodSighting struct {
	UID, ReservationID, Namespace, Name string
	InstanceID                          string // empty where nobody asked
	CreatedAt                           time.Time
}

// sightingBatch is how many rows of ours are written in one transaction.
const sightingBatch = 1_000

// RecordPods remembers whose pods these are. It is idempotent; a UID belongs to whom it was first seen with.
func (db *DB) RecordPods(ctx context.Context, lease SweepLease, pods []PodSighting) error {
	return inBatches(pods, sightingBatch, func(batch []PodSighting) error {
		return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			var uids, ids, namespaces, names, instances []string
			var created []time.Time
			for _, p := range batch {
				uids, ids, namespaces = append(uids, p.UID), append(ids, p.ReservationID), append(namespaces, p.Namespace)
				names, instances, created = append(names, p.Name), append(instances, p.InstanceID), append(created, p.CreatedAt)
			}
			_, err := tx.Exec(ctx, `
				insert into expiry.pods as p (uid, reservation_id, namespace, name, instance_id, created_at)
				select uid, id, namespace, name, nullif(instance, ''), created
				from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
				     as s (uid, id, namespace, name, instance, created)
				on conflict (uid) do update set instance_id = excluded.instance_id
				where p.instance_id is null and excluded.instance_id is not null`,
				uids, ids, namespaces, names, instances, created)
			if err != nil {
				return fmt.Errorf("record %d pods: %w", len(batch), err)
			}
			return nil
		})
	})
}

// RecordMissing remembers at which moment a direct GET did not find the pods of these reservations. begin lists those
// with which a series of absences begins.
func (db *DB) RecordMissing(ctx context.Context, lease SweepLease, now time.Time, ids, begin []string) error {
	if len(ids) == 0 {
		return nil
	}
	return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into expiry.missing_pods as m (reservation_id, first_seen_at, last_seen_at)
			select id, $1, $1 from unnest($2::text[]) id
			on conflict (reservation_id) do update
			set last_seen_at = $1, ended_at = null,
			    first_seen_at = case when m.reservation_id = any($3::text[]) then $1 else m.first_seen_at end`, now, ids, begin)
		if err != nil {
			return fmt.Errorf("record %d missing pods: %w", len(ids), err)
		}
		return nil
	})
}

// MissingEnded counts the reservations that were expired for a missing pod since then and are not active again.
func (db *DB) MissingEnded(ctx context.Context, since time.Time) (int, error) {
	n, _, err := first(query(ctx, db, pgx.RowTo[int], `
		select count(*) from expiry.missing_pods m
		where m.ended_at > $1
		  and not exists (select from reservations r where r.reservation_id = m.reservation_id and r.status = 'active')`, since))
	if err != nil {
		return 0, fmt.Errorf("count the reservations that ended for a missing pod: %w", err)
	}
	return n, nil
}

// ForgetMissing ends the series of absences of reservations whose pods were seen again, and of those that are active
// no more. Those that ended for it are remembered for as long as the brake counts them.
func (db *DB) ForgetMissing(ctx context.Context, lease SweepLease, now time.Time, seen []string) error {
	return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			delete from expiry.missing_pods m
			where m.reservation_id = any($1::text[])
			   or (not exists (select from reservations r where r.reservation_id = m.reservation_id and r.status = 'active')
			       and (m.ended_at is null or m.ended_at <= $2))`, orNone(seen), now.Add(-reservation.BrakeMemory))
		if err != nil {
			return fmt.Errorf("forget which pods were missing: %w", err)
		}
		return nil
	})
}

// orNone makes an array of a nil slice, which would be SQL's null.
func orNone(items []string) []string {
	if items == nil {
		return []string{}
	}
	return items
}

// PodEnding is a decision to end a reservation because of its pod.
type PodEnding struct {
	ActiveReservation
	Reason string
}

// podFingerprint sums up which run of a server an ending for its pod is about.
const podFingerprint = `md5(jsonb_build_array(r.launched_at::text, r.pod_name, r.namespace)::text)`

// FailDead fails those of the given reservations that are still active on the same server, and returns their ids. Each
// is announced and gets its cleanup with it.
func (db *DB) FailDead(ctx context.Context, lease SweepLease, now time.Time, dead []PodEnding) ([]string, error) {
	return db.endForPods(ctx, lease, now, reservation.Failed, dead, "true", nil)
}

// ExpireMissing expires those of the given reservations that are still active on the same server and whose series of
// absences has lasted for at least confirm, and returns their ids. Each is announced and gets its cleanup with it.
func (db *DB) ExpireMissing(ctx context.Context, lease SweepLease, now time.Time, confirm time.Duration, missing []PodEnding) ([]string, error) {
	if err := db.markMissingEnded(ctx, lease, now, missing); err != nil {
		return nil, err
	}
	return db.endForPods(ctx, lease, now, reservation.Expired, missing, `
		exists (select from expiry.missing_pods s
		        where s.reservation_id = r.reservation_id and s.first_seen_at + @confirm::interval <= @now)`,
		pgx.NamedArgs{"confirm": confirm})
}

// markMissingEnded says beforehand what ends, so that no crash makes the brake forget it. Of one that does not end after
// all it says nothing: who is active is not counted.
func (db *DB) markMissingEnded(ctx context.Context, lease SweepLease, now time.Time, missing []PodEnding) error {
	if len(missing) == 0 {
		return nil
	}
	ids := make([]string, len(missing))
	for i, m := range missing {
		ids[i] = m.ID
	}
	return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "update expiry.missing_pods set ended_at = $1 where reservation_id = any($2)", now, ids); err != nil {
			return fmt.Errorf("record %d endings for a missing pod: %w", len(ids), err)
		}
		return nil
	})
}

func (db *DB) endForPods(ctx context.Context, lease SweepLease, now time.Time, to reservation.Status, pods []PodEnding, guard string, args pgx.NamedArgs) ([]string, error) {
	endings := make([]Ending, len(pods))
	for i, p := range pods {
		endings[i] = Ending{ReservationID: p.ID, To: to, Reason: p.Reason, Untimely: true, believed: p.fingerprint}
	}
	return db.endReservations(ctx, lease, now, endings, `r.status = 'active' and `+podFingerprint+` = g.believed and `+guard, args)
}
