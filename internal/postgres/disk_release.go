package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
)

// RecordDetach records, before EC2 is asked, that the volume is about to be detached, plainly or by force. Plain ones
// count from the last time; a forced one is never forgotten.
func (db *DB) RecordDetach(ctx context.Context, reservationID string, forced bool) (DiskVerdict, error) {
	return db.underDisk(ctx, reservationID, func(ctx context.Context, tx pgx.Tx, _ lockedDisk) error {
		_, err := tx.Exec(ctx, `
			update expiry.cleanups
			set detach_requested_at = case when $2 then detach_requested_at else clock_timestamp() end,
			    detach_forced_at = case when $2 then coalesce(detach_forced_at, clock_timestamp()) else detach_forced_at end
			where reservation_id = $1`, reservationID, forced)
		return err
	})
}

// ForgetWriterGone records that somebody has the volume attached again: no snapshot made so far proves anything any
// more. The cleanup is asked for again, unless its disk's part is over.
func (db *DB) ForgetWriterGone(ctx context.Context, reservationID string) error {
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			update expiry.cleanups c set writer_gone_at = null
			where reservation_id = $1 and settled_at is null and disk_released_at is null
			  and not exists (select from expiry.cleanup_steps s
			                  where s.reservation_id = c.reservation_id and s.step = $2 and s.finished_at is not null)`,
			reservationID, StepDisk)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return requestCleanup(ctx, tx, reservationID)
	})
	if err != nil {
		return fmt.Errorf("record that the volume of %s has a writer again: %w", reservationID, err)
	}
	return nil
}

// VolumeFate says what becomes of the volume of a disk that is released.
type VolumeFate string

// What may become of it.
const (
	VolumeDeleted  VolumeFate = "deleted"   // EC2 does not know it any more
	VolumeKept     VolumeFate = "kept"      // it stays the disk's
	VolumeSetAside VolumeFate = "set aside" // it stays for a while, but is not the disk's any more
)

// DeleteVolume is WithDisk for a remove that asks EC2 to delete the volume, to which only a completed snapshot of the
// cleanup's gives the right, made since the volume had no writer. While another snapshot of the cleanup's is unsettled,
// or where this one proves nothing, the verdict is DiskBusy. That it was asked is recorded: whoever comes later and finds
// the volume gone knows that nothing is lost.
func (db *DB) DeleteVolume(ctx context.Context, s SnapshotRecord, remove func(context.Context) error) (DiskVerdict, error) {
	return db.underDisk(ctx, s.ReservationID, func(ctx context.Context, tx pgx.Tx, _ lockedDisk) error {
		if err := proven(ctx, tx, s, remove); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			update expiry.snapshots set volume_deleted_at = coalesce(volume_deleted_at, clock_timestamp()) where intent_id = $1`, s.IntentID)
		return err
	})
}

func proven(ctx context.Context, tx pgx.Tx, s SnapshotRecord, act func(context.Context) error) error {
	var proof, open bool
	err := tx.QueryRow(ctx, `
		select exists (select from expiry.snapshots s join expiry.cleanups c using (reservation_id)
		               where s.intent_id = $1 and s.state = 'completed' and s.intended_at >= c.writer_gone_at),
		       exists (select from expiry.snapshots where reservation_id = $2 and state in ('intended', 'pending'))`,
		s.IntentID, s.ReservationID).Scan(&proof, &open)
	switch {
	case err != nil:
		return err
	case open || !proof:
		return errDiskBusy
	}
	return acting(ctx, act)
}

