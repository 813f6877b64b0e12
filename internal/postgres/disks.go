package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/fault"
)

const (
	// diskBudget bounds how long a disk's row stays locked: the platform, to hand the disk on, waits meanwhile.
	diskBudget = 20 * time.Second
	// actBudget is what of it the outside world may take. The rest is for the locks and for recording what was done.
	actBudget = 15 * time.Second
)

// DiskVerdict says what became of an action upon the disk of a cleanup.
type DiskVerdict string

// What may become of it. Nothing was touched except where it is DiskOurs.
const (
	DiskOurs       DiskVerdict = "ours"       // the action was carried out
	DiskReleased   DiskVerdict = "released"   // the cleanup has released it before
	DiskSuperseded DiskVerdict = "superseded" // it is in other hands; the disk's part of the cleanup is settled so
	DiskSettled    DiskVerdict = "settled"    // the disk's part had ended before
	DiskRevived    DiskVerdict = "revived"    // the reservation is live again, or was since the cleanup was asked for
	DiskBusy       DiskVerdict = "busy"       // not yet: a snapshot is unsettled, or somebody uses the disk

	diskContested DiskVerdict = "contested" // another disk's rows name its volume: an error
)

// WithDisk calls act while nobody can take the disk of a cleanup over: under the lock of its row in disks, if the lock
// that this row stands for is the reservation's and no live reservation has volume or disk. Else it calls nothing, and
// where the disk is in other hands the disk's part of the cleanup is settled as superseded. A nil act only looks.
func (db *DB) WithDisk(ctx context.Context, reservationID string, act func(ctx context.Context) error) (DiskVerdict, error) {
	return db.underDisk(ctx, reservationID, func(ctx context.Context, _ pgx.Tx, _ lockedDisk) error {
		return acting(ctx, act)
	})
}

func acting(ctx context.Context, act func(ctx context.Context) error) error {
	if act == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, actBudget)
	defer cancel()
	return act(ctx)
}

// underDisk is WithDisk for what the transaction records, too. It is not repeated by itself: act reaches outside.
func (db *DB) underDisk(ctx context.Context, reservationID string, act func(context.Context, pgx.Tx, lockedDisk) error) (DiskVerdict, error) {
	ctx, cancel := context.WithTimeout(ctx, diskBudget)
	defer cancel()
	var verdict DiskVerdict
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		d, err := lockDisk(ctx, tx, reservationID)
		if err != nil {
			return err
		}
		var why string
		switch verdict, why = d.verdict(); verdict {
		case DiskOurs:
			return act(ctx, tx, d)
		case DiskSuperseded:
			return supersede(ctx, tx, reservationID, why)
		case diskContested:
			return fault.Errorf(fault.Permanent, "%s", why)
		case DiskRevived:
			if d.live {
				if live, err := recordRevived(ctx, tx, reservationID); err != nil || live {
					return err
				}
			}
			return ensureRequested(ctx, tx, reservationID, string(Cleanup))
		}
		return nil
	})
	switch {
	case errors.Is(err, errDiskBusy):
		return DiskBusy, nil
	case err != nil:
		return "", fmt.Errorf("under the lock of the disk of %s: %w", reservationID, err)
	}
	return verdict, nil
}

// supersede settles the disk's part of a cleanup whose disk is in other hands. What an open intent may have made is
// adopted if it is ever found.
func supersede(ctx context.Context, tx pgx.Tx, reservationID, why string) error {
	if _, err := tx.Exec(ctx, abandonIntents, reservationID); err != nil {
		return err
	}
	return finishDisk(ctx, tx, reservationID, OutcomeSuperseded, why)
}

// abandonIntents ends what a cleanup that goes no further, or begins anew, had meant to snapshot.
const abandonIntents = `
	update expiry.snapshots set state = 'abandoned', settled_at = clock_timestamp(), detail = 'superseded'
	where reservation_id = $1 and state = 'intended'`

// errDiskBusy ends an act which finds that it comes too early.
var errDiskBusy = errors.New("busy")

// lockedDisk is what the rows say of a cleanup's disk, its row in disks and the cleanup's own locked.
type lockedDisk struct {
	reservation        string
	user, name, volume string // of the cleanup

	id     string // of the row in disks; empty where there is none
	inUse  bool
	holder string // the reservation that the row names, whether it is in use or not

	settled, released bool
	live, vanished    bool   // the reservation
	endedAgain        bool   // it was live since the cleanup was asked for
	otherCleanup      bool   // a further one of the same disk is under way
	namedBy           string // a live reservation on the same volume, or that has its server on the same disk
	otherDisk         string // another one with the same volume, by its row or by a live reservation's
}

// lockDisk locks the row of the disk, then that of the cleanup, and reads afterwards what the decision depends on.
// Everybody who locks both, locks them in this order.
func lockDisk(ctx context.Context, tx pgx.Tx, reservationID string) (lockedDisk, error) {
	d, err := scanLocked(ctx, tx, reservationID)
	if err != nil {
		return lockedDisk{}, fmt.Errorf("lock the disk of %s: %w", reservationID, err)
	}
	return d, nil
}

