package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const (
	// soon is when to look again at what is about to change.
	soon = 5 * time.Second
	// overdue is how long a volume may stay with its writer before that counts as a failure.
	overdue = 30 * time.Minute
)

// Keeper does the disk's part of a cleanup up to the snapshot: it is the last step of package cleanup.
type Keeper struct{ worker }

// NewKeeper returns a Keeper. It is safe for concurrent use.
func NewKeeper(w World, o Options) *Keeper { return &Keeper{newWorker(w, o)} }

// Keep takes the volume of a cleanup off its instance and has a snapshot of it made, as far as that goes now. It is
// called once the pod is gone, again and again until the disk's part is finished.
func (k *Keeper) Keep(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error) {
	verdict, err := k.Store.WithDisk(ctx, c.ReservationID, nil)
	if err != nil || verdict != postgres.DiskOurs {
		return k.stop(ctx, c, verdict, err)
	}
	attempts, err := k.Store.SnapshotAttempts(ctx, c.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	if s := attempts.Standing; s != nil {
		again, err := k.resume(ctx, c, *s)
		if err != nil || again != nil {
			return orZero(again), err
		}
	}
	if pause := untilNextAttempt(attempts); pause > 0 {
		return k.wait(ctx, c, pause, fmt.Sprintf("snapshot of volume %s failed %d times", c.VolumeID, attempts.Failed))
	}
	return k.attempt(ctx, c)
}

func orZero(r *followup.Result) followup.Result {
	if r == nil {
		return followup.Result{}
	}
	return *r
}

// untilNextAttempt is how long to wait before a snapshot is tried anew: longer after each that failed.
func untilNextAttempt(a postgres.Attempts) time.Duration {
	if a.Failed == 0 {
		return 0
	}
	return a.FailedAt.Add(followup.Pause(a.Failed, 0)).Sub(a.Now)
}

// attempt frees the volume of its writer and captures it.
func (k *Keeper) attempt(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error) {
	f, err := k.takeOff(ctx, &c)
	switch {
	case err != nil:
		return followup.Result{}, err
	case f.verdict != postgres.DiskOurs:
		return k.stop(ctx, c, f.verdict, nil)
	case f.gone && k.unheard(c, podGone(c)) > 0: // after that all of EC2 has heard of whatever the pod had
		return k.wait(ctx, c, k.unheard(c, podGone(c)), fmt.Sprintf("EC2 does not know volume %s, which may be new", c.VolumeID))
	case f.gone:
		return k.lost(ctx, c)
	case f.free && !f.held && k.unheard(c, attached(c)) > 0:
		return k.wait(ctx, c, k.unheard(c, attached(c)), fmt.Sprintf("volume %s is available, unless EC2 has yet to hear that it was attached", c.VolumeID))
	case f.free:
		return k.capture(ctx, c)
	case f.since > overdue:
		return followup.Result{}, fmt.Errorf("volume %s still has its writer after %s: %s", c.VolumeID, f.since.Round(time.Second), f.reason)
	}
	pause := growing(f.since)
	if left := k.opts.DriverGrace - f.since; left > 0 && c.DetachRequestedAt.IsZero() {
		pause = min(pause, left) // the user wants the disk back, and then it is detached
	}
	return k.wait(ctx, c, pause, f.reason)
}

// attached is when the volume was attached at the latest, zero where that is of no account, since nothing can write any more.
func attached(c postgres.CleanupRecord) time.Time {
	switch {
	case c.ContainersTerminated || !c.DetachRequestedAt.IsZero():
		return time.Time{}
	case c.LaunchedAt.IsZero() || c.FormerVolume != "": // the row may tell of a former life
		return podGone(c)
	}
	return c.LaunchedAt
}

// podGone is when the pod was gone at the latest: where none was seen, when the cleanup was asked for.
func podGone(c postgres.CleanupRecord) time.Time {
	if c.PodUID == "" {
		return c.RequestedAt
	}
	return c.PodGoneAt
}

// unheard is how long to wait for all of EC2 to have heard of what happened until then; not positive once it has.
func (k *Keeper) unheard(c postgres.CleanupRecord, then time.Time) time.Duration {
	since := c.Now.Sub(then)
	return min(k.opts.Lag-since, growing(since))
}

// wait leaves the rest to a later delivery and shows why.
func (k *Keeper) wait(ctx context.Context, c postgres.CleanupRecord, pause time.Duration, why string) (followup.Result, error) {
	k.opts.Log.InfoContext(ctx, "disk waits", "reason", why, "volume", c.VolumeID, "again_in", pause)
	return followup.LookAgain(pause), k.Store.NoteStep(ctx, c.ReservationID, postgres.StepDisk, why)
}

// lost settles a cleanup whose volume is gone although it has made no snapshot of it.
func (k *Keeper) lost(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error) {
	detail := fmt.Sprintf("volume %s vanished before reservation %s had made a snapshot of it; the disk's latest snapshot is older",
		c.VolumeID, c.ReservationID)
	left := ""
	lost, verdict, err := k.Store.SettleLost(ctx, c.ReservationID, detail, func(ctx context.Context, another string) error {
		if err := k.expectGone(ctx, c.VolumeID); err != nil {
			return err
		}
		if another != "" {
			switch _, gone, err := k.volume(ctx, another); {
			case err != nil:
				return err
			case !gone:
				left = another
				return fault.Errorf(fault.Permanent, "volume %s is gone, but disk %q of %s names volume %s: it stays locked until ebs_volume_id of its row or the reservation's is put right",
					c.VolumeID, c.DiskName, c.UserID, another)
			}
		}
		return k.removeClaim(ctx, c)
	})
	if left != "" { // where the reservation's row names it, too, nothing is to be put right
		err = errors.Join(err, k.Store.BelieveRow(ctx, c.ReservationID, left))
	}
	if err != nil || verdict != postgres.DiskOurs {
		return k.stop(ctx, c, verdict, err)
	}
	if !lost {
		k.opts.Log.WarnContext(ctx, "the row names a volume that was deleted before, beside its snapshot", "volume", c.VolumeID,
			"disk", c.DiskName, "user", c.UserID)
		return followup.Recorded(postgres.OutcomeReleased), nil
	}
	k.opts.Log.ErrorContext(ctx, "DATA LOST: a volume vanished without a snapshot", "volume", c.VolumeID, "disk", c.DiskName,
		"user", c.UserID, "reservation_id", c.ReservationID)
	return followup.Recorded(postgres.OutcomeLost), nil
}

// stop is the result of a step that the disk's rows did not let happen.
func (k *Keeper) stop(ctx context.Context, c postgres.CleanupRecord, verdict postgres.DiskVerdict, err error) (followup.Result, error) {
	switch {
	case err != nil:
		return followup.Result{}, err
	case verdict == postgres.DiskSuperseded:
		k.superseded(ctx, c)
		return followup.Recorded(postgres.OutcomeSuperseded), nil
	case verdict == postgres.DiskReleased:
		return followup.Recorded(postgres.OutcomeReleased), k.finish(ctx, c)
	case verdict == postgres.DiskSettled:
		return followup.Recorded(string(verdict)), nil
	}
	return followup.LookAgain(soon), nil // revived or busy
}

// superseded says that a disk went into other hands, with what was on it left as it is.
func (w worker) superseded(ctx context.Context, c postgres.CleanupRecord) {
	w.opts.Log.WarnContext(ctx, "disk superseded, nothing touched", "volume", c.VolumeID, "disk", c.DiskName,
		"user", c.UserID, "reservation_id", c.ReservationID, "reason", "the disk, its volume or its name is in other hands")
}