// ReleaseDisk frees the disk, with the fact, by the same right. last makes sure that the volume is as its fate says.
func (db *DB) ReleaseDisk(ctx context.Context, s SnapshotRecord, fate VolumeFate, last func(context.Context) error) (DiskVerdict, error) {
	return db.underDisk(ctx, s.ReservationID, func(ctx context.Context, tx pgx.Tx, d lockedDisk) error {
		if err := proven(ctx, tx, s, last); err != nil {
			return err
		}
		if err := freeDisk(ctx, tx, d, fate, ""); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			update expiry.snapshots
			set volume_deleted_at = case when $2 = 'deleted' then coalesce(volume_deleted_at, clock_timestamp()) end,
			    volume_aside_at = case when $2 = 'set aside' then clock_timestamp() end
			where intent_id = $1`, s.IntentID, fate)
		return err
	})
}

// SettleLost ends the disk's part of a cleanup whose volume has vanished without a snapshot of ours, and frees the
// disk, which the platform restores from what snapshots there are. Its row says so where no operation of the
// platform's is under way. Nothing is lost where the volume was deleted beside a snapshot that holds it, by an earlier
// cleanup or before this one began again: then the disk is just released. confirm is called under the disk's lock and
// fails where the volume is there after all, or another that the disk's row names instead, empty for none. While a snapshot
// of the cleanup's may yet complete the verdict is DiskBusy.
func (db *DB) SettleLost(ctx context.Context, reservationID, detail string, confirm func(ctx context.Context, another string) error) (lost bool, verdict DiskVerdict, err error) {
	verdict, err = db.underDisk(ctx, reservationID, func(ctx context.Context, tx pgx.Tx, d lockedDisk) error {
		var hope bool
		var another string
		err := tx.QueryRow(ctx, `
			select exists (select from expiry.snapshots s join expiry.cleanups c using (reservation_id)
			               where reservation_id = $1 and (s.state in ('intended', 'pending')
			                   or s.state = 'completed' and s.intended_at >= c.writer_gone_at)),
			       not exists (select from expiry.snapshots
			                   where volume_id = $2 and user_id = $3 and disk_name = $4
			                     and volume_deleted_at is not null and state in ('completed', 'purged')),
			       coalesce((select nullif(`+volumeIn("ebs_volume_id")+`, $2) from disks where disk_id::text = $5), '')`,
			reservationID, d.volume, d.user, d.name, d.id).Scan(&hope, &lost, &another)
		switch {
		case err != nil:
			return err
		case hope:
			return errDiskBusy
		}
		err = acting(ctx, func(ctx context.Context) error { return confirm(ctx, another) })
		if err != nil {
			return err
		}
		problem, outcome, found := detail, OutcomeLost, detail
		if !lost {
			problem, outcome, found = "", OutcomeReleased, "volume "+d.volume+" was deleted before, beside its snapshot"
		}
		if err := freeDisk(ctx, tx, d, VolumeDeleted, problem); err != nil {
			return err
		}
		return finishDisk(ctx, tx, reservationID, outcome, found)
	})
	return lost, verdict, err
}

// freeDisk gives the lock back, with the fact. problem, if there is one, is shown where the platform shows operations.
func freeDisk(ctx context.Context, tx pgx.Tx, d lockedDisk, fate VolumeFate, problem string) error {
	_, err := tx.Exec(ctx, "update expiry.cleanups set disk_released_at = clock_timestamp() where reservation_id = $1", d.reservation)
	if err != nil || d.id == "" {
		return err
	}
	var at time.Time
	err = tx.QueryRow(ctx, `
		update disks
		set in_use = false, reservation_id = null, last_updated = clock_timestamp(),
		    ebs_volume_id = case
		        when $3 = 'kept' then coalesce(nullif(ebs_volume_id, ''), $4)
		        when `+volumeIn("ebs_volume_id")+` is distinct from $4 then ebs_volume_id end,
		    operation_status = case when `+unreported+` then 'failed' else operation_status end,
		    operation_error = case when `+unreported+` then $5 else operation_error end
		where disk_id::text = $1 and in_use and coalesce(reservation_id, '') = $2
		returning last_updated`, d.id, d.holder, fate, d.volume, problem).Scan(&at)
	if err != nil {
		return fmt.Errorf("release disk %s of %s: %w", d.name, d.reservation, err)
	}
	return recordFact(ctx, tx, event.DiskReleased, d.reservation,
		event.DiskRelease{ReservationID: d.reservation, UserID: d.user, DiskName: d.name, ReleasedAt: at.UTC()})
}

// unreported holds where there is something to report and the platform reports nothing that is under way.
const unreported = `($5 <> '' and coalesce(operation_status, '') in ('', 'completed', 'failed'))`

// WithVolumeSetAside calls act while nobody can take over the disk whose volume was set aside when it was released: it
// is not in use (else the verdict is DiskBusy), and neither a live reservation, a disk nor an unsettled cleanup names
// the volume, nor has any that lived since, by its row or its cleanup's: whatever became of that, somebody may have written
// to it (else DiskSuperseded).
func (db *DB) WithVolumeSetAside(ctx context.Context, s SnapshotRecord, act func(context.Context) error) (DiskVerdict, error) {
	ctx, cancel := context.WithTimeout(ctx, diskBudget)
	defer cancel()
	verdict := DiskOurs
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		_, row, err := lockDiskRow(ctx, tx, disk.Key{User: s.User, Name: s.DiskName})
		if err != nil {
			return err
		}
		var named bool
		err = tx.QueryRow(ctx, `
			select exists (select from reservations r
			               where `+volumeIn("r.ebs_volume_id")+` = $1
			                 and (`+isLive+` or greatest(r.launched_at, `+endedAt+`) > s.volume_aside_at))
			    or exists (select from disks d where `+volumeIn("d.ebs_volume_id")+` = $1)
			    or exists (select from expiry.cleanups c where c.volume_id = $1 and c.settled_at is null
			                 and c.disk_released_at is null)
			    or exists (select from expiry.cleanups c where $1 in (c.volume_id, c.former_volume_id, c.misnamed_volume_id)
			                 and greatest(c.requested_at, c.revived_at) > s.volume_aside_at)
			from expiry.snapshots s where s.intent_id = $2`,
			s.VolumeID, s.IntentID).Scan(&named)
		switch {
		case err != nil:
			return err
		case named:
			verdict = DiskSuperseded
			return nil
		case row != nil && row.InUse:
			verdict = DiskBusy
			return nil
		}
		return acting(ctx, act)
	})
	if err != nil {
		return "", fmt.Errorf("under the lock of the disk of volume %s: %w", s.VolumeID, err)
	}
	return verdict, nil
}

// VolumesSetAside returns which of these volumes were set aside once, or deleted, and thus are no disk's any more,
// unless somebody has found a use for them since.
func (db *DB) VolumesSetAside(ctx context.Context, ids []string) ([]string, error) {
	aside, err := query(ctx, db, pgx.RowTo[string], `
		select distinct volume_id from expiry.snapshots
		where volume_id = any($1::text[])
		  and coalesce(volume_aside_at, volume_kept_at, volume_deleted_at) is not null`, orNone(ids))
	if err != nil {
		return nil, fmt.Errorf("look which of %d volumes are set aside: %w", len(ids), err)
	}
	return aside, nil
}

// RecordVolumeKept records that a volume set aside stays for good, and for people why.
func (db *DB) RecordVolumeKept(ctx context.Context, intent uuid.UUID, why string) error {
	_, err := db.exec(ctx, `
		update expiry.snapshots
		set volume_aside_at = null, volume_kept_at = clock_timestamp(), detail = 'volume kept for good: ' || $2
		where intent_id = $1 and volume_aside_at is not null and volume_deleted_at is null`, intent, why)
	if err != nil {
		return fmt.Errorf("record that the volume of snapshot intent %s is kept: %w", intent, err)
	}
	return nil
}

// RecordVolumeDeleted records that EC2 does not know the volume of a snapshot any more.
func (db *DB) RecordVolumeDeleted(ctx context.Context, intent uuid.UUID) error {
	_, err := db.exec(ctx, `
		update expiry.snapshots set volume_deleted_at = coalesce(volume_deleted_at, clock_timestamp()) where intent_id = $1`, intent)
	if err != nil {
		return fmt.Errorf("record that the volume of snapshot intent %s is deleted: %w", intent, err)
	}
	return nil
}
