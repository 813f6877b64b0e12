package snapshot

import (
	"context"
	"errors"
	"fmt"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

var (
	// errVanished says that EC2 does not know a completed snapshot any more.
	errVanished = errors.New("the snapshot is gone")
	// errUnknown says that it does not know one that was just made.
	errUnknown = errors.New("EC2 does not know the snapshot yet")
	// errVolumeGone says that EC2 does not know the volume any more.
	errVolumeGone = errors.New("the volume is gone")
)

// settle goes on with the disk of a cleanup once its snapshot has completed.
func (a *Sync) settle(ctx context.Context, s postgres.SnapshotRecord) (followup.Result, error) {
	c, known, err := a.Store.LoadCleanup(ctx, s.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	if !known {
		return a.elsewhere(ctx, s)
	}
	verdict, err := a.Store.WithDisk(ctx, c.ReservationID, nil)
	if err == nil && verdict == postgres.DiskOurs {
		attempts, err := a.Store.SnapshotAttempts(ctx, c.ReservationID)
		if err != nil {
			return followup.Result{}, err
		}
		if standing := attempts.Standing; standing == nil || standing.IntentID != s.IntentID {
			return a.elsewhere(ctx, s) // the cleanup goes on from another attempt
		}
		verdict, err := a.release(ctx, c, s)
		return a.conclude(ctx, c, s, verdict, err)
	}
	return a.conclude(ctx, c, s, verdict, err)
}

// elsewhere ends the sync of a snapshot from which no cleanup goes on, but for a volume that it has set aside.
func (a *Sync) elsewhere(ctx context.Context, s postgres.SnapshotRecord) (followup.Result, error) {
	if s.VolumeAside() {
		return a.aside(ctx, s)
	}
	return followup.Done(string(s.State)), nil
}

// conclude says what comes after what became of the disk.
func (a *Sync) conclude(ctx context.Context, c postgres.CleanupRecord, s postgres.SnapshotRecord, verdict postgres.DiskVerdict, err error) (followup.Result, error) {
	if err != nil {
		return a.unproven(ctx, s, err)
	}
	switch verdict {
	case postgres.DiskSuperseded:
		a.superseded(ctx, c)
		if s.VolumeAside() { // by a former life, which had released the disk
			return a.aside(ctx, s)
		}
		return followup.Done(postgres.OutcomeSuperseded), nil
	case postgres.DiskReleased:
		if err := a.finish(ctx, c); err != nil {
			return followup.Result{}, err
		}
	case postgres.DiskSettled:
	case postgres.DiskBusy:
		return followup.LookAgain(growing(s.Now.Sub(s.SettledAt))), nil
	default: // revived: the next cleanup begins anew
		return a.elsewhere(ctx, s)
	}
	s, _, err = a.Store.LoadSnapshot(ctx, s.IntentID)
	if err != nil {
		return followup.Result{}, err
	}
	return a.aside(ctx, s)
}

// unproven deals with what release found to be missing.
func (a *Sync) unproven(ctx context.Context, s postgres.SnapshotRecord, err error) (followup.Result, error) {
	switch {
	case errors.Is(err, errVanished):
		a.opts.Log.ErrorContext(ctx, "a completed snapshot is gone; the volume is kept and captured anew", "snapshot", s.SnapshotID, "volume", s.VolumeID)
		_, err := a.Store.VanishedSnapshot(ctx, s)
		return followup.Done("vanished"), err
	case errors.Is(err, errWriterBack):
		a.opts.Log.WarnContext(ctx, "volume attached again; it is kept and captured anew", "volume", s.VolumeID, "reason", err)
		return followup.Done("writer_back"), a.Store.ForgetWriterGone(ctx, s.ReservationID)
	case errors.Is(err, errVolumeGone):
		return followup.LookAgain(soon), nil
	case errors.Is(err, errUnknown):
		return followup.LookAgain(growing(s.Now.Sub(s.IntendedAt))), nil
	}
	return followup.Result{}, err
}

// release sees the volume out, as far as it is to go, and frees the disk. The verdict is DiskReleased once that is done,
// DiskBusy where EC2 needs more time.
func (a *Sync) release(ctx context.Context, c postgres.CleanupRecord, s postgres.SnapshotRecord) (postgres.DiskVerdict, error) {
	fate, last := postgres.VolumeDeleted, func(ctx context.Context) error { return a.expectGone(ctx, s.VolumeID) }
	_, gone, err := a.volume(ctx, s.VolumeID)
	if err != nil {
		return "", err
	}
	held := false
	if !gone && !a.opts.KeepVolumes {
		if held, err = a.held(ctx, s); err != nil {
			return "", err
		}
	}
	switch {
	case gone && a.unheard(s):
		return postgres.DiskBusy, nil
	case gone:
	case a.opts.KeepVolumes || held:
		fate = postgres.VolumeKept
		if !a.opts.KeepVolumes {
			fate = postgres.VolumeSetAside
		}
		last = func(ctx context.Context) error { return a.keepable(ctx, c, s) }
	default:
		if verdict, err := a.deleteVolume(ctx, s); err != nil || verdict != postgres.DiskOurs {
			return verdict, err
		}
		gone, err := a.until(ctx, a.opts.Patience, func(ctx context.Context) (bool, error) {
			_, gone, err := a.volume(ctx, s.VolumeID)
			return gone, err
		})
		if err != nil || !gone {
			return postgres.DiskBusy, err
		}
	}
	verdict, err := a.Store.ReleaseDisk(ctx, s, fate, last)
	if err == nil && verdict == postgres.DiskOurs {
		a.opts.Log.InfoContext(ctx, "disk released", "disk", s.DiskName, "user", s.User, "volume", s.VolumeID, "volume_fate", fate,
			"reason", "its snapshot has completed, its volume is "+string(fate))
		verdict = postgres.DiskReleased
	}
	return verdict, err
}

// unheard reports whether it means nothing yet that EC2 does not know the volume: nobody is known to have deleted it, and
// not all of EC2 may have heard of it.
func (a *Sync) unheard(s postgres.SnapshotRecord) bool {
	return s.VolumeDeletedAt.IsZero() && s.Now.Sub(s.IntendedAt) < a.opts.Lag
}

// held reports whether the volume has to be kept for a while beside its snapshot.
func (a *Sync) held(ctx context.Context, s postgres.SnapshotRecord) (bool, error) {
	seen, gone, err := a.snapshot(ctx, s.SnapshotID)
	if gone {
		return false, vanished(s)
	}
	return s.Now.Before(disk.HeldUntil(seen, captureOf(s))), err
}

// vanished is what it means that EC2 does not know a completed snapshot.
func vanished(s postgres.SnapshotRecord) error {
	if justMade(s) {
		return errUnknown
	}
	return errVanished
}

// keyOf names the disk of a snapshot.
func keyOf(s postgres.SnapshotRecord) disk.Key { return disk.Key{User: s.User, Name: s.DiskName} }

// captureOf is what the record proves. An intent is never committed before the volume has lost its writer.
func captureOf(s postgres.SnapshotRecord) disk.Capture {
	return disk.Capture{ReservationID: s.ReservationID, Disk: keyOf(s), Attempt: s.Attempt, IntentID: s.IntentID.String(),
		WriterGoneAt: s.IntendedAt, CrashConsistent: s.CrashConsistent}
}

// keepable makes sure that a volume which stays is as its snapshot has it, and takes away the way by which its pod had it.
func (a *Sync) keepable(ctx context.Context, c postgres.CleanupRecord, s postgres.SnapshotRecord) error {
	v, gone, err := a.volume(ctx, s.VolumeID)
	switch {
	case err != nil:
		return err
	case gone:
		return errVolumeGone
	}
	if err := own(v, keyOf(s)); err != nil {
		return err
	}
	if gone, why := disk.WriterGone(v); !gone {
		return fmt.Errorf("%w: %s", errWriterBack, why)
	}
	if !a.opts.KeepVolumes {
		if err := a.giveUp(ctx, s); err != nil {
			return err
		}
	}
	return a.removeClaim(ctx, c)
}

// giveUp notes on the snapshot that its volume is given up for it. Only such a write tells that it is there: what EC2
// describes may have been deleted minutes ago.
func (a *Sync) giveUp(ctx context.Context, s postgres.SnapshotRecord) error {
	err := a.EC2.TagSnapshots(ctx, []string{s.SnapshotID}, disk.GivenUpTags(s.Now))
	gone, err := a.home.Gone(ctx, err)
	switch {
	case gone:
		return vanished(s)
	case fault.Is(err, fault.Permanent):
		return fmt.Errorf("volume %s kept: allow ec2:CreateTags with key %s on snapshots, as in iam-policy.json: %w", s.VolumeID, disk.TagVolumeGivenUp, err)
	}
	return err
}

// deleteVolume asks EC2 to delete the volume if at this moment, under the disk's lock, everything speaks for it.
func (a *Sync) deleteVolume(ctx context.Context, s postgres.SnapshotRecord) (postgres.DiskVerdict, error) {
	account, err := a.home.Account(ctx)
	if err != nil {
		return "", err
	}
	return a.Store.DeleteVolume(ctx, s, func(ctx context.Context) error {
		return a.deleteProven(ctx, s, account)
	})
}

// deleteProven deletes the volume if the snapshot, as EC2 describes both now, holds all that was on it.
func (a *Sync) deleteProven(ctx context.Context, s postgres.SnapshotRecord, account string) error {
	v, gone, err := a.volume(ctx, s.VolumeID)
	switch {
	case err != nil:
		return err
	case gone && a.unheard(s):
		return errVolumeGone
	case gone || v.State == disk.VolumeDeleting:
		return nil
	}
	if err := own(v, keyOf(s)); err != nil {
		return err
	}
	seen, gone, err := a.snapshot(ctx, s.SnapshotID)
	if gone {
		return vanished(s)
	}
	if err != nil {
		return err
	}
	if free, why := disk.WriterGone(v); !free {
		return fmt.Errorf("%w: %s", errWriterBack, why)
	}
	if ok, why := disk.MayDelete(v, &seen, captureOf(s), account, s.Now); !ok {
		return fault.Errorf(fault.Permanent, "volume kept: %s", why)
	}
	if err := a.giveUp(ctx, s); err != nil {
		return err
	}
	a.opts.Log.InfoContext(ctx, "delete volume", "volume", v.ID, "snapshot", s.SnapshotID,
		"reason", "its snapshot has completed, and nothing has written to it since")
	if err := a.EC2.DeleteVolume(ctx, v.ID); err != nil && !fault.Is(err, fault.Gone) {
		return err
	}
	return nil
}

// finish takes away what Kubernetes still has of a released disk and ends the disk's part of the cleanup.
func (w worker) finish(ctx context.Context, c postgres.CleanupRecord) error {
	if err := w.removeClaim(ctx, c); err != nil {
		return err
	}
	return w.Store.FinishReleased(ctx, c, "volume "+c.VolumeID)
}
