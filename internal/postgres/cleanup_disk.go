package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// FinishReleased records that nothing is left of a cleanup's disk, which was released before, and settles the cleanup if
// that was the last step. It changes nothing where c, read before, has begun anew since, or is to: that one has a disk of
// its own to see to.
func (db *DB) FinishReleased(ctx context.Context, c CleanupRecord, detail string) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var same bool
		err := tx.QueryRow(ctx, `
			select requested_at = $2 and revived_at is null and disk_released_at is not null from expiry.cleanups where reservation_id = $1
			for no key update`, c.ReservationID, c.RequestedAt).Scan(&same)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || err == nil && !same:
			return nil
		case err != nil:
			return fmt.Errorf("look whether the disk of %s is released: %w", c.ReservationID, err)
		}
		return finishDisk(ctx, tx, c.ReservationID, OutcomeReleased, detail)
	})
}

// finishDisk records how the disk's part of a cleanup ended. The disk does not wait for other steps: while one is open
// its follow-up is due, and whoever finishes the last step settles the cleanup.
func finishDisk(ctx context.Context, tx pgx.Tx, reservationID, outcome, detail string) error {
	if err := finishStep(ctx, tx, reservationID, StepDisk, outcome, detail); err != nil {
		return err
	}
	_, settled, err := settleCleanup(ctx, tx, reservationID)
	if err != nil || settled {
		return err
	}
	return ensureRequested(ctx, tx, reservationID, string(Cleanup))
}

// FinishWithoutVolume ends the disk's part of a cleanup for which no volume is known, releasing the disk if this very
// reservation holds its lock and no live one has it. It returns the outcome, and is an error
// where the reservation has come back to life since.
func (db *DB) FinishWithoutVolume(ctx context.Context, reservationID, detail string) (string, error) {
	outcome := OutcomeNothingToKeep
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		held, err := disksHeldBy(ctx, tx, reservationID)
		if err != nil {
			return err
		}
		var revived bool
		err = tx.QueryRow(ctx, `
			select exists (select from expiry.cleanups c join reservations r using (reservation_id)
			               where c.reservation_id = $1
			                 and (`+isLive+` or `+endedAgain+`
			                      or c.volume_id is null and `+volumeIn("r.ebs_volume_id")+` <> coalesce(c.misnamed_volume_id, '')
			                      or c.volume_id is null and r.launched_at is not null and exists (
			                          select from disks d where d.reservation_id = $1 and d.in_use and `+volumeIn("d.ebs_volume_id")+` is not null
			                          and d.disk_name = coalesce(c.disk_name, d.disk_name))))`,
			reservationID).Scan(&revived)
		if err != nil {
			return fmt.Errorf("look whether %s is live: %w", reservationID, err)
		}
		if revived {
			return fault.Errorf(fault.Conflict, "reservation %s is live again, or was since, or has a volume after all", reservationID)
		}
		for _, d := range held {
			if d.taken {
				outcome, detail = OutcomeSuperseded, fmt.Sprintf("a live reservation has disk %s", d.name)
				continue
			}
			if err := releaseDisk(ctx, tx, reservationID, d); err != nil {
				return err
			}
		}
		return finishDisk(ctx, tx, reservationID, outcome, detail)
	})
	return outcome, err
}

// BelieveRow forgets that the reservation's row named a wrong volume: where it names that no longer, since whoever writes it
// there anew means it, or where it names the one that is left.
func (db *DB) BelieveRow(ctx context.Context, reservationID, left string) error {
	_, err := db.exec(ctx, `
		update expiry.cleanups c set misnamed_volume_id = null
		from reservations r
		where c.reservation_id = $1 and r.reservation_id = $1
		  and (`+volumeIn("r.ebs_volume_id")+` is distinct from c.misnamed_volume_id or c.misnamed_volume_id = $2)`, reservationID, left)
	if err != nil {
		return fmt.Errorf("believe the row of %s again: %w", reservationID, err)
	}
	return nil
}

// heldDisk is a disk whose lock a reservation holds.
type heldDisk struct {
	id, user, name string
	taken          bool // by a live reservation
}

// disksHeldBy locks and returns the disks that are in use by the reservation, but for those on a volume that are not the
// cleanup's: that begins anew for each of them.
func disksHeldBy(ctx context.Context, tx pgx.Tx, reservationID string) ([]heldDisk, error) {
	rows, err := tx.Query(ctx, `
		select d.disk_id::text, d.user_id, d.disk_name, exists (
		           select from reservations l
		           where l.reservation_id <> $1 and `+hasDisk("d.user_id", "d.disk_name", volumeIn("d.ebs_volume_id"), setOf("$1"))+`)
		from disks d
		where d.reservation_id = $1 and d.in_use
		  and not (`+volumeIn("d.ebs_volume_id")+` is not null and exists (
		           select from expiry.cleanups c where c.reservation_id = $1 and c.disk_name <> d.disk_name))
		for update of d`, reservationID)
	if err != nil {
		return nil, fmt.Errorf("lock the disk of %s: %w", reservationID, err)
	}
	held, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (heldDisk, error) {
		var d heldDisk
		err := row.Scan(&d.id, &d.user, &d.name, &d.taken)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("lock the disk of %s: %w", reservationID, err)
	}
	return held, nil
}

// releaseDisk frees a disk whose row the transaction has locked, with the fact.
func releaseDisk(ctx context.Context, tx pgx.Tx, reservationID string, d heldDisk) error {
	var at time.Time
	err := tx.QueryRow(ctx, `
		update disks set in_use = false, reservation_id = null, last_updated = clock_timestamp()
		where disk_id = $1 and in_use and reservation_id = $2
		returning last_updated`, d.id, reservationID).Scan(&at)
	if err != nil {
		return fmt.Errorf("release disk %s of %s: %w", d.name, reservationID, err)
	}
	return recordFact(ctx, tx, event.DiskReleased, reservationID,
		event.DiskRelease{ReservationID: reservationID, UserID: d.user, DiskName: d.name, ReleasedAt: at.UTC()})
}

// DiskOf returns the name of the disk that a cleanup is about, and the volume that the platform keeps it on, from the
// disks table: the one whose lock the reservation holds, of several that which the cleanup names, else the one on the
// given volume. Each is empty where unknown.
func (db *DB) DiskOf(ctx context.Context, reservationID, userID, volumeID string) (name, volume string, err error) {
	found, _, err := first(query(ctx, db, pgx.RowTo[[]string], `
		select array[disk_name, coalesce(`+volumeIn("ebs_volume_id")+`, '')]
		from disks
		where (reservation_id = $1 or `+volumeIn("ebs_volume_id")+` = $3) and ($2 = '' or user_id = $2)
		order by (reservation_id = $1) desc nulls last,
		         disk_name = (select c.disk_name from expiry.cleanups c where c.reservation_id = $1) desc nulls last
		limit 1`, reservationID, userID, volumeID))
	if err != nil {
		return "", "", fmt.Errorf("look for the disk of %s: %w", reservationID, err)
	}
	if found == nil {
		return "", "", nil
	}
	return found[0], found[1], nil
}

// RecordDiskName stores a disk's name learnt from its volume. A name known before stays.
func (db *DB) RecordDiskName(ctx context.Context, reservationID, name string) error {
	_, err := db.exec(ctx, `
		update expiry.cleanups set disk_name = coalesce(disk_name, $2) where reservation_id = $1`, reservationID, name)
	if err != nil {
		return fmt.Errorf("record the name of the disk of %s: %w", reservationID, err)
	}
	return nil
}
