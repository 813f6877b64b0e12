package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// How a cleanup, and before it its disk's part, may end.
const (
	OutcomeReleased      = "released"        // the disk is kept as a snapshot and free
	OutcomeNothingToKeep = "nothing_to_keep" // there was no volume
	OutcomeSuperseded    = "superseded"      // disk, volume or name are in a newer reservation's hands
	OutcomeLost          = "lost"            // the volume vanished without a snapshot of ours
)

// Identity is what stood behind a reservation. It is recorded before the pod goes, which alone knows most of it.
// Empty fields are unknown.
type Identity struct {
	Namespace  string // where the pod was found
	PodName    string
	PodUID     string
	PodCreated time.Time
	NodeName   string
	InstanceID string
	ClaimName  string
	ClaimUID   string
	PVName     string
	PVUID      string
	VolumeID   string
	Misnamed   string // a volume that the row names although it is not the disk; recorded, not read
	Last       string // the volume to go on with where no other is found; recorded as FormerVolume
	DiskName   string
}

// CleanupRecord is a cleanup as recorded, with what the reservation's row says now. Times are zero where the column is
// null or holds a date that cannot be true.
type CleanupRecord struct {
	Identity

	ReservationID string
	Reason        string
	UserID        string
	GPUType       string
	Status        reservation.Status // without a row: what it ended as
	Vanished      bool               // the platform has deleted the reservation's row
	EndedAgain    bool               // it came back to life since the cleanup was asked for, which is to begin anew
	Started       time.Time
	Deadline      time.Time
	Ended         time.Time // by the row, else no later than when the cleanup was asked for
	Launched      bool
	LaunchedAt    time.Time
	NamedPod      string // columns pod_name and namespace of the row
	RowNamespace  string
	FormerVolume  string // of an earlier life, not kept when the cleanup began anew, or the last one named, no disk's any more
	VolumeUnsaid  bool   // VolumeID is what the row says now, which the cleanup has not recorded

	DiskSize             string // as `du` says it
	ContentURL           string // s3://…, the listing
	RequestedAt          time.Time
	PodGoneAt            time.Time
	ContainersTerminated bool // the kubelet was seen to report all of the pod's
	DetachRequestedAt    time.Time
	DetachForcedAt       time.Time
	WriterGoneAt         time.Time
	DiskReleasedAt       time.Time
	SettledAt            time.Time
	Outcome              string
	Now                  time.Time // the database's clock at this reading
}

// Over reports whether the reservation has ended for good, so that what stood behind it may go.
func (c CleanupRecord) Over() bool { return c.Vanished || c.Status.Ended() }

// LoadCleanup reads a reservation's cleanup. It reports false where there is none.
func (db *DB) LoadCleanup(ctx context.Context, reservationID string) (CleanupRecord, bool, error) {
	c, found, err := first(query(ctx, db, scanCleanup, `
		select c.reservation_id, c.reason, coalesce(c.user_id, r.user_id, ''), coalesce(r.gpu_type, c.gpu_type, ''),
		       coalesce(r.status, case when r.reservation_id is null then c.status end, ''),
		       r.reservation_id is null, `+endedAgain+`, coalesce(r.launched_at, c.launched_at),
		       coalesce(c.pod_name, r.pod_name, ''), coalesce(case when r.reservation_id is null then c.namespace else r.namespace end, ''),
		       coalesce(c.former_volume_id, ''), c.volume_id is null,
		       case when r.reservation_id is null then c.created_at else r.created_at end, coalesce(r.expires_at, c.expires_at),
		       coalesce(case when `+endStands+` then `+endWritten+` end, least(r.updated_at, c.requested_at)),
		       coalesce(c.namespace, ''), coalesce(c.pod_name, ''), coalesce(c.pod_uid, ''), coalesce(c.node_name, ''),
		       coalesce(c.instance_id, ''), coalesce(c.claim_name, ''), coalesce(c.claim_uid, ''),
		       coalesce(c.pv_name, ''), coalesce(c.pv_uid, ''),
		       coalesce(c.volume_id, nullif(`+volumeIn("r.ebs_volume_id")+`, c.misnamed_volume_id), ''),
		       coalesce(c.disk_name, r.disk_name, ''), coalesce(c.disk_size, ''), coalesce(c.content_key, ''),
		       c.requested_at, c.pod_gone_at, c.containers_terminated_at is not null, c.detach_requested_at,
		       c.detach_forced_at, c.writer_gone_at, c.disk_released_at, c.settled_at, coalesce(c.outcome, ''), clock_timestamp()
		from expiry.cleanups c
		left join reservations r using (reservation_id)
		where c.reservation_id = $1`, reservationID))
	if err != nil {
		return CleanupRecord{}, false, fmt.Errorf("read the cleanup of %s: %w", reservationID, err)
	}
	return c, found, nil
}

