package snapshot

import (
	"context"
	"errors"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// asidePause is when to look again at a volume set aside whose disk is in use.
const asidePause = time.Hour

// aside ends the work on a disk that is released, unless its volume was set aside beside a crash-consistent snapshot:
// that goes when its time has come, if nobody has found a use for it.
func (a *Sync) aside(ctx context.Context, s postgres.SnapshotRecord) (followup.Result, error) {
	released := followup.Done(postgres.OutcomeReleased)
	switch {
	case !s.VolumeAside():
		return released, nil
	case a.opts.KeepVolumes:
		return a.keepAside(ctx, s, "KEEP_VOLUMES is set by now")
	case s.State != postgres.SnapshotCompleted:
		return a.keepAside(ctx, s, "its snapshot is gone")
	}
	seen, gone, err := a.snapshot(ctx, s.SnapshotID)
	switch {
	case err != nil:
		return followup.Result{}, err
	case gone && justMade(s):
		return followup.LookAgain(growing(0)), nil
	case gone:
		return a.keepAside(ctx, s, "its snapshot is gone")
	}
	if left := disk.HeldUntil(seen, captureOf(s)).Sub(s.Now); left > 0 {
		return followup.LookAgain(left), nil
	}
	account, err := a.home.Account(ctx)
	if err != nil {
		return followup.Result{}, err
	}
	verdict, err := a.Store.WithVolumeSetAside(ctx, s, func(ctx context.Context) error {
		return a.deleteProven(ctx, s, account)
	})
	switch {
	case errors.Is(err, errWriterBack) || err == nil && verdict == postgres.DiskBusy:
		return followup.LookAgain(asidePause), nil
	case errors.Is(err, errAnothers), err == nil && verdict != postgres.DiskOurs:
		return a.keepAside(ctx, s, "somebody has found a use for it")
	case errors.Is(err, errVanished):
		return a.keepAside(ctx, s, "its snapshot is gone")
	case err != nil:
		return followup.Result{}, err
	}
	gone, err = a.until(ctx, a.opts.Patience, func(ctx context.Context) (bool, error) {
		_, gone, err := a.volume(ctx, s.VolumeID)
		return gone, err
	})
	if err != nil || !gone {
		return followup.LookAgain(growing(0)), err
	}
	return released, a.Store.RecordVolumeDeleted(ctx, s.IntentID)
}

// keepAside leaves a volume set aside for good, which from then on keeps its snapshot from being purged no longer.
func (a *Sync) keepAside(ctx context.Context, s postgres.SnapshotRecord, why string) (followup.Result, error) {
	a.opts.Log.WarnContext(ctx, "volume kept for good: "+why, "volume", s.VolumeID, "snapshot", s.SnapshotID)
	return followup.Done("volume_kept"), a.Store.RecordVolumeKept(ctx, s.IntentID, why)
}
