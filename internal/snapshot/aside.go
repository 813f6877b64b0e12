package snapshot

import (
	"context"
	"errors"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// asidePause is when to look again at a volume set aside whose disk is in use.
const asidePause = time.Hour

// aside ends the work on a disk that is released, unless its volume was set aside beside a crash-consistent snapshot:
// that goes when its time has come, if nobody has found a use for it.
func (a *Sync) aside(ctx context.Context, s postgres.SnapshotRecord) (followup.Result, error) {
	released := followup.Done(postgres.OutcomeReleased)
	if s.VolumeAsideAt.IsZero() || !s.VolumeDeletedAt.IsZero() || a.opts.KeepVolumes || s.State != postgres.SnapshotCompleted {
		return released, nil
	}
	seen, err := a.EC2.DescribeSnapshot(ctx, s.SnapshotID)
	switch {
	case fault.Is(err, fault.Gone):
		a.opts.Log.WarnContext(ctx, "volume kept: its snapshot is gone", "volume", s.VolumeID, "snapshot", s.SnapshotID)
		return followup.Done("volume_kept"), nil
	case err != nil:
		return followup.Result{}, err
	}
	if left := disk.HeldUntil(seen, captureOf(s)).Sub(s.Now); left > 0 {
		return followup.LookAgain(left), nil
	}
	account, err := a.Identity.Account(ctx)
	if err != nil {
		return followup.Result{}, err
	}
	verdict, err := a.Store.WithVolumeSetAside(ctx, s, func(ctx context.Context) error {
		return a.deleteProven(ctx, s, account)
	})
	switch {
	case errors.Is(err, errWriterBack) || err == nil && verdict == postgres.DiskBusy:
		return followup.LookAgain(asidePause), nil
	case err != nil:
		return followup.Result{}, err
	case verdict != postgres.DiskOurs:
		a.opts.Log.WarnContext(ctx, "volume kept: somebody has found a use for it", "volume", s.VolumeID)
		return followup.Done("volume_kept"), nil
	}
	gone, err := a.until(ctx, a.opts.Patience, func(ctx context.Context) (bool, error) {
		_, gone, err := a.volume(ctx, s.VolumeID)
		return gone, err
	})
	if err != nil || !gone {
		return followup.LookAgain(growing(0)), err
	}
	return released, a.Store.RecordVolumeDeleted(ctx, s.IntentID)
}
