package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// SnapshotState is how far a snapshot of ours is, as stored.
type SnapshotState string

// The states. Only intended ones have no snapshot, and abandoned ones unless it is found later.
const (
	SnapshotIntended  SnapshotState = "intended" // about to be asked for, or asked for without an answer
	SnapshotPending   SnapshotState = "pending"  // counted as pending on its disk
	SnapshotCompleted SnapshotState = "completed"
	SnapshotError     SnapshotState = "error"
	SnapshotAbandoned SnapshotState = "abandoned" // refused, or never found
	SnapshotPurged    SnapshotState = "purged"
)

// SnapshotRecord is a snapshot of ours as recorded. Times are zero where the column is null.
type SnapshotRecord struct {
	IntentID        uuid.UUID
	SnapshotID      string
	ReservationID   string // empty where it was adopted
	User            string
	DiskName        string // empty where the volume is no disk's
	VolumeID        string
	Attempt         int
	State           SnapshotState
	CrashConsistent bool
	DiskSize        string // as `du` says it
	ContentURL      string // s3://…, the listing
	IntendedAt      time.Time
	StartedAt       time.Time // by EC2's clock
	SettledAt       time.Time // when the state was last flipped
	VolumeAsideAt   time.Time // the volume stays for a while, but is not the disk's any more
	VolumeDeletedAt time.Time
	Looks           int       // in vain, for what an unanswered request may have made
	Detail          string    // why it failed or was abandoned
	Now             time.Time // the database's clock at this reading
}

// VolumeAside reports whether its volume is set aside, for which only this snapshot shows that it may be deleted.
func (s SnapshotRecord) VolumeAside() bool {
	return !s.VolumeAsideAt.IsZero() && s.VolumeDeletedAt.IsZero()
}

const snapshotColumns = `s.intent_id, coalesce(s.snapshot_id, ''), coalesce(s.reservation_id, ''), s.user_id, s.disk_name,
	coalesce(s.volume_id, ''), s.attempt, s.state, s.crash_consistent, coalesce(s.disk_size, ''), coalesce(s.content_key, ''),
	s.intended_at, s.started_at, s.settled_at, s.volume_aside_at, s.volume_deleted_at, s.looks,
	coalesce(s.detail, ''), clock_timestamp()`

func scanSnapshot(row pgx.CollectableRow) (SnapshotRecord, error) {
	var s SnapshotRecord
	var started, settled, aside, deleted *time.Time
	err := row.Scan(&s.IntentID, &s.SnapshotID, &s.ReservationID, &s.User, &s.DiskName,
		&s.VolumeID, &s.Attempt, &s.State, &s.CrashConsistent, &s.DiskSize, &s.ContentURL,
		&s.IntendedAt, &started, &settled, &aside, &deleted, &s.Looks,
		&s.Detail, &s.Now)
	s.StartedAt, s.SettledAt, s.VolumeAsideAt, s.VolumeDeletedAt = orZero(started), orZero(settled), orZero(aside), orZero(deleted)
	return s, err
}

// LoadSnapshot reads a snapshot by its intent. It reports false where there is none.
func (db *DB) LoadSnapshot(ctx context.Context, intent uuid.UUID) (SnapshotRecord, bool, error) {
	s, found, err := first(query(ctx, db, scanSnapshot, `
		select `+snapshotColumns+` from expiry.snapshots s where s.intent_id = $1`, intent))
	if err != nil {
		return s, false, fmt.Errorf("read snapshot intent %s: %w", intent, err)
	}
	return s, found, nil
}

// SnapshotByID reads a snapshot by EC2's id. It reports false where it is not known.
func (db *DB) SnapshotByID(ctx context.Context, snapshotID string) (SnapshotRecord, bool, error) {
	s, found, err := first(query(ctx, db, scanSnapshot, `
		select `+snapshotColumns+` from expiry.snapshots s where s.snapshot_id = $1`, snapshotID))
	if err != nil {
		return s, false, fmt.Errorf("read snapshot %s: %w", snapshotID, err)
	}
	return s, found, nil
}

