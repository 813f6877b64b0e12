package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// adoptBatch is how many snapshots are looked for at once.
const adoptBatch = 1000

// AdoptSnapshots records those of the given snapshots, all of them ours (disk.Ours) and as EC2 lists them, that no row
// knows: made by the platform, by an earlier version, or by an attempt that was given up. How each is counted, so that
// it is counted once, disk.Adopt decides. What is pending gets a sync. A disk that somebody works on is left for the
// next time. It returns how many were recorded.
func (db *DB) AdoptSnapshots(ctx context.Context, found []disk.Snapshot) (int, error) {
	return db.adopt(ctx, db.inTx, found)
}

// SweepSnapshots is AdoptSnapshots by a sweep, under its lease.
func (db *DB) SweepSnapshots(ctx context.Context, lease SweepLease, found []disk.Snapshot) (int, error) {
	return db.adopt(ctx, db.leased(lease), found)
}

// inTxFunc runs work in a transaction.
type inTxFunc func(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error

func (db *DB) adopt(ctx context.Context, inTx inTxFunc, found []disk.Snapshot) (int, error) {
	byDisk := map[disk.Key][]disk.Snapshot{}
	err := inBatches(found, adoptBatch, func(batch []disk.Snapshot) error {
		ids := make([]string, len(batch))
		for i, s := range batch {
			ids[i] = s.ID
		}
		known, err := query(ctx, db, pgx.RowTo[string], `
			select snapshot_id from expiry.snapshots where snapshot_id = any($1)`, ids)
		if err != nil {
			return fmt.Errorf("look for %d snapshots: %w", len(ids), err)
		}
		isKnown := make(map[string]bool, len(known))
		for _, id := range known {
			isKnown[id] = true
		}
		for _, s := range batch {
			if !isKnown[s.ID] {
				byDisk[s.Key()] = append(byDisk[s.Key()], s)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	adopted := 0
	var failures []error
	keys := slices.SortedFunc(maps.Keys(byDisk), func(a, b disk.Key) int {
		return cmp.Or(strings.Compare(a.User, b.User), strings.Compare(a.Name, b.Name))
	})
	for _, key := range keys {
		snapshots := byDisk[key]
		n, err := adoptOf(ctx, inTx, key, snapshots)
		if err != nil {
			failures = append(failures, fmt.Errorf("adopt %d snapshots of disk %q of %s: %w", len(snapshots), key.Name, key.User, err))
		}
		if ctx.Err() != nil {
			break
		}
		adopted += n
	}
	return adopted, errors.Join(failures...)
}

// adoptOf adopts snapshots of one disk.
func adoptOf(ctx context.Context, inTx inTxFunc, key disk.Key, snapshots []disk.Snapshot) (adopted int, err error) {
	err = inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		adopted = 0
		if _, err := tx.Exec(ctx, "select set_config('lock_timeout', '1s', true)"); err != nil {
			return err
		}
		if _, _, err := lockDiskRow(ctx, tx, key); err != nil {
			return err
		}
		var strangers []disk.Snapshot
		for _, s := range snapshots {
			tied, made, err := adoptIntended(ctx, tx, s)
			if err != nil {
				return err
			}
			if made {
				adopted++
			}
			if !tied {
				strangers = append(strangers, s)
			}
		}
		n, err := adoptStrangers(ctx, tx, key, strangers)
		adopted += n
		return err
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == lockNotAvailable {
		return 0, nil
	}
	return adopted, err
}

// lockNotAvailable is what lock_timeout ends in.
const lockNotAvailable = "55P03"

// adoptIntended ties a snapshot to the intent in its tag. A young intent is left to those who just carry it out: the
// snapshot is tied, but not recorded.
func adoptIntended(ctx context.Context, tx pgx.Tx, s disk.Snapshot) (tied, made bool, err error) {
	intent, ok := intentOf(s)
	if !ok {
		return false, false, nil
	}
	var old bool
	err = tx.QueryRow(ctx, `
		select intended_at < clock_timestamp() - interval '2 minutes'
		from expiry.snapshots
		where intent_id = $1 and state in ('intended', 'abandoned') and snapshot_id is null
		  and volume_id = $2`, intent, s.VolumeID).Scan(&old)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, nil
	}
	if err != nil || !old {
		return true, false, err
	}
	return true, true, recordMade(ctx, tx, intent, s)
}

func intentOf(s disk.Snapshot) (uuid.UUID, bool) {
	intent, err := uuid.Parse(s.Tags[disk.TagIntent])
	return intent, err == nil
}

func adoptStrangers(ctx context.Context, tx pgx.Tx, key disk.Key, strangers []disk.Snapshot) (int, error) {
	if len(strangers) == 0 {
		return 0, nil
	}
	var awaited int
	var counted, now time.Time
	err := tx.QueryRow(ctx, `
		select coalesce(d.pending_snapshot_count, 0)
		     - (select count(*) from expiry.snapshots where user_id = $1 and disk_name = $2 and state = 'pending'),
		       coalesce(case when isfinite(d.last_updated) then d.last_updated end, 'epoch'), clock_timestamp()
		from (values (1)) one left join disks d on d.user_id = $1 and d.disk_name = $2`, key.User, key.Name).Scan(&awaited, &counted, &now)
	if err != nil {
		return 0, err
	}
	adopted := 0
	for _, a := range disk.Adopt(strangers, awaited, counted, now) {
		s := a.Snapshot
		var intent uuid.UUID
		err := tx.QueryRow(ctx, `
			insert into expiry.snapshots (intent_id, snapshot_id, user_id, disk_name, volume_id, state, crash_consistent,
			                              disk_size, content_key, started_at, settled_at)
			values (gen_random_uuid(), $1, $2, $3, nullif($4, ''), $5, $6, nullif($7, ''), nullif($8, ''), $9,
			        case when $5 <> 'pending' then clock_timestamp() end)
			on conflict do nothing
			returning intent_id`,
			s.ID, key.User, key.Name, s.VolumeID, string(a.As), s.CrashConsistent(),
			s.Tags[disk.TagSize], s.Tags[disk.TagContents], orNull(s.StartedAt)).Scan(&intent)
		if errors.Is(err, pgx.ErrNoRows) {
			continue // somebody else was faster
		}
		if err != nil {
			return 0, err
		}
		adopted++
		if a.As != disk.SnapshotPending {
			continue
		}
		if err := requestSync(ctx, tx, intent, s.ID, ""); err != nil {
			return 0, err
		}
	}
	return adopted, nil
}

// RequestSyncs asks at once for the syncs of those of the given snapshots, as EC2 lists them, that have ended while
// their rows still call them pending. One that fails keeps its pause. It returns how many there are.
func (db *DB) RequestSyncs(ctx context.Context, lease SweepLease, found []disk.Snapshot) (int, error) {
	var ended []string
	for _, s := range found {
		if s.State == disk.SnapshotCompleted || s.State == disk.SnapshotError {
			ended = append(ended, s.ID)
		}
	}
	requested := 0
	err := inBatches(ended, adoptBatch, func(batch []string) error {
		waiting, err := query(ctx, db, scanSnapshot, `
			select `+snapshotColumns+` from expiry.snapshots s where s.state = 'pending' and s.snapshot_id = any($1)`, batch)
		if err != nil || len(waiting) == 0 {
			return err
		}
		var syncs []FollowUp
		var keys []string
		for _, s := range waiting {
			key := s.IntentID.String()
			syncs = append(syncs, FollowUp{Kind: SnapshotSync, Key: key, ReservationID: s.ReservationID, Subject: s.SnapshotID})
			keys = append(keys, key)
		}
		requested += len(waiting)
		return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
			if err := requestFollowUps(ctx, tx, syncs); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `
				update expiry.follow_ups set due_at = clock_timestamp(), ask_again_at = '-infinity', updated_at = clock_timestamp()
				where kind = $1 and key = any($2) and state = 'due' and attempts = 0 and due_at > clock_timestamp()
				  and (lease_expires_at is null or lease_expires_at <= clock_timestamp())`, SnapshotSync, keys)
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the syncs of %d snapshots: %w", len(ended), err)
	}
	return requested, nil
}
