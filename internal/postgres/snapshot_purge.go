package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// VanishedSnapshot records that EC2 does not know a completed or failed snapshot any more, whoever deleted it, and takes
// a completed one off its disk's count. A cleanup that needed it goes on. It reports false, and changes nothing, where
// that is recorded already.
func (db *DB) VanishedSnapshot(ctx context.Context, s SnapshotRecord) (bool, error) {
	var vanished bool
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if vanished, err = purged(ctx, tx, s, "it is gone"); err != nil || !vanished {
			return err
		}
		return resumeCleanup(ctx, tx, s)
	})
	if err != nil {
		return false, fmt.Errorf("record that snapshot %s is gone: %w", s.SnapshotID, err)
	}
	return vanished, nil
}

func purged(ctx context.Context, tx pgx.Tx, s SnapshotRecord, why string) (bool, error) {
	diskID, wasCompleted, err := flip(ctx, tx, s, SnapshotPurged, time.Time{}, why, SnapshotCompleted)
	if err != nil {
		return false, err
	}
	if !wasCompleted {
		_, wasFailed, err := flip(ctx, tx, s, SnapshotPurged, time.Time{}, why, SnapshotError)
		return wasFailed, err
	}
	_, err = tx.Exec(ctx, `
		update disks set snapshot_count = greatest(coalesce(snapshot_count, 0) - 1, 0), last_updated = clock_timestamp()
		where disk_id::text = $1`, diskID)
	return true, err
}

// PurgeSnapshot calls remove under the lock of a snapshot's disk, with the snapshot and the disk as their rows say now (the
// disk nil where there is none) and those of the disk's snapshots that were purged or are to be, whatever EC2 lists, and
// records the deletion where remove reports one. A snapshot that has not settled is left alone and false returned.
func (db *DB) PurgeSnapshot(ctx context.Context, s SnapshotRecord, remove func(context.Context, SnapshotRecord, *disk.Row, []string) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, diskBudget)
	defer cancel()
	var removed bool
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		_, row, err := lockDiskRow(ctx, tx, disk.Key{User: s.User, Name: s.DiskName})
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			select `+snapshotColumns+` from expiry.snapshots s where s.intent_id = $1 for update`, s.IntentID)
		if err != nil {
			return err
		}
		current, err := pgx.CollectExactlyOneRow(rows, scanSnapshot)
		if err != nil || current.State != SnapshotCompleted && current.State != SnapshotError {
			return err
		}
		rows, err = tx.Query(ctx, `
			select key from expiry.follow_ups where kind = 'snapshot.purge' and state = 'due'
			union
			select snapshot_id from expiry.snapshots where state = 'purged' and user_id = $1 and disk_name = $2 and snapshot_id is not null`, s.User, s.DiskName)
		if err != nil {
			return err
		}
		going, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		err = acting(ctx, func(ctx context.Context) error {
			removed, err = remove(ctx, current, row, going)
			return err
		})
		if err != nil || !removed {
			return err
		}
		_, err = purged(ctx, tx, s, "")
		return err
	})
	if err != nil {
		return false, fmt.Errorf("purge snapshot %s: %w", s.SnapshotID, err)
	}
	return removed, nil
}
