package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// How long after its end a reservation's cleanup is begun by itself. Older ones were cleaned up by others, or hold a
// disk and are found by that. Time in which no whole sweep looked, in an outage or a pause, does not count.
const (
	FailedWindow = 24 * time.Hour
	EndedWindow  = 7 * 24 * time.Hour
)

// endedAt is when an ended reservation r ended, as far as its row tells.
const endedAt = "coalesce(" + endWritten + ", r.updated_at)"

// endStands holds where the end that is written for reservation r is not one of an earlier life's: whoever ended it again
// may have written its status alone. Cleanup c may be absent.
const endStands = "(coalesce(" + endWritten + " < greatest(c.revived_at, c.lived_at), false) is false)"

// endWritten is the latest end that was written for an ended reservation r: of an earlier one the date may still stand.
const endWritten = `greatest(r.reservation_ended, case r.status when 'failed' then r.failed_at when 'cancelled' then r.cancelled_at end)`

// endedAgain holds where reservation r came back to life after its cleanup c was asked for and is over again, so that the
// cleanup knows nothing of what r had last: it was seen live, or with another pod; or the row names another volume; or the
// row says that it was launched or ended since, while the disk is not released: that costs a second snapshot at most, and
// counts once an hour; or it holds a disk again after the cleanup has settled. Who holds one is asked for by `in`, of which
// PostgreSQL hashes the list once for many rows, and makes none where it is not needed.
var endedAgain = `coalesce(c.revived_at is not null and (r.reservation_id is null or ` + isOver + `)
		or ` + isOver + ` and (
		    c.settled_at is null and c.disk_released_at is null
		        and ` + since(`greatest(r.launched_at, `+endWritten+`)`) + `
		        and (c.redated_at is null or greatest(r.launched_at, ` + endWritten + `) > c.redated_at + interval '1 hour')
		    or r.ebs_volume_id <> coalesce(c.volume_id, '')
		        and ` + volumeIn("r.ebs_volume_id") + ` <> coalesce(c.volume_id, case when c.settled_at is not null then '' end)
		        and ` + volumeIn("r.ebs_volume_id") + ` is distinct from c.misnamed_volume_id
		    or c.settled_at is not null and c.outcome <> 'superseded' and (
		        ` + since("r.launched_at") + `
		        and c.reservation_id in (select h.reservation_id from disks h where h.in_use and h.reservation_id is not null)
		        or c.reservation_id in (
		            select h.reservation_id from disks h join expiry.cleanups k on k.reservation_id = h.reservation_id
		            where h.in_use and k.settled_at is not null
		              and ` + volumeIn("h.ebs_volume_id") + ` not in (coalesce(k.volume_id, ''), coalesce(k.misnamed_volume_id, ''))))), false)`

// since holds where a date lies after cleanup c was asked for, by more than the clocks of those who write dates differ.
func since(date string) string {
	return date + " between c.requested_at + interval '1 minute' and clock_timestamp()"
}

// asked holds where a cleanup's work is due already, under the given expression for the reservation's id. `in`, not
// `exists`: PostgreSQL hashes the list once, where without fresh statistics it would search it for every row.
func asked(id string) string {
	return id + ` in (select f.reservation_id from expiry.follow_ups f
		             where f.state = 'due' and f.kind in ('cleanup', 'snapshot.sync') and f.reservation_id is not null
		               and ` + forCleanup + `)`
}

// askedAnew holds where a cleanup's work is due at once, or under way: what waits for its snapshot, or out the pause after a
// failure, does not see to another life's end.
func askedAnew(id string) string {
	return id + ` in (select f.reservation_id from expiry.follow_ups f
		             where f.state = 'due' and f.kind = 'cleanup' and f.reservation_id is not null
		               and (f.due_at <= clock_timestamp() or f.lease_expires_at > clock_timestamp()))`
}

// forCleanup holds where follow-up f, a cleanup or a sync of one, is not just waiting for a volume set aside, whose
// cleanup is over.
const forCleanup = `not exists (select from expiry.snapshots aside
		                   where aside.reservation_id = f.reservation_id and aside.intent_id::text = f.key
		                     and aside.volume_aside_at is not null and aside.volume_deleted_at is null)`

// lookedAt is when a sweep last looked at everything; where none has, when the first one began. least() passes over null.
const lookedAt = `least(@now::timestamptz, coalesce(
	           (select max(w.started_at) from expiry.sweeps w where w.outcome = 'completed' and not w.paused),
	           (select min(w.started_at) from expiry.sweeps w)))`