func scanCleanup(row pgx.CollectableRow) (CleanupRecord, error) {
	var c CleanupRecord
	var started, launched, deadline, ended reservation.Instant
	var podGone, detach, forced, writerGone, released, settled *time.Time
	err := row.Scan(
		&c.ReservationID, &c.Reason, &c.UserID, &c.GPUType,
		&c.Status, &c.Vanished, &c.EndedAgain, &launched,
		&c.NamedPod, &c.RowNamespace, &c.FormerVolume, &c.VolumeUnsaid,
		&started, &deadline, &ended,
		&c.Namespace, &c.PodName, &c.PodUID, &c.NodeName,
		&c.InstanceID, &c.ClaimName, &c.ClaimUID, &c.PVName, &c.PVUID,
		&c.VolumeID, &c.DiskName, &c.DiskSize, &c.ContentURL,
		&c.RequestedAt, &podGone, &c.ContainersTerminated, &detach, &forced, &writerGone, &released, &settled, &c.Outcome, &c.Now)
	c.Started, _ = started.Time()
	c.Launched = !launched.IsNull()
	c.LaunchedAt, _ = launched.Time()
	c.Deadline, _ = deadline.Time()
	c.Ended, _ = ended.Time()
	c.PodGoneAt, c.DetachRequestedAt, c.DetachForcedAt = orZero(podGone), orZero(detach), orZero(forced)
	c.WriterGoneAt, c.DiskReleasedAt, c.SettledAt = orZero(writerGone), orZero(released), orZero(settled)
	return c, err
}

// first returns the first row of a query's, and whether there was one.
func first[T any](rows []T, err error) (row T, found bool, _ error) {
	if err != nil || len(rows) == 0 {
		return row, false, err
	}
	return rows[0], true, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// EnsureCleanup asks for the cleanup of a reservation that has ended, whoever ended it, and reports whether one is
// under way now. It is false for a live or unknown reservation and where the cleanup has settled since the end.
func (db *DB) EnsureCleanup(ctx context.Context, reservationID string) (bool, error) {
	var open, again bool
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := createCleanup(ctx, tx, reservationID); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `
			select c.settled_at is null, `+endedAgain+`
			from expiry.cleanups c left join reservations r using (reservation_id)
			where c.reservation_id = $1`, reservationID).Scan(&open, &again)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for the cleanup of %s: %w", reservationID, err)
		}
		if again {
			open = true
			return ensureRequested(ctx, tx, reservationID, string(Cleanup))
		}
		if !open {
			return nil
		}
		// One that waits for its snapshot has that one's follow-up to go on with.
		return ensureRequested(ctx, tx, reservationID, string(Cleanup), string(SnapshotSync))
	})
	return open && err == nil, err
}

// elsewhere holds where the disk h that reservation r holds is not the one that its row names, and has another volume.
var elsewhere = `(h.disk_name <> nullif(r.disk_name, '') and h.volume <> ` + volumeIn("r.ebs_volume_id") + `)`