func scanLocked(ctx context.Context, tx pgx.Tx, reservationID string) (lockedDisk, error) {
	d := lockedDisk{reservation: reservationID}
	err := tx.QueryRow(ctx, `
		select coalesce(c.user_id, r.user_id, ''), coalesce(c.disk_name, r.disk_name, ''),
		       coalesce(c.volume_id, nullif(`+volumeIn("r.ebs_volume_id")+`, c.misnamed_volume_id), '')
		from expiry.cleanups c left join reservations r using (reservation_id)
		where c.reservation_id = $1`, reservationID).Scan(&d.user, &d.name, &d.volume)
	if err != nil {
		return d, err
	}
	err = tx.QueryRow(ctx, `
		select disk_id::text, user_id, coalesce(in_use, false), coalesce(reservation_id, '')
		from disks
		where disk_name = $3 and (user_id = $2 or $2 = '' and reservation_id = $1)
		for update`, reservationID, d.user, d.name).Scan(&d.id, &d.user, &d.inUse, &d.holder)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return d, err
	}
	// No key update: steps of the cleanup, which refer to it, are recorded meanwhile.
	err = tx.QueryRow(ctx, `
		select disk_released_at is not null,
		       settled_at is not null or exists (
		           select from expiry.cleanup_steps s
		           where s.reservation_id = c.reservation_id and s.step = $2 and s.finished_at is not null)
		from expiry.cleanups c where reservation_id = $1
		for no key update`, reservationID, StepDisk).Scan(&d.released, &d.settled)
	if err != nil {
		return d, err
	}
	err = tx.QueryRow(ctx, `
		select exists (select from reservations own where own.reservation_id = $1
		                 and coalesce(own.status, '') not in ('expired', 'cancelled', 'failed')),
		       exists (select from expiry.cleanups c left join reservations r using (reservation_id)
		               where c.reservation_id = $1 and `+endedAgain+`),
		       not exists (select from reservations own where own.reservation_id = $1),
		       exists (select from expiry.cleanups o
		               where o.reservation_id <> $1 and o.settled_at is null and o.user_id = $2 and o.disk_name = $3),
		       coalesce((select min(l.reservation_id) from reservations l
		                 where l.reservation_id <> $1 and `+hasDisk("$2", "$3", "$4", setOf("$6"))+` and not `+onAnother+`), ''),
		       coalesce((select min(o.user_id || '/' || o.disk_name) from disks o
		                 where `+volumeIn("o.ebs_volume_id")+` = $4 and o.disk_id::text <> $5),
		                (select min(l.user_id || '/' || l.disk_name) from reservations l
		                 where `+hasDisk("null", "null", "$4", "null")+` and `+onAnother+`), '')`,
		reservationID, d.user, d.name, d.volume, d.id, d.locker()).Scan(&d.live, &d.endedAgain, &d.vanished, &d.otherCleanup, &d.namedBy, &d.otherDisk)
	return d, err
}

// onAnother holds where reservation l is on another disk than that of user $2 called $3.
const onAnother = "coalesce($2 <> '' and $3 <> '' and l.disk_name <> '' and (l.user_id, l.disk_name) <> ($2, $3), false)"

// hasDisk holds where reservation l has a disk, given by expressions for its user, name and volume and for the set of the
// reservation that its lock names: l is live and names the volume, or prepares or works on the disk, or has done so. One
// that is merely queued for the disk waits for its release. Nodes of a set all carry the disk's name, which is on the
// node whose the lock is: of the others it proves nothing.
func hasDisk(user, name, volume, lockersSet string) string {
	return `(l.status in ('pending', 'queued', 'preparing', 'active') and (` + volumeIn("l.ebs_volume_id") + ` = ` + volume + `
		or (l.status in ('preparing', 'active') or l.launched_at is not null)
		and l.user_id = ` + user + ` and l.disk_name = ` + name + ` and l.disk_name <> ''
		and coalesce(nullif(l.master_reservation_id, ''), l.reservation_id) is distinct from ` + lockersSet + `))`
}

// setOf is the set of the reservation whose id is given: that of its master, if it has one.
func setOf(id string) string {
	return "coalesce((select nullif(k.master_reservation_id, '') from reservations k where k.reservation_id = " + id + "), " + id + ")"
}

// locker is the reservation whose the disk's lock is, empty where it is nobody's.
func (d lockedDisk) locker() string {
	if !d.inUse {
		return ""
	}
	return d.holder
}

// locked reports whether the disk's lock is the reservation's, or was until the platform deleted its row.
func (d lockedDisk) locked() bool {
	return d.inUse && (d.holder == d.reservation || d.holder == "" && d.vanished && !d.otherCleanup)
}

// volumeIn reads the volume's id out of a column of the platform's, which may hold the in-tree form.
func volumeIn(column string) string {
	return "substring(" + column + " from '^(?:aws://.*/)?(vol-[0-9a-f]{8,17})$')"
}

// verdict decides whether the cleanup may touch the disk and its volume, and why not.
func (d lockedDisk) verdict() (DiskVerdict, string) {
	switch {
	case d.settled:
		return DiskSettled, "the disk's part of the cleanup is over"
	case d.live || d.endedAgain:
		return DiskRevived, "the reservation is live, or was since"
	case d.released:
		return DiskReleased, "the disk is released"
	case d.namedBy != "":
		return DiskSuperseded, fmt.Sprintf("reservation %s has disk %q or volume %s", d.namedBy, d.name, d.volume)
	case d.otherDisk != "" && d.id != "" && d.locked():
		return diskContested, fmt.Sprintf("volume %s is disk %s's, too: nothing is touched, and disk %q stays locked until the rows that name the volume are put right, or somebody frees it",
			d.volume, d.otherDisk, d.name)
	case d.otherDisk != "":
		return DiskSuperseded, fmt.Sprintf("volume %s is disk %s's", d.volume, d.otherDisk)
	case d.id == "": // no row to lock: nobody has ever been told of the volume
		return DiskOurs, ""
	case d.locked():
		return DiskOurs, ""
	case d.inUse && d.holder != "":
		return DiskSuperseded, fmt.Sprintf("disk %q is in use by %s", d.name, d.holder)
	}
	return DiskSuperseded, fmt.Sprintf("disk %q is not locked for the reservation any more", d.name)
}
