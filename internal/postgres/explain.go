package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Life is what the rows say about one reservation. Whatever nothing is known of is nil or empty.
type Life struct {
	Now           time.Time
	ReservationID string

	Row      *reservation.Reservation // nil: the platform has no such row, or not any more
	Deadline time.Time                // the effective one; zero unless Anomaly is empty
	Anomaly  reservation.Anomaly

	Ended     *Announced // the last ending that this service announced
	Missing   *MissingPod
	OOMKill   *OOMKill // the newest
	FollowUps []FollowUpRecord
	Leftover  bool // it has ended, and the next tick asks for its cleanup
	Cleanup   *CleanupRecord
	Steps     map[Step]StepRecord
	Snapshots []SnapshotRecord
	Disks     []DiskRecord
	Pause     *Pause
}

// Announced is an ending as this service announced it.
type Announced struct {
	event.Ended
	Type string // the fact's
}

// MissingPod is the series of absences of an active reservation's pod.
type MissingPod struct{ FirstSeen, LastSeen time.Time }

// DiskRecord is a row of the platform's disks. Times are zero where the column is null.
type DiskRecord struct {
	UserID, Name     string
	InUse            bool
	HolderID         string // the reservation that the row names
	VolumeID         string // as the column has it
	Size             string
	BackingUp        bool
	Deleted          bool
	DeleteDate       time.Time
	Snapshots        int
	PendingSnapshots int
	LastSnapshotAt   time.Time
	ContentURL       string
	OperationStatus  string
	OperationError   string
}

// FindReservations returns the ids that a person may mean: the one that is exactly this, else those of which it is
// the beginning or the pod's name, at most limit of them.
func (db *DB) FindReservations(ctx context.Context, meant string, limit int) ([]string, error) {
	found, err := query(ctx, db, pgx.RowTo[string], `
		select reservation_id from reservations
		where starts_with(reservation_id, $1) or coalesce(nullif(pod_name, ''), 'gpu-dev-' || left(reservation_id, 8)) = $1
		union select reservation_id from expiry.cleanups where starts_with(reservation_id, $1)
		union select reservation_id from expiry.follow_ups where starts_with(reservation_id, $1)
		order by 1 limit $2`, meant, limit)
	if err != nil {
		return nil, fmt.Errorf("look for reservation %q: %w", meant, err)
	}
	if len(found) > 0 && found[0] == meant { // it sorts before all that it begins
		return found[:1], nil
	}
	return found, nil
}

// Life reads everything about one reservation, by several statements: what changes meanwhile may be seen half.
func (db *DB) Life(ctx context.Context, reservationID string) (Life, error) {
	life := Life{ReservationID: reservationID}
	var err error
	if life.Now, err = db.Now(ctx); err != nil {
		return life, err
	}
	for _, read := range []func(context.Context, *Life) error{
		db.readRow, db.readEnding, db.readTroubles, db.readFollowUps, db.readCleanup, db.readSnapshots, db.readDisks,
	} {
		if err := read(ctx, &life); err != nil {
			return life, fmt.Errorf("explain %s: %w", reservationID, err)
		}
	}
	return life, nil
}

func (db *DB) readRow(ctx context.Context, life *Life) error {
	s, found, err := db.LoadWarningSubject(ctx, life.ReservationID)
	if found {
		life.Row, life.Deadline, life.Anomaly = &s.Reservation, s.Deadline, s.Anomaly
	}
	return err
}

func (db *DB) readEnding(ctx context.Context, life *Life) error {
	ended, found, err := first(query(ctx, db, func(row pgx.CollectableRow) (Announced, error) {
		var a Announced
		var data json.RawMessage
		if err := row.Scan(&a.Type, &data); err != nil {
			return a, err
		}
		return a, json.Unmarshal(data, &a.Ended)
	}, `
		select type, data from expiry.facts where subject = $1 and type = any($2) order by sequence desc limit 1`,
		life.ReservationID, []string{event.ReservationExpired, event.ReservationFailed, event.ReservationCancelled}))
	if found {
		life.Ended = &ended
	}
	return err
}