// Attempts sums up what a cleanup has tried since the volume's writer was gone.
type Attempts struct {
	// Standing is what the cleanup goes on with, nil where it needs a new attempt: an open intent first, else a completed
	// snapshot, else a pending one, of several the newest.
	Standing *SnapshotRecord
	Failed   int       // snapshots that ended in an error
	FailedAt time.Time // the last of them
	Now      time.Time // the database's clock at this reading
}

// SnapshotAttempts reads what the cleanup of a reservation has tried.
func (db *DB) SnapshotAttempts(ctx context.Context, reservationID string) (Attempts, error) {
	all, err := query(ctx, db, scanSnapshot, `
		select `+snapshotColumns+`
		from expiry.snapshots s join expiry.cleanups c using (reservation_id)
		where s.reservation_id = $1 and s.intended_at >= c.writer_gone_at
		order by array_position(array['intended', 'completed', 'pending'], s.state), s.attempt desc`, reservationID)
	if err != nil {
		return Attempts{}, fmt.Errorf("read the snapshots of %s: %w", reservationID, err)
	}
	var a Attempts
	for i, s := range all {
		a.Now = s.Now
		switch s.State {
		case SnapshotIntended, SnapshotCompleted, SnapshotPending:
			if i == 0 {
				a.Standing = &s
			}
		case SnapshotError:
			a.Failed++
			if s.SettledAt.After(a.FailedAt) {
				a.FailedAt = s.SettledAt
			}
		}
	}
	return a, nil
}

// IntendSnapshot records, before EC2 is asked, that the next attempt of a cleanup is about to make a snapshot of its
// volume, which was just seen without a writer. An attempt that still stands is returned instead, with made false.
func (db *DB) IntendSnapshot(ctx context.Context, reservationID string, intent uuid.UUID) (s SnapshotRecord, made bool, verdict DiskVerdict, err error) {
	verdict, err = db.underDisk(ctx, reservationID, func(ctx context.Context, tx pgx.Tx, d lockedDisk) error {
		_, err := tx.Exec(ctx, `
			update expiry.cleanups set writer_gone_at = clock_timestamp()
			where reservation_id = $1 and writer_gone_at is null`, reservationID)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			update expiry.snapshots s set state = 'abandoned', settled_at = clock_timestamp(), detail = 'the volume had a writer again'
			from expiry.cleanups c
			where s.reservation_id = $1 and s.state = 'intended' and c.reservation_id = $1 and s.intended_at < c.writer_gone_at`,
			reservationID)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			insert into expiry.snapshots (intent_id, reservation_id, user_id, disk_name, volume_id, attempt, state,
			                              crash_consistent, disk_size, content_key)
			select $2, c.reservation_id, $3, $4, $5,
			       1 + coalesce((select max(attempt) from expiry.snapshots o where o.reservation_id = c.reservation_id), 0),
			       'intended', c.detach_forced_at is not null, c.disk_size, c.content_key
			from expiry.cleanups c
			where c.reservation_id = $1 and not exists (
			    select from expiry.snapshots o
			    where o.reservation_id = c.reservation_id and o.intended_at >= c.writer_gone_at
			      and o.state in ('intended', 'pending', 'completed'))`,
			reservationID, intent, d.user, d.name, d.volume)
		if err != nil {
			return err
		}
		made = tag.RowsAffected() == 1
		return nil
	})
	if err != nil || verdict != DiskOurs {
		return s, false, verdict, err
	}
	if !made {
		a, err := db.SnapshotAttempts(ctx, reservationID)
		if err == nil && a.Standing == nil {
			err = fmt.Errorf("the attempt of %s that stood is gone", reservationID)
		}
		if err != nil {
			return s, false, verdict, err
		}
		return *a.Standing, false, verdict, nil
	}
	s, _, err = db.LoadSnapshot(ctx, intent)
	return s, made, verdict, err
}

// makeWithin is how soon after its intent a snapshot must be asked for: an intent that is older may have been looked up
// and abandoned by somebody else.
const makeWithin = 30 * time.Second

