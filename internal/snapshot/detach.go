package snapshot

import (
	"context"
	"errors"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// found is what became of a volume: it is free of any writer, gone, or neither.
type found struct {
	free, gone bool
	held       bool                 // it was seen attached
	reason     string               // why it is not free
	since      time.Duration        // that nothing was heard of it
	verdict    postgres.DiskVerdict // of a detach
}

// takeOff waits for the volume to be without a writer, and helps as far as disk.Detach allows.
func (k *Keeper) takeOff(ctx context.Context, c *postgres.CleanupRecord) (found, error) {
	began := k.opts.Now()
	now := func() time.Time { return c.Now.Add(k.opts.Now().Sub(began)) } // the database's
	f := found{verdict: postgres.DiskOurs}
	asked := map[disk.Action]bool{}
	patience := k.opts.Patience
	if left := c.PodGoneAt.Add(k.opts.DriverGrace).Sub(c.Now); left > 0 && left <= patience {
		patience = max(patience, left+soon) // what the driver leaves attached is this delivery's to detach: the next is a tick later
	}
	_, err := k.until(ctx, patience, func(ctx context.Context) (bool, error) {
		v, gone, err := k.volume(ctx, c.VolumeID)
		if f.gone = gone; err != nil || gone {
			return gone, err
		}
		if err := own(v, diskOf(*c)); err != nil {
			return true, err
		}
		if f.free, f.reason = disk.WriterGone(v); f.free || len(v.Attachments) == 0 {
			return f.free, nil // else on its way to be available, or deleted
		}
		f.held = true
		if !c.WriterGoneAt.IsZero() { // what was made of the volume before is no proof any more
			if err := k.Store.ForgetWriterGone(ctx, c.ReservationID); err != nil {
				return false, err
			}
			c.WriterGoneAt = time.Time{}
		}
		h, err := k.holder(ctx, *c, v.Attachments[0])
		if err != nil {
			return false, err
		}
		do, reason := disk.Detach(v, h, now())
		switch f.reason = reason; {
		case do == disk.Refuse:
			return true, fault.Errorf(fault.Permanent, "not detached: %s", reason)
		case do != disk.Wait && !asked[do]:
			asked[do] = true
			verdict, err := k.detach(ctx, c, h, do, now)
			if err != nil {
				return false, err
			}
			f.verdict = verdict
			return verdict != postgres.DiskOurs, nil
		}
		return false, nil
	})
	f.since = now().Sub(later(c.PodGoneAt, c.DetachRequestedAt, c.DetachForcedAt))
	return f, err
}

// diskOf names the disk of a cleanup.
func diskOf(c postgres.CleanupRecord) disk.Key { return disk.Key{User: c.UserID, Name: c.DiskName} }

// errAnothers says that EC2 shows the volume as somebody else's.
var errAnothers = errors.New("nothing touched")

// own is an error where the volume's tags name another disk than this one: whatever row names it is wrong, and somebody
// has to look.
func own(v disk.Volume, k disk.Key) error {
	if why := k.Others(v); why != "" {
		return fault.Errorf(fault.Permanent, "%w: %s", errAnothers, why)
	}
	return nil
}

// holder sums up what is known of those who may still write.
func (k *Keeper) holder(ctx context.Context, c postgres.CleanupRecord, a disk.Attachment) (disk.Holder, error) {
	i, err := k.EC2.DescribeInstance(ctx, a.InstanceID)
	gone, err := k.home.Gone(ctx, err)
	if err != nil {
		return disk.Holder{}, err
	}
	return disk.Holder{
		Disk: diskOf(c), EndedAt: c.Ended, InstanceID: c.InstanceID, PodGoneAt: c.PodGoneAt, ContainersTerminated: c.ContainersTerminated,
		InstanceHalted: gone || i.Halted(), PlainAt: c.DetachRequestedAt, DriverGrace: k.opts.DriverGrace,
	}, nil
}

// detach records that the volume is about to be detached, then, under the disk's lock and if what EC2 says still leads
// to the same decision, asks for it. A forced one is recorded for good: nobody may take the snapshot for more than it is.
func (k *Keeper) detach(ctx context.Context, c *postgres.CleanupRecord, h disk.Holder, do disk.Action, now func() time.Time) (postgres.DiskVerdict, error) {
	forced := do == disk.DetachForced
	verdict, err := k.Store.RecordDetach(ctx, c.ReservationID, forced)
	if err != nil || verdict != postgres.DiskOurs {
		return verdict, err
	}
	verdict, err = k.Store.WithDisk(ctx, c.ReservationID, func(ctx context.Context) error {
		v, gone, err := k.volume(ctx, c.VolumeID)
		if err != nil || gone {
			return err
		}
		again, reason := disk.Detach(v, h, now())
		if again != do {
			return nil // it has changed: the next look decides anew
		}
		k.opts.Log.InfoContext(ctx, "detach", "volume", v.ID, "forced", forced, "reason", reason)
		err = k.EC2.DetachVolume(ctx, v.ID, v.Attachments[0], forced)
		if fault.Is(err, fault.Gone) || fault.Is(err, fault.Conflict) {
			return nil // detached, or on its way
		}
		return err
	})
	if forced {
		c.DetachForcedAt = now()
	} else {
		c.DetachRequestedAt = now()
	}
	return verdict, err
}

func later(times ...time.Time) (last time.Time) {
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}
