package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const (
	// lookPause lies between two looks for what an unanswered request made: EC2's listing lags behind.
	lookPause = 30 * time.Second
	// A request is given up after so many looks in vain, the last of them once all of EC2 must have heard of what it made.
	// A snapshot that appears later still is adopted: it is ours, and counted like any other.
	looksInVain  = 2
	abandonAfter = disk.Lag
)

// snapshotting is the outcome of a cleanup's disk while the sync goes on with it.
const snapshotting = "snapshotting"

// capture has a snapshot made of a volume that was just seen without a writer: the intent is committed first, EC2 is
// asked once.
func (k *Keeper) capture(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error) {
	s, made, verdict, err := k.Store.IntendSnapshot(ctx, c.ReservationID, k.opts.NewID())
	if err != nil || verdict != postgres.DiskOurs {
		return k.stop(ctx, c, verdict, err)
	}
	if !made {
		return followup.LookAgain(soon), nil // another delivery is at it
	}
	var refusal error
	asked, verdict, err := k.Store.MakeSnapshot(ctx, s, func(ctx context.Context) (disk.Snapshot, error) {
		snapshot, err := k.create(ctx, s)
		if isRefusal(err) {
			refusal = err
		}
		return snapshot, err
	})
	switch {
	case refusal != nil:
		err := errors.Join(refusal, k.Store.AbandonSnapshot(ctx, s.IntentID, refusal.Error()))
		if errors.Is(refusal, errWriterBack) {
			err = errors.Join(err, k.Store.ForgetWriterGone(ctx, c.ReservationID))
		}
		return followup.Result{}, err
	case err != nil:
		return k.wait(ctx, c, lookPause, fmt.Sprintf("no answer whether snapshot attempt %d was begun: %v", s.Attempt, err))
	case verdict != postgres.DiskOurs:
		if err := k.Store.AbandonSnapshot(ctx, s.IntentID, "not asked for: disk "+string(verdict)); err != nil {
			return followup.Result{}, err
		}
		return k.stop(ctx, c, verdict, nil)
	case !asked:
		return followup.LookAgain(soon), nil
	}
	k.opts.Log.InfoContext(ctx, "snapshot begun", "volume", c.VolumeID, "attempt", s.Attempt, "crash_consistent", s.CrashConsistent,
		"reason", "the disk is kept as a snapshot")
	return followup.Done(snapshotting), nil
}

// errWriterBack says that the volume is in use again.
var errWriterBack = errors.New("the volume has a writer again")

// notAskedError is an error before EC2 was asked for a snapshot.
type notAskedError struct{ error }

func (n notAskedError) Unwrap() error { return n.error }

// create asks for the snapshot if the volume still has no writer.
func (k *Keeper) create(ctx context.Context, s postgres.SnapshotRecord) (disk.Snapshot, error) {
	v, err := k.EC2.DescribeVolume(ctx, s.VolumeID)
	if err != nil {
		return disk.Snapshot{}, notAskedError{err}
	}
	if err := own(v, keyOf(s)); err != nil {
		return disk.Snapshot{}, notAskedError{err}
	}
	if gone, why := disk.WriterGone(v); !gone {
		return disk.Snapshot{}, notAskedError{fmt.Errorf("%w: %s", errWriterBack, why)}
	}
	return k.EC2.CreateSnapshot(ctx, disk.NewSnapshot{
		VolumeID: s.VolumeID, Disk: keyOf(s), ReservationID: s.ReservationID,
		Attempt: s.Attempt, IntentID: s.IntentID.String(), CreatedAt: s.Now, ContentsURL: s.ContentURL, Size: s.DiskSize,
		CrashConsistent: s.CrashConsistent,
	})
}

// isRefusal reports whether it is certain that no snapshot was made.
func isRefusal(err error) bool {
	var before notAskedError
	if err == nil || errors.As(err, &before) {
		return err != nil
	}
	return fault.KindOf(err) != fault.Transient
}

// resume goes on with an attempt that stands; nil means that a new one is needed.
func (k *Keeper) resume(ctx context.Context, c postgres.CleanupRecord, s postgres.SnapshotRecord) (*followup.Result, error) {
	if s.State != postgres.SnapshotIntended {
		done := followup.Done(snapshotting)
		return &done, k.Store.RequestSync(ctx, s)
	}
	made, err := k.find(ctx, s)
	switch {
	case err != nil:
		return nil, err
	case made != nil:
		k.opts.Log.WarnContext(ctx, "snapshot found whose making was not answered", "snapshot", made.ID, "attempt", s.Attempt)
		done := followup.Done(snapshotting)
		return &done, k.Store.FoundSnapshot(ctx, s, *made)
	}
	if s.Looks+1 >= looksInVain && s.Now.Sub(s.IntendedAt) >= abandonAfter {
		why := fmt.Sprintf("looked for %d times in %s", s.Looks+1, s.Now.Sub(s.IntendedAt).Round(time.Second))
		k.opts.Log.WarnContext(ctx, "snapshot attempt abandoned", "attempt", s.Attempt, "reason", why)
		return nil, k.Store.AbandonSnapshot(ctx, s.IntentID, why)
	}
	if err := k.Store.LookedInVain(ctx, s.IntentID); err != nil {
		return nil, err
	}
	again, err := k.wait(ctx, c, lookPause, fmt.Sprintf("snapshot attempt %d, begun without an answer, is looked for: EC2 may have yet to hear of it", s.Attempt))
	return &again, err
}

// find looks for what an intent made, by its tags: the earliest, should there be several.
func (k *Keeper) find(ctx context.Context, s postgres.SnapshotRecord) (*disk.Snapshot, error) {
	account, err := k.home.Account(ctx)
	if err != nil {
		return nil, err
	}
	listed, err := k.EC2.FindSnapshots(ctx, disk.IntentTags(s.IntentID.String()))
	if err != nil {
		return nil, err
	}
	var made *disk.Snapshot
	for _, f := range listed {
		if disk.Ours(f, account) && f.VolumeID == s.VolumeID && f.MadeBy(s.ReservationID, s.Attempt) &&
			(made == nil || f.StartedAt.Before(made.StartedAt)) {
			made = &f
		}
	}
	return made, nil
}