// MakeSnapshot calls create, which asks EC2 once for what was intended, under the lock of the disk, and counts the
// snapshot as pending. It reports false where the intent is not open any more or too old: look it up. Whatever create
// made before it, or the commit, failed is to be looked up, too.
func (db *DB) MakeSnapshot(ctx context.Context, s SnapshotRecord, create func(context.Context) (disk.Snapshot, error)) (bool, DiskVerdict, error) {
	var made bool
	verdict, err := db.underDisk(ctx, s.ReservationID, func(ctx context.Context, tx pgx.Tx, _ lockedDisk) error {
		var open bool
		err := tx.QueryRow(ctx, `
			select state = 'intended' and intended_at > clock_timestamp() - $2::interval
			from expiry.snapshots where intent_id = $1 for update`, s.IntentID, makeWithin).Scan(&open)
		if err != nil || !open {
			return err
		}
		var snapshot disk.Snapshot
		err = acting(ctx, func(ctx context.Context) (err error) {
			snapshot, err = create(ctx)
			return err
		})
		if err != nil {
			return err
		}
		made = true
		return recordMade(ctx, tx, s.IntentID, snapshot)
	})
	return made && err == nil, verdict, err
}

// FoundSnapshot records what an intent turned out to have made, and counts it as pending. Where that is recorded
// already nothing changes.
func (db *DB) FoundSnapshot(ctx context.Context, s SnapshotRecord, found disk.Snapshot) error {
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, _, err := lockDiskRow(ctx, tx, disk.Key{User: s.User, Name: s.DiskName}); err != nil {
			return err
		}
		return recordMade(ctx, tx, s.IntentID, found)
	})
	if err != nil {
		return fmt.Errorf("record snapshot %s of intent %s: %w", found.ID, s.IntentID, err)
	}
	return nil
}

// recordMade ties a snapshot to its intent, once, counts it as pending and asks for its sync.
func recordMade(ctx context.Context, tx pgx.Tx, intent uuid.UUID, made disk.Snapshot) error {
	var reservation, user, name string
	err := tx.QueryRow(ctx, `
		update expiry.snapshots
		set state = 'pending', snapshot_id = $2, started_at = $3, settled_at = null, detail = null
		where intent_id = $1 and state in ('intended', 'abandoned') and snapshot_id is null
		returning coalesce(reservation_id, ''), user_id, disk_name`, intent, made.ID, orNull(made.StartedAt)).Scan(&reservation, &user, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		update disks
		set pending_snapshot_count = greatest(coalesce(pending_snapshot_count, 0), 0) + 1, is_backing_up = true,
		    last_updated = clock_timestamp()
		where user_id = $1 and disk_name = $2`, user, name)
	if err != nil {
		return err
	}
	return requestSync(ctx, tx, intent, made.ID, reservation)
}

// requestSync makes a snapshot's sync due. At once: it is the sync that waits for EC2, and whoever has asked for it may
// be the last to send anything until the next tick.
func requestSync(ctx context.Context, tx executor, intent uuid.UUID, snapshotID, reservationID string) error {
	return requestFollowUp(ctx, tx, FollowUp{Kind: SnapshotSync, Key: intent.String(), ReservationID: reservationID, Subject: snapshotID})
}

// RequestSync asks for the sync of a snapshot that waits for one. Where that is due nothing changes.
func (db *DB) RequestSync(ctx context.Context, s SnapshotRecord) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return requestSync(ctx, db.pool, s.IntentID, s.SnapshotID, s.ReservationID)
}

// LookedInVain counts a look for what an intent may have made.
func (db *DB) LookedInVain(ctx context.Context, intent uuid.UUID) error {
	_, err := db.exec(ctx, "update expiry.snapshots set looks = looks + 1 where intent_id = $1 and state = 'intended'", intent)
	if err != nil {
		return fmt.Errorf("count a look for intent %s: %w", intent, err)
	}
	return nil
}

// AbandonSnapshot gives an intent up: EC2 refused it, or what it may have made was never found. Should it appear after
// all it is adopted. Nothing is counted.
func (db *DB) AbandonSnapshot(ctx context.Context, intent uuid.UUID, why string) error {
	_, err := db.exec(ctx, `
		update expiry.snapshots set state = 'abandoned', settled_at = clock_timestamp(), detail = $2
		where intent_id = $1 and state = 'intended'`, intent, storable(why))
	if err != nil {
		return fmt.Errorf("abandon intent %s: %w", intent, err)
	}
	return nil
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