// readTroubles reads what besides its deadline may concern a reservation: a pause, a missing pod, memory.
func (db *DB) readTroubles(ctx context.Context, life *Life) error {
	missing, isMissing, err1 := first(query(ctx, db, pgx.RowToStructByPos[MissingPod], `
		select first_seen_at, last_seen_at from expiry.missing_pods where reservation_id = $1 and ended_at is null`, life.ReservationID))
	if isMissing {
		life.Missing = &missing
	}
	kill, found, err2 := db.NewestOOMKill(ctx, life.ReservationID)
	if found {
		life.OOMKill = &kill
	}
	var err3 error
	life.Pause, err3 = db.Paused(ctx)
	return errors.Join(err1, err2, err3)
}

func (db *DB) readFollowUps(ctx context.Context, life *Life) error {
	var err error
	life.FollowUps, err = query(ctx, db, scanFollowUpRecord, `
		select `+followUpRecordColumns+` from expiry.follow_ups where reservation_id = $1 order by created_at, kind, key`, life.ReservationID)
	return err
}

func (db *DB) readCleanup(ctx context.Context, life *Life) error {
	left, err := db.Leftovers(ctx, life.Now, []string{life.ReservationID})
	if err != nil {
		return err
	}
	life.Leftover = len(left) > 0
	cleanup, found, err := db.LoadCleanup(ctx, life.ReservationID)
	if err != nil || !found {
		return err
	}
	life.Cleanup = &cleanup
	life.Steps, err = db.CleanupSteps(ctx, life.ReservationID)
	return err
}

func (db *DB) readSnapshots(ctx context.Context, life *Life) error {
	var err error
	life.Snapshots, err = query(ctx, db, scanSnapshot, `
		select `+snapshotColumns+` from expiry.snapshots s where s.reservation_id = $1 order by s.attempt`, life.ReservationID)
	return err
}

// readDisks reads the disk that the reservation names and those whose lock it holds. It comes after the row and the
// cleanup, which know the name.
func (db *DB) readDisks(ctx context.Context, life *Life) error {
	var user, name string
	if life.Row != nil {
		user, name = life.Row.UserID, life.Row.DiskName
	}
	if c := life.Cleanup; c != nil && c.DiskName != "" {
		user, name = c.UserID, c.DiskName
	}
	var err error
	life.Disks, err = query(ctx, db, func(row pgx.CollectableRow) (DiskRecord, error) {
		var d DiskRecord
		var lastSnapshot reservation.Instant
		var deleteDate *time.Time
		err := row.Scan(&d.UserID, &d.Name, &d.InUse, &d.HolderID, &d.VolumeID, &d.Size, &d.BackingUp, &d.Deleted, &deleteDate,
			&d.Snapshots, &d.PendingSnapshots, &lastSnapshot, &d.ContentURL, &d.OperationStatus, &d.OperationError)
		d.LastSnapshotAt, _ = lastSnapshot.Time()
		d.DeleteDate = orZero(deleteDate)
		return d, err
	}, `
		select user_id, disk_name, coalesce(in_use, false), coalesce(reservation_id, ''), coalesce(ebs_volume_id, ''),
		       coalesce(disk_size, ''), coalesce(is_backing_up, false), coalesce(is_deleted, false),
		       case when isfinite(delete_date) then delete_date end, coalesce(snapshot_count, 0), coalesce(pending_snapshot_count, 0),
		       last_snapshot_at, coalesce(latest_snapshot_content_s3, ''), coalesce(operation_status, ''), coalesce(operation_error, '')
		from disks
		where (user_id = $1 and disk_name = $2) or (reservation_id = $3 and in_use)
		order by disk_name`, user, name, life.ReservationID)
	return err
}