// BeginCleanupAnew has the cleanup of a reservation that came back to life and is over again begin from the start, settled
// or not. It forgets what was done and found out, but not by what a volume was known that it has not kept yet, for
// where nothing newer is known, and that it was detached by force. Its disk is one that the reservation holds, the row's
// first: of another, which the row does not name, the row does not name the volume. It is for whoever has leased the cleanup's follow-up:
// nobody else is at work on it then. A snapshot under way is counted when it ends, and proves nothing to the new beginning.
func (db *DB) BeginCleanupAnew(ctx context.Context, reservationID string) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			with former as (
			    select c.*, c.disk_released_at is null and not exists (
			        select from expiry.cleanup_steps s
			        where s.reservation_id = c.reservation_id and s.step = $2 and s.finished_at is not null) as owed
			    from expiry.cleanups c left join reservations r using (reservation_id)
			    where c.reservation_id = $1 and `+endedAgain+`)
			update expiry.cleanups c
			set requested_at = clock_timestamp(), revived_at = null, lived_at = greatest(f.revived_at, f.lived_at),
			    settled_at = null, outcome = null,
			    redated_at = case when f.revived_at is null and f.settled_at is null then clock_timestamp() end,
			    reason = coalesce(`+reasonOf("r")+`, f.reason), user_id = coalesce(r.user_id, f.user_id),
			    pod_name = coalesce(nullif(r.pod_name, ''), f.pod_name), pod_uid = null, node_name = null, instance_id = null,
			    volume_id = case when `+elsewhere+` then h.volume else nullif(`+volumeIn("r.ebs_volume_id")+`, f.misnamed_volume_id) end,
			    misnamed_volume_id = case when `+elsewhere+` then `+volumeIn("r.ebs_volume_id")+` else f.misnamed_volume_id end,
			    former_volume_id = case when f.owed then coalesce(f.volume_id, f.former_volume_id) end,
			    disk_name = coalesce(h.disk_name, nullif(r.disk_name, ''), case when f.owed or r.reservation_id is null then f.disk_name end),
			    disk_size = case when f.owed then f.disk_size end, content_key = case when f.owed then f.content_key end,
			    pod_gone_at = null, containers_terminated_at = null, detach_requested_at = null,
			    detach_forced_at = case when f.owed then f.detach_forced_at end, writer_gone_at = null, disk_released_at = null,
			    gpu_type = coalesce(r.gpu_type, f.gpu_type), status = coalesce(r.status, f.status),
			    launched_at = coalesce(r.launched_at, f.launched_at), expires_at = coalesce(r.expires_at, f.expires_at)
			from former f left join reservations r using (reservation_id) left join lateral (
			    select d.disk_name, `+volumeIn("d.ebs_volume_id")+` as volume from disks d
			    where d.in_use and d.reservation_id = f.reservation_id and d.user_id = coalesce(r.user_id, f.user_id)
			    order by d.disk_name = r.disk_name desc nulls last, d.disk_name = f.disk_name desc nulls last, 1 limit 1) h on true
			where c.reservation_id = f.reservation_id`, reservationID, StepDisk)
		if err != nil {
			return fmt.Errorf("begin the cleanup of %s anew: %w", reservationID, err)
		}
		if tag.RowsAffected() == 0 {
			return createCleanup(ctx, tx, reservationID)
		}
		for _, statement := range []string{
			"delete from expiry.cleanup_steps where reservation_id = $1",
			"update expiry.follow_ups set attempts = 0 where kind = 'cleanup' and key = $1",
			abandonIntents,
		} {
			if _, err := tx.Exec(ctx, statement, reservationID); err != nil {
				return fmt.Errorf("begin the cleanup of %s anew: %w", reservationID, err)
			}
		}
		return nil
	})
}

// reasonOf is why reservation r ended: what a sweep has written, or, of one that a user has cancelled, just that.
func reasonOf(r string) string {
	return strings.ReplaceAll(`coalesce(nullif(r.failure_reason, ''), case when r.status <> 'cancelled' then nullif(r.current_detailed_status, '') end, r.status)`, "r.", r+".")
}

// createCleanup makes the row of a reservation's cleanup if the reservation has ended. It is idempotent.
func createCleanup(ctx context.Context, tx pgx.Tx, reservationID string) error {
	_, err := tx.Exec(ctx, `
		insert into expiry.cleanups (
		    reservation_id, reason, user_id, pod_name, namespace, volume_id, disk_name, gpu_type, status, created_at, launched_at, expires_at)
		select reservation_id,
		       `+reasonOf("reservations")+`,
		       user_id, nullif(pod_name, ''), nullif(namespace, ''),
		       `+volumeIn("ebs_volume_id")+`, nullif(disk_name, ''),
		       gpu_type, status, created_at, launched_at, expires_at
		from reservations
		where reservation_id = $1 and status in ('expired', 'cancelled', 'failed')
		on conflict do nothing`, reservationID)
	if err != nil {
		return fmt.Errorf("create the cleanup of %s: %w", reservationID, err)
	}
	return nil
}

// ensureRequested asks for the cleanup unless a follow-up of one of the kinds is due for it.
func ensureRequested(ctx context.Context, tx pgx.Tx, reservationID string, kinds ...string) error {
	var due bool
	err := tx.QueryRow(ctx, `
		select exists (select from expiry.follow_ups f where f.reservation_id = $1 and f.state = 'due' and f.kind = any($2)
		               and `+forCleanup+`)`,
		reservationID, kinds).Scan(&due)
	if err != nil {
		return fmt.Errorf("look for what is due for %s: %w", reservationID, err)
	}
	if due {
		return nil
	}
	return requestCleanup(ctx, tx, reservationID)
}

func requestCleanup(ctx context.Context, tx pgx.Tx, reservationID string) error {
	return requestFollowUp(ctx, tx, FollowUp{Kind: Cleanup, Key: reservationID, ReservationID: reservationID, Subject: reservationID})
}

// reopenCleanup asks anew for a settled cleanup, because something of the reservation's is still or again there. The
// disk's part stays as it ended, unless there was no disk. It reports whether the cleanup was settled; a live
// reservation's is never reopened, nor one that has seen that pod gone since the sweep began.
func reopenCleanup(ctx context.Context, tx pgx.Tx, lease SweepLease, reservationID, podUID, why string) (bool, error) {
	tag, err := tx.Exec(ctx, `
		update expiry.cleanups c
		set settled_at = null, outcome = null, pod_gone_at = null, containers_terminated_at = null, pod_uid = null
		where c.reservation_id = $1 and c.settled_at is not null and not `+goneSince("$2", "$3")+`
		  and not exists (select from reservations r where r.reservation_id = c.reservation_id
		                  and coalesce(r.status, '') not in ('expired', 'cancelled', 'failed'))`, reservationID, podUID, lease.token)
	if err != nil {
		return false, fmt.Errorf("reopen the cleanup of %s: %w", reservationID, err)
	}
	if tag.RowsAffected() == 0 {
		return false, nil
	}
	_, err = tx.Exec(ctx, `
		update expiry.cleanup_steps
		set started_at = clock_timestamp(), finished_at = null, outcome = null, detail = 'again: ' || $2::text, attempts = 0
		where reservation_id = $1 and (step <> $3 or outcome = $4)`, reservationID, storable(why), StepDisk, OutcomeNothingToKeep)
	if err != nil {
		return false, fmt.Errorf("reopen the cleanup of %s: %w", reservationID, err)
	}
	return true, requestCleanup(ctx, tx, reservationID)
}

// goneSince holds where cleanup c has seen its pod gone since a sweep began: the sweep's list may be the older one.
func goneSince(podUID, sweepID string) string {
	return "coalesce(c.pod_uid = " + podUID + " and c.pod_gone_at >= (select started_at from expiry.sweeps where sweep_id = " + sweepID + "), false)"
}

// VoidCleanup ends the follow-up of a reservation that turned out to be live, whose cleanup is to begin anew when it
// ends. It reports false, and changes nothing, where the reservation has ended after all.
func (db *DB) VoidCleanup(ctx context.Context, f FollowUp) (bool, error) {
	var voided bool
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if voided, err = recordRevived(ctx, tx, f.ReservationID); err != nil || !voided {
			return err
		}
		_, err = finishFollowUp(ctx, tx, f, "void")
		return err
	})
	return voided && err == nil, err
}

// recordRevived is RecordRevived for a reservation that whoever is at work at its cleanup has seen live. It reports
// whether it still is.
func recordRevived(ctx context.Context, tx pgx.Tx, reservationID string) (live bool, err error) {
	err = tx.QueryRow(ctx, `
		with seen as (
		    update expiry.cleanups c set revived_at = coalesce(c.revived_at, clock_timestamp()) where c.reservation_id = $1)
		select exists (select from reservations r where r.reservation_id = $1 and `+isLive+`)`, reservationID).Scan(&live)
	if err != nil {
		return false, fmt.Errorf("record that %s came back to life: %w", reservationID, err)
	}
	return live, nil
}

// isOver holds where reservation r has ended.
const isOver = "r.status in ('expired', 'cancelled', 'failed')"

// isLive holds where reservation r has not ended, be its status an unknown one.
const isLive = "not coalesce(" + isOver + ", false)"

// SettleCleanup ends a cleanup whose steps are all finished, with the fact, and its follow-up. It reports false, and
// changes nothing, while a step is open. Settling twice is settling once.
func (db *DB) SettleCleanup(ctx context.Context, f FollowUp) (outcome string, settled bool, err error) {
	err = db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		outcome, settled, err = settleCleanup(ctx, tx, f.ReservationID)
		if err != nil || !settled {
			return err
		}
		_, err = finishFollowUp(ctx, tx, f, outcome)
		return err
	})
	return outcome, settled && err == nil, err
}

// settleCleanup is SettleCleanup without the follow-up. The cleanup's outcome is that of its disk.
func settleCleanup(ctx context.Context, tx pgx.Tx, reservationID string) (outcome string, settled bool, err error) {
	var user string
	err = tx.QueryRow(ctx, `
		select coalesce(user_id, ''), coalesce(outcome, ''), settled_at is not null
		from expiry.cleanups where reservation_id = $1
		for no key update`, reservationID).Scan(&user, &outcome, &settled)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("settle the cleanup of %s: %w", reservationID, err)
	}
	if settled {
		return outcome, true, nil
	}
	var at time.Time
	err = tx.QueryRow(ctx, `
		update expiry.cleanups c
		set settled_at = clock_timestamp(), outcome = disk.outcome
		from expiry.cleanup_steps disk
		where c.reservation_id = $1 and disk.reservation_id = c.reservation_id and disk.step = $2 and disk.finished_at is not null
		  and (select count(*) from expiry.cleanup_steps s
		       where s.reservation_id = c.reservation_id and s.step = any($3) and s.finished_at is not null) = cardinality($3)
		returning c.outcome, c.settled_at`, reservationID, StepDisk, stepNames()).Scan(&outcome, &at)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("settle the cleanup of %s: %w", reservationID, err)
	}
	return outcome, true, recordFact(ctx, tx, event.ReservationCleanedUp, reservationID,
		event.CleanedUp{ReservationID: reservationID, UserID: user, Outcome: outcome, CleanedUpAt: at.UTC()})
}