// leftovers selects ended reservations whose cleanup is not done and that nobody is asked to do: never begun since they
// ended, within the window or while they hold a disk, or begun and not settled.
var leftovers = `
	select r.reservation_id, r.status, false as begun, c.reservation_id is not null as again
	from reservations r
	left join expiry.cleanups c on c.reservation_id = r.reservation_id
	where r.status in ('expired', 'cancelled', 'failed')
	  and (c.reservation_id is null or c.settled_at is not null and ` + endedAgain + `)
	  and (` + endedAt + ` > ` + lookedAt + ` - case r.status when 'failed' then @failed_window::interval else @ended_window::interval end
	       or c.revived_at is not null
	       or r.reservation_id in (select d.reservation_id from disks d where d.in_use and d.reservation_id is not null))
	  and (not ` + asked("r.reservation_id") + ` or c.reservation_id is not null and not ` + askedAnew("r.reservation_id") + `)
	union all
	select c.reservation_id, coalesce(r.status, ''), true, ` + endedAgain + `
	from expiry.cleanups c
	left join reservations r on r.reservation_id = c.reservation_id
	where (c.settled_at is null and (r.reservation_id is null or r.status in ('expired', 'cancelled', 'failed'))
	       or c.revived_at is not null and r.reservation_id is null)
	  and (not ` + asked("c.reservation_id") + ` or ` + endedAgain + ` and not ` + askedAnew("c.reservation_id") + `)`

// Leftover is an ended reservation whose cleanup is to be asked for.
type Leftover struct {
	ReservationID string
	Status        reservation.Status // empty where the row is gone
	Begun         bool
	Again         bool // it came back to life since its cleanup was asked for
}

func leftoverArgs(now time.Time, only []string) pgx.NamedArgs {
	return pgx.NamedArgs{"now": now, "failed_window": FailedWindow, "ended_window": EndedWindow, "only": orAll(only)}
}

// Leftovers reads which cleanups are to be asked for. only narrows it to some reservations; empty means all.
func (db *DB) Leftovers(ctx context.Context, now time.Time, only []string) ([]Leftover, error) {
	found, err := query(ctx, db, pgx.RowToStructByPos[Leftover], `
		select * from (`+leftovers+`) l where @only::text[] is null or l.reservation_id = any(@only)
		order by 3 desc, 1`, leftoverArgs(now, only))
	if err != nil {
		return nil, fmt.Errorf("look for unfinished cleanups: %w", err)
	}
	return found, nil
}

// RequestCleanups asks for the cleanups of those of the given reservations that are still leftovers, and returns their
// ids.
func (db *DB) RequestCleanups(ctx context.Context, lease SweepLease, now time.Time, ids []string) ([]string, error) {
	var requested []string
	err := inBatches(ids, endBatch, func(batch []string) error {
		var left []Leftover
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `select * from (`+leftovers+`) l where l.reservation_id = any(@only)`, leftoverArgs(now, batch))
			if err != nil {
				return fmt.Errorf("look for unfinished cleanups: %w", err)
			}
			if left, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Leftover]); err != nil {
				return fmt.Errorf("look for unfinished cleanups: %w", err)
			}
			var cleanups []FollowUp
			var found []string
			for _, l := range left {
				cleanups = append(cleanups, FollowUp{Kind: Cleanup, Key: l.ReservationID, ReservationID: l.ReservationID, Subject: l.ReservationID})
				found = append(found, l.ReservationID)
			}
			if err := requestFollowUps(ctx, tx, cleanups); err != nil {
				return err
			}
			return wakeCleanups(ctx, tx, found)
		})
		if err != nil {
			return err
		}
		for _, l := range left {
			requested = append(requested, l.ReservationID)
		}
		return nil
	})
	return requested, err
}

// PodCandidate is a reservation whose pod has, by its row, the name of a pod that the cluster shows.
type PodCandidate struct {
	PodName       string
	ReservationID string
	Status        reservation.Status
	Namespace     string // the column as it is
	Started       reservation.Instant
	Ended         reservation.Instant // null while it is live
	UIDs          []string            // of its pods, as far as they were seen
	UnderWay      bool                // its cleanup is asked for
	CleanedUID    string              // of the pod that the cleanup has found
	CleanupAsked  time.Time           // zero where it is known already that it came back to life since
}

// CleansUp reports whether the cleanup under way sees to a pod: it was recorded, and is not one of a later life of which
// the cleanup has not heard.
func (c PodCandidate) CleansUp(uid string, created time.Time) bool {
	return c.UnderWay && slices.Contains(c.UIDs, uid) && (uid == c.CleanedUID || c.CleanupAsked.IsZero() || !created.After(c.CleanupAsked))
}

