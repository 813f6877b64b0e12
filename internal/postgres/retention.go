package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// DiskRows reads what the platform's table says of every disk, as far as its snapshots are concerned.
func (db *DB) DiskRows(ctx context.Context) (map[disk.Key]disk.Row, error) {
	rows := make(map[disk.Key]disk.Row)
	_, err := query(ctx, db, func(row pgx.CollectableRow) (disk.Key, error) {
		var key disk.Key
		var r disk.Row
		var date, marked *time.Time
		err := row.Scan(&key.User, &key.Name, &r.InUse, &r.Deleted, &date, &marked)
		r.DeleteDate, r.MarkedDeletedAt = orZero(date), orZero(marked)
		rows[key] = r
		return key, err
	}, `
		select user_id, disk_name, coalesce(in_use, false), coalesce(is_deleted, false),
		       case when isfinite(delete_date) then delete_date::timestamp at time zone 'UTC' end,
		       case when isfinite(marked_deleted_at) then marked_deleted_at end
		from disks`)
	if err != nil {
		return nil, fmt.Errorf("read the disks: %w", err)
	}
	return rows, nil
}

// PurgesDue returns the snapshots whose purge is asked for and not done, by EC2's ids.
func (db *DB) PurgesDue(ctx context.Context) (map[string]bool, error) {
	ids, err := query(ctx, db, pgx.RowTo[string], "select key from expiry.follow_ups where kind = 'snapshot.purge' and state = 'due'")
	if err != nil {
		return nil, fmt.Errorf("read the purges that are due: %w", err)
	}
	due := make(map[string]bool, len(ids))
	for _, id := range ids {
		due[id] = true
	}
	return due, nil
}

// RequestPurges asks for the purge of snapshots and returns the ids of those for which nobody was asked before. Whether
// each may really go is judged anew by its purge.
func (db *DB) RequestPurges(ctx context.Context, lease SweepLease, purges []disk.Purge) ([]string, error) {
	var requested []string
	err := inBatches(purges, sightingBatch, func(batch []disk.Purge) error {
		var fresh []string
		err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			ids := make([]string, len(batch))
			for i, p := range batch {
				ids[i] = p.SnapshotID
			}
			rows, err := tx.Query(ctx, `
				select id from unnest($1::text[]) id
				where not exists (select from expiry.follow_ups f where f.kind = 'snapshot.purge' and f.key = id and f.state = 'due')`, ids)
			if err != nil {
				return fmt.Errorf("look for the purges of %d snapshots: %w", len(ids), err)
			}
			if fresh, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
				return fmt.Errorf("look for the purges of %d snapshots: %w", len(ids), err)
			}
			followUps := make([]FollowUp, len(fresh))
			for i, id := range fresh {
				followUps[i] = FollowUp{Kind: SnapshotPurge, Key: id, Subject: id}
			}
			return requestFollowUps(ctx, tx, followUps)
		})
		if err == nil {
			requested = append(requested, fresh...)
		}
		return err
	})
	return requested, err
}
