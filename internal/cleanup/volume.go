package cleanup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// seekVolume looks, by the platform's tags, for the volume of a reservation that ran with a disk and of whose volume
// neither row nor pod knows. What it finds is recorded, else the one that it had before and that is no disk's any more;
// none says, for people, that there is no volume. Where EC2 has some of which it cannot be shown that one is the
// reservation's, that is an error and the disk stays locked, unless that is in other hands: then over says so and its part
// is settled.
func (a *Action) seekVolume(ctx context.Context, d *delivery) (none string, over postgres.DiskVerdict, err error) {
	c := d.record
	if identified := d.steps[postgres.StepIdentify]; identified.Outcome == unclear {
		d.unclear = identified.Detail
	}
	if d.unclear != "" {
		over, err = a.locked(ctx, d, fault.Errorf(fault.Permanent,
			"%s; all are kept and the disk stays locked until ebs_volume_id of the reservation's row names one", d.unclear))
		return "", over, err
	}
	none = "no volume is known"
	var found []disk.Volume
	if c.Launched && c.DiskName != "" && c.UserID != "" {
		none = "EC2 has no volume with its tags"
		if found, err = a.tagged(ctx, c, disk.Key{User: c.UserID, Name: c.DiskName}); err != nil {
			return "", "", err
		}
	}
	switch {
	case len(found) == 0 && c.FormerVolume == "":
		_, late, err := a.Store.DiskOf(ctx, c.ReservationID, c.UserID, "")
		if err != nil || late == "" || !c.Launched {
			return none, "", err
		}
		return "", "", a.take(ctx, d, late)
	case len(found) == 0: // the keeper says what has become of it
		return "", "", a.take(ctx, d, c.FormerVolume)
	case len(found) == 1 && hadVolume(c, found[0]):
		a.opts.Log.WarnContext(ctx, "volume found by its tags alone", "volume", found[0].ID, "disk", c.DiskName, "user", c.UserID)
		return "", "", a.take(ctx, d, found[0].ID)
	}
	over, err = a.locked(ctx, d, fault.Errorf(fault.Conflict,
		"cannot tell which volume disk %q of %s was on: EC2 has %s with its tags; the disk stays locked", c.DiskName, c.UserID, strings.Join(idsOf(found), ", ")))
	return "", over, err
}

// take records that a volume is the disk.
func (a *Action) take(ctx context.Context, d *delivery, volume string) error {
	if err := a.Store.RecordIdentity(ctx, d.id, postgres.Identity{VolumeID: volume}, done, ""); err != nil {
		return err
	}
	return a.reload(ctx, d)
}

// locked is the error why, unless the disk is in other hands: then over says so, and its part is settled. What is written
// into the reservation's row from now on is believed.
func (a *Action) locked(ctx context.Context, d *delivery, why error) (over postgres.DiskVerdict, err error) {
	verdict, err := a.Store.WithDisk(ctx, d.id, nil)
	if err != nil || verdict == postgres.DiskSuperseded || verdict == postgres.DiskSettled {
		return verdict, err
	}
	return "", errors.Join(why, a.Store.BelieveRow(ctx, d.id, ""))
}

// clocksApart is how far EC2's clock and that of who wrote the row may differ.
const clocksApart = time.Minute

// hadVolume reports whether a volume with the tags of the reservation's disk was the reservation's: it was made for it,
// or is attached where its pod ran.
func hadVolume(c postgres.CleanupRecord, v disk.Volume) bool {
	made := !c.Started.IsZero() && v.CreatedAt.After(c.Started.Add(-clocksApart)) && v.CreatedAt.Before(c.Ended.Add(clocksApart))
	return made || c.InstanceID != "" && slices.ContainsFunc(v.Attachments, func(a disk.Attachment) bool { return a.InstanceID == c.InstanceID })
}