// PodCandidates reads which reservations may have had the pods of these names.
func (db *DB) PodCandidates(ctx context.Context, names []string) ([]PodCandidate, error) {
	found, err := query(ctx, db, func(row pgx.CollectableRow) (PodCandidate, error) {
		var c PodCandidate
		var asked *time.Time
		err := row.Scan(&c.PodName, &c.ReservationID, &c.Status, &c.Namespace, &c.Started, &c.Ended, &c.UIDs, &c.UnderWay, &c.CleanedUID, &asked)
		c.CleanupAsked = orZero(asked)
		return c, err
	}, `
		select n.name, r.reservation_id, coalesce(r.status, ''), coalesce(r.namespace, ''), r.created_at,
		       case when r.status in ('expired', 'cancelled', 'failed') then case when `+endStands+` then `+endedAt+` else r.updated_at end end,
		       array(select uid from expiry.pods p where p.reservation_id = r.reservation_id order by first_seen_at desc),
		       `+asked("r.reservation_id")+`, coalesce(c.pod_uid, ''), case when c.revived_at is null then c.requested_at end
		from unnest($1::text[]) as n (name)
		join reservations r on coalesce(nullif(r.pod_name, ''), 'gpu-dev-' || left(r.reservation_id, 8)) = n.name
		left join expiry.cleanups c on c.reservation_id = r.reservation_id
		order by 1, r.created_at, 2`, orNone(names))
	if err != nil {
		return nil, fmt.Errorf("look for the owners of %d pods: %w", len(names), err)
	}
	return found, nil
}

// RecordRevived remembers of which reservations that are live a cleanup was asked for, and returns how many are new among
// them. What was found out for such a cleanup, and done, says nothing about the reservation's next end.
func (db *DB) RecordRevived(ctx context.Context, lease SweepLease) (int, error) {
	var revived int
	err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			update expiry.cleanups c set revived_at = clock_timestamp()
			where c.reservation_id in (
			    select k.reservation_id from expiry.cleanups k join reservations r using (reservation_id)
			    where k.revived_at is null and `+isLive+`
			    for no key update of k skip locked) -- whoever is at work on one sees for himself
			returning c.reservation_id`)
		var ids []string
		if err == nil {
			ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil {
			return fmt.Errorf("record which reservations came back to life: %w", err)
		}
		revived = len(ids)
		return wakeCleanups(ctx, tx, ids)
	})
	return revived, err
}

// SeenPod is a pod that the cluster shows.
type SeenPod struct {
	Namespace, Name, UID string
	Created              time.Time
}

// CleanUpAgain asks for the cleanup of an ended reservation of which a pod is still or again there, whether a cleanup
// has settled before, is under way or never began, and records the pod as the reservation's: made after its cleanup was
// asked for, it makes that begin anew. It reports false where the cleanup is under way with that pod or has seen it gone
// meanwhile, the reservation is live, or the pod was seen as another's.
func (db *DB) CleanUpAgain(ctx context.Context, lease SweepLease, reservationID string, p SeenPod, why string) (bool, error) {
	var requested bool
	err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			insert into expiry.pods (uid, reservation_id, namespace, name, created_at)
			select $2, r.reservation_id, $3, $4, $5 from reservations r
			where r.reservation_id = $1 and r.status in ('expired', 'cancelled', 'failed')
			on conflict do nothing`, reservationID, p.UID, p.Namespace, p.Name, p.Created)
		var own bool
		if err == nil {
			err = tx.QueryRow(ctx, "select exists (select from expiry.pods where uid = $1 and reservation_id = $2)", p.UID, reservationID).Scan(&own)
		}
		if err != nil {
			return fmt.Errorf("record the pod of %s: %w", reservationID, err)
		}
		if !own {
			return nil
		}
		_, err = tx.Exec(ctx, `
			update expiry.cleanups c set revived_at = clock_timestamp()
			where c.reservation_id in (
			    select k.reservation_id from expiry.cleanups k join reservations r using (reservation_id)
			    where k.reservation_id = $1 and k.requested_at < $3 and k.pod_uid is distinct from $2 and k.revived_at is null
			      and `+isOver+`
			    for no key update of k skip locked)`, reservationID, p.UID, p.Created) // the next tick finds the pod again
		if err != nil {
			return fmt.Errorf("record that %s came back to life: %w", reservationID, err)
		}
		if requested, err = reopenCleanup(ctx, tx, lease, reservationID, p.UID, why); err != nil || requested {
			return err
		}
		err = tx.QueryRow(ctx, `
			select true from reservations r left join expiry.cleanups c using (reservation_id)
			where r.reservation_id = $1 and r.status in ('expired', 'cancelled', 'failed') and not `+goneSince("$2", "$3")+`
			  and (`+endedAgain+` or not `+asked("r.reservation_id")+`)`, reservationID, p.UID, lease.token).Scan(&requested)
		if err == nil {
			if err := requestCleanup(ctx, tx, reservationID); err != nil {
				return err
			}
			return wakeCleanups(ctx, tx, []string{reservationID})
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return fmt.Errorf("look for the cleanup of %s: %w", reservationID, err)
	})
	return requested && err == nil, err
}
