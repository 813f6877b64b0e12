package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
)

// OrphanAge is how long a lock that names no reservation stays unchanged before it counts as forgotten: the platform
// takes a disk before it writes for whom.
const OrphanAge = time.Hour

// backupAge is how long a disk that the platform says is being backed up is left to that.
const backupAge = 24 * time.Hour

// IdleLock is a disk that is locked although nothing is owed any more to whoever locked it.
type IdleLock struct {
	DiskID, UserID, DiskName string
	ReservationID            string // empty where the lock names none
	VolumeID                 string // of the disk, by its row; empty where that names none
	Unheld                   bool   // there is no such reservation any more: what it left on the disk nobody may have captured
	Reason                   string
}

// forgotten holds where the row of disk d has been left alone for a while.
const forgotten = "greatest(d.last_updated, d.last_used, d.created_at) < @now::timestamptz - @orphan_age::interval"

// idleLocks selects disks d whose lock is idle: the holder's cleanup has settled since it ended, or there is no holder, or
// none any more, and the row has been left alone for a while or the cleanup has settled. A disk that a live reservation
// has, or an unsettled cleanup names, by its own name or by its volume, or of which a snapshot is unsettled, is never among
// them: the platform may delete a reservation while its cleanup is under way, and with that the lock names nobody.
var idleLocks = `
	select d.disk_id::text, d.user_id, d.disk_name, coalesce(d.reservation_id, ''),
	       coalesce(` + volumeIn("d.ebs_volume_id") + `, ''), r.reservation_id is null,
	       case when d.reservation_id is null then 'no reservation holds it'
	            when r.reservation_id is null then 'its reservation is gone from the tables'
	            else 'the cleanup of its reservation has settled: ' || c.outcome end
	from disks d
	left join reservations r on r.reservation_id = d.reservation_id
	left join expiry.cleanups c on c.reservation_id = d.reservation_id
	where d.in_use
	  and case when d.reservation_id is null then ` + forgotten + `
	           when r.reservation_id is null then c.revived_at is null and (c.settled_at is not null or ` + forgotten + `)
	           else r.status in ('expired', 'cancelled', 'failed') and c.settled_at is not null and not ` + endedAgain + ` end
	  and not exists (select from expiry.cleanups o
	                  where o.settled_at is null
	                    and (o.reservation_id = d.reservation_id or o.user_id = d.user_id and o.disk_name = d.disk_name
	                         or o.volume_id = ` + volumeIn("d.ebs_volume_id") + `))
	  and not exists (select from reservations l
	                  where ` + hasDisk("d.user_id", "d.disk_name", volumeIn("d.ebs_volume_id"), "coalesce(nullif(r.master_reservation_id, ''), d.reservation_id)") + `
	                     or ` + hasDisk("null", "null", "c.volume_id", "null") + `)
	  and not exists (select from expiry.snapshots s
	                  where s.user_id = d.user_id and s.disk_name = d.disk_name and s.state in ('intended', 'pending'))
	  and not (coalesce(d.is_backing_up, false) and d.last_updated > @now::timestamptz - @backup_age::interval)`

func lockArgs(now time.Time) pgx.NamedArgs {
	return pgx.NamedArgs{"now": now, "orphan_age": OrphanAge, "backup_age": backupAge}
}

// IdleLocks reads which disks are locked for nothing, as far as the rows tell, those locked last first.
func (db *DB) IdleLocks(ctx context.Context, now time.Time) ([]IdleLock, error) {
	idle, err := query(ctx, db, pgx.RowToStructByPos[IdleLock], idleLocks+" order by d.last_updated desc nulls last, 2, 3", lockArgs(now))
	if err != nil {
		return nil, fmt.Errorf("look for idle disk locks: %w", err)
	}
	return idle, nil
}

// ReleaseIdleLocks frees those of the given disks whose rows still say the same, and returns them. Each is announced.
func (db *DB) ReleaseIdleLocks(ctx context.Context, lease SweepLease, now time.Time, locks []IdleLock) ([]IdleLock, error) {
	var released []IdleLock
	err := inBatches(locks, endBatch, func(batch []IdleLock) error {
		ids := make([]string, len(batch))
		for i, l := range batch {
			ids[i] = l.DiskID
		}
		var freed []IdleLock
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			// Locked first, judged after, by a statement of its own: so that what others committed meanwhile is seen.
			if _, err := tx.Exec(ctx, "select from disks where disk_id = any($1::uuid[]) order by disk_id for update skip locked", ids); err != nil {
				return fmt.Errorf("lock %d disks: %w", len(ids), err)
			}
			args := lockArgs(now)
			args["ids"] = ids
			rows, err := tx.Query(ctx, idleLocks+" and d.disk_id = any(@ids::uuid[]) for update of d skip locked", args)
			if err != nil {
				return fmt.Errorf("judge %d disk locks: %w", len(ids), err)
			}
			if freed, err = pgx.CollectRows(rows, pgx.RowToStructByPos[IdleLock]); err != nil {
				return fmt.Errorf("judge %d disk locks: %w", len(ids), err)
			}
			freed = slices.DeleteFunc(freed, func(l IdleLock) bool { return !slices.Contains(batch, l) })
			return freeDisks(ctx, tx, now, freed)
		})
		if err == nil {
			released = append(released, freed...)
		}
		return err
	})
	return released, err
}

func freeDisks(ctx context.Context, tx pgx.Tx, now time.Time, locks []IdleLock) error {
	var ids []string
	var facts []newFact
	for _, l := range locks {
		ids = append(ids, l.DiskID)
		subject := l.ReservationID
		if subject == "" {
			subject = l.DiskID
		}
		facts = append(facts, newFact{Type: event.DiskReleased, Subject: subject, Data: event.DiskRelease{
			ReservationID: l.ReservationID, UserID: l.UserID, DiskName: l.DiskName, ReleasedAt: now}})
	}
	_, err := tx.Exec(ctx, `
		update disks set in_use = false, reservation_id = null, is_backing_up = false, last_updated = clock_timestamp()
		where disk_id = any($1::uuid[]) and in_use`, orNone(ids))
	if err != nil {
		return fmt.Errorf("release %d disks: %w", len(ids), err)
	}
	return recordFacts(ctx, tx, facts)
}
