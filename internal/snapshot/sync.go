package snapshot

import (
	"cmp"
	"context"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// visibleWithin is how long EC2 may not know a snapshot that it has just made, even one that it has described before: not
// all of it hears of one at once. After that it was deleted.
const visibleWithin = 10 * time.Minute

// justMade reports whether that EC2 does not know the snapshot means nothing yet. An adopted one is older than its record.
func justMade(s postgres.SnapshotRecord) bool {
	made := s.IntendedAt
	if s.ReservationID == "" {
		made = s.StartedAt
	}
	return s.Now.Sub(made) < visibleWithin
}

// Sync carries out follow-ups of kind snapshot.sync; their key is the snapshot's intent.
type Sync struct{ worker }

// NewSync returns the action. It is safe for concurrent use.
func NewSync(w World, o Options) *Sync { return &Sync{newWorker(w, o)} }

// Handle follows a snapshot until it has completed or failed and counts it once. For one that a cleanup made it then
// deletes the volume, releases the disk and ends the disk's part of the cleanup.
func (a *Sync) Handle(ctx context.Context, f postgres.FollowUp) (result followup.Result, err error) {
	intent, err := uuid.Parse(f.Key)
	if err != nil {
		return followup.Result{}, fault.Errorf(fault.Permanent, "key %q is no intent's: %w", f.Key, err)
	}
	s, known, err := a.Store.LoadSnapshot(ctx, intent)
	if err != nil {
		return followup.Result{}, err
	}
	if !known {
		return followup.Done(postgres.Void), nil
	}
	ctx, span := a.start(ctx, "snapshot.sync", s)
	defer func() { span.EndOr(result.Outcome, "waiting", err) }()

	if s.State == postgres.SnapshotPending {
		ended, err := a.follow(ctx, &s)
		if err != nil {
			return followup.Result{}, err
		}
		if !ended {
			return followup.LookAgain(growing(s.Now.Sub(s.IntendedAt))), nil
		}
	}
	// A purged one may have released its disk before.
	if s.ReservationID == "" || s.State != postgres.SnapshotCompleted && s.State != postgres.SnapshotPurged {
		return followup.Done(string(s.State)), nil
	}
	return a.settle(ctx, s)
}

// start opens the span of work on a snapshot, in the trace of the reservation whose cleanup it belongs to.
func (w worker) start(ctx context.Context, name string, s postgres.SnapshotRecord) (context.Context, *telemetry.Span) {
	if s.ReservationID == "" {
		return w.startApart(ctx, name, s)
	}
	r := telemetry.Reservation{ID: s.ReservationID, UserID: s.User, Phase: telemetry.PhaseCleanup}
	if c, known, err := w.Store.LoadCleanup(ctx, s.ReservationID); err == nil && known { // else the span says less
		r.Status, r.GPUType, r.Deadline = string(c.Status), c.GPUType, c.Deadline
	}
	return w.opts.Trace.StartAction(ctx, name, r, telemetry.KeySnapshotID.String(s.SnapshotID),
		telemetry.KeyDiskName.String(s.DiskName), telemetry.KeyVolumeID.String(s.VolumeID), telemetry.KeyAttempt.Int(s.Attempt))
}

// startApart opens the span of work on a snapshot in a trace of its own: it is of no reservation, or of one whose cleanup
// was over long ago, to which it links.
func (w worker) startApart(ctx context.Context, name string, s postgres.SnapshotRecord) (context.Context, *telemetry.Span) {
	attrs := []attribute.KeyValue{telemetry.KeySnapshotID.String(s.SnapshotID), telemetry.KeyDiskName.String(s.DiskName)}
	if s.ReservationID == "" {
		return w.opts.Trace.StartDelivery(ctx, name, attrs...)
	}
	attrs = append(attrs, telemetry.KeyReservationID.String(s.ReservationID), telemetry.KeyUserID.String(s.User))
	ctx, span := w.opts.Trace.StartDelivery(ctx, name, attrs...)
	span.LinkReservation(s.ReservationID)
	return telemetry.WithReservation(ctx, telemetry.Reservation{ID: s.ReservationID}), span
}

// follow looks at a pending snapshot and records its end; s is then as recorded. A young one is waited for.
func (a *Sync) follow(ctx context.Context, s *postgres.SnapshotRecord) (ended bool, err error) {
	young := a.opts.Patience - s.Now.Sub(s.IntendedAt)
	ended, err = a.until(ctx, young, func(ctx context.Context) (bool, error) {
		seen, gone, err := a.snapshot(ctx, s.SnapshotID)
		switch {
		case err != nil:
			return false, err
		case gone:
			if justMade(*s) {
				return false, nil
			}
			return true, a.failed(ctx, *s, "EC2 does not know it any more")
		case seen.State == disk.SnapshotCompleted:
			return true, a.completed(ctx, *s, seen)
		case seen.State == disk.SnapshotError:
			return true, a.failed(ctx, *s, cmp.Or(seen.StatusMessage, "EC2 reports an error"))
		}
		return false, nil
	})
	if err != nil || !ended {
		return false, err
	}
	*s, _, err = a.Store.LoadSnapshot(ctx, s.IntentID)
	return true, err
}

func (a *Sync) completed(ctx context.Context, s postgres.SnapshotRecord, seen disk.Snapshot) error {
	counted, err := a.Store.CompleteSnapshot(ctx, s, seen)
	if counted {
		a.opts.Log.InfoContext(ctx, "snapshot completed", "snapshot", s.SnapshotID, "disk", s.DiskName, "user", s.User,
			"reason", "EC2 says so")
	}
	return err
}

func (a *Sync) failed(ctx context.Context, s postgres.SnapshotRecord, why string) error {
	counted, err := a.Store.FailSnapshot(ctx, s, why)
	if counted {
		a.opts.Log.ErrorContext(ctx, "snapshot failed; volume and disk are kept", "snapshot", s.SnapshotID, "volume", s.VolumeID,
			"disk", s.DiskName, "user", s.User, "reason", why)
	}
	return err
}
