package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
)

// A snapshot is counted by the transaction that flips its row's state, and by no other.

// lockDiskRow locks the row of a disk; the row is nil where there is none.
func lockDiskRow(ctx context.Context, tx pgx.Tx, key disk.Key) (id string, row *disk.Row, err error) {
	var found disk.Row
	var date *time.Time
	err = tx.QueryRow(ctx, `
		select disk_id::text, coalesce(in_use, false), coalesce(is_deleted, false), case when isfinite(delete_date) then delete_date end
		from disks where user_id = $1 and disk_name = $2 for update`, key.User, key.Name).
		Scan(&id, &found.InUse, &found.Deleted, &date)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("lock disk %s of %s: %w", key.Name, key.User, err)
	}
	found.DeleteDate = orZero(date)
	return id, &found, nil
}

// flip locks the disk's row, then moves a snapshot from one state to another. It reports false where it was not in
// the former.
func flip(ctx context.Context, tx pgx.Tx, s SnapshotRecord, to SnapshotState, started time.Time, detail string, from SnapshotState) (diskID string, flipped bool, err error) {
	diskID, _, err = lockDiskRow(ctx, tx, disk.Key{User: s.User, Name: s.DiskName})
	if err != nil {
		return "", false, err
	}
	tag, err := tx.Exec(ctx, `
		update expiry.snapshots
		set state = $2, settled_at = clock_timestamp(), started_at = coalesce($3, started_at), detail = coalesce(nullif($4, ''), detail)
		where intent_id = $1 and state = $5`, s.IntentID, to, orNull(started), storable(detail), from)
	if err != nil {
		return "", false, err
	}
	return diskID, tag.RowsAffected() == 1, nil
}

// CompleteSnapshot records that a pending snapshot has completed and counts it on its disk, with the fact. It reports
// false, and changes nothing, where it is pending no more: whoever flipped it has counted it.
func (db *DB) CompleteSnapshot(ctx context.Context, s SnapshotRecord, seen disk.Snapshot) (bool, error) {
	var completed bool
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		diskID, flipped, err := flip(ctx, tx, s, SnapshotCompleted, seen.StartedAt, "", SnapshotPending)
		if completed = flipped; err != nil || !flipped {
			return err
		}
		// Size and listing are of the newest, in whatever order they complete. All in one update: at a row's second one in a
		// transaction PostgreSQL looks for the reservation that it names, and so waits for whoever is deleting that, who waits
		// for this row.
		_, err = tx.Exec(ctx, `
			with counted as (
			    select o.started_at,
			           not exists (select from expiry.snapshots n
			                       where n.user_id = o.user_id and n.disk_name = o.disk_name and n.intent_id <> o.intent_id
			                         and n.state = 'completed' and n.started_at > o.started_at) as newest,
			           o.disk_size as size, o.content_key as content
			    from expiry.snapshots o where o.intent_id = $2
			)
			update disks d
			set snapshot_count             = greatest(coalesce(d.snapshot_count, 0), 0) + 1,
			    last_snapshot_at           = greatest(d.last_snapshot_at, counted.started_at),
			    disk_size                  = case when newest then coalesce(size, d.disk_size) else d.disk_size end,
			    latest_snapshot_content_s3 = case when newest then coalesce(content, d.latest_snapshot_content_s3)
			                                      else d.latest_snapshot_content_s3 end,
			    `+oneLessPending+`
			from counted where d.disk_id::text = $1`, diskID, s.IntentID)
		if err != nil {
			return err
		}
		return recordSnapshotted(ctx, tx, s)
	})
	if err != nil {
		return false, fmt.Errorf("record that snapshot %s has completed: %w", s.SnapshotID, err)
	}
	return completed, nil
}

// oneLessPending takes a snapshot that was flipped off the pending ones of its disk d.
const oneLessPending = `pending_snapshot_count = greatest(coalesce(d.pending_snapshot_count, 0) - 1, 0),
			    is_backing_up = coalesce(d.pending_snapshot_count, 0) > 1
			        or exists (select from expiry.snapshots o
			                   where o.user_id = d.user_id and o.disk_name = d.disk_name and o.state = 'pending'),
			    last_updated = clock_timestamp()`

// recordSnapshotted announces a completed snapshot of a disk; a volume that is no disk's is nobody's news.
func recordSnapshotted(ctx context.Context, tx pgx.Tx, s SnapshotRecord) error {
	if s.User == "" || s.DiskName == "" {
		return nil
	}
	var at time.Time
	if err := tx.QueryRow(ctx, "select clock_timestamp()").Scan(&at); err != nil {
		return err
	}
	subject := s.ReservationID
	if subject == "" {
		subject = s.SnapshotID
	}
	return recordFact(ctx, tx, event.DiskSnapshotted, subject, event.DiskSnapshot{
		ReservationID: s.ReservationID, UserID: s.User, DiskName: s.DiskName, SnapshotID: s.SnapshotID, VolumeID: s.VolumeID,
		CrashConsistent: s.CrashConsistent, CompletedAt: at.UTC()})
}

// FailSnapshot records that a pending snapshot will never complete, counts it down, and asks for the cleanup that made
// it to go on. It reports false, and changes nothing, where it is pending no more.
func (db *DB) FailSnapshot(ctx context.Context, s SnapshotRecord, why string) (bool, error) {
	var failed bool
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		diskID, flipped, err := flip(ctx, tx, s, SnapshotError, time.Time{}, why, SnapshotPending)
		if failed = flipped; err != nil || !flipped {
			return err
		}
		if _, err := tx.Exec(ctx, "update disks d set "+oneLessPending+" where d.disk_id::text = $1", diskID); err != nil {
			return err
		}
		return resumeCleanup(ctx, tx, s)
	})
	if err != nil {
		return false, fmt.Errorf("record that snapshot %s has failed: %w", s.SnapshotID, err)
	}
	return failed, nil
}

// resumeCleanup asks for the cleanup of a snapshot's reservation where the disk's part of it is open.
func resumeCleanup(ctx context.Context, tx pgx.Tx, s SnapshotRecord) error {
	if s.ReservationID == "" {
		return nil
	}
	var open bool
	err := tx.QueryRow(ctx, `
		select exists (select from expiry.cleanups c where c.reservation_id = $1 and c.settled_at is null and not exists (
		           select from expiry.cleanup_steps s
		           where s.reservation_id = c.reservation_id and s.step = $2 and s.finished_at is not null))`,
		s.ReservationID, StepDisk).Scan(&open)
	if err != nil || !open {
		return err
	}
	return requestCleanup(ctx, tx, s.ReservationID)
}
