package simulation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// effect judges what is about to be taken away.
func (c *checks) effect(e model.Effect) {
	c.touched++
	if e.What == "write file" {
		c.file(e)
		return
	}
	c.w.say("effect", "%s %s of %s", e.What, e.Name, e.Owner)
	if e.Owner != "" && e.What != "delete snapshot" {
		at := status(c.w, e.Owner)
		live := (&row{Status: at}).live()
		c.require(newIsSafe, !live, "%s %s, which belongs to %s, and that is %s", e.What, e.Name, e.Owner, at)
	}
	switch e.What {
	case "delete volume":
		c.volumeGoes(e.Volume)
	case "delete snapshot":
		c.snapshotGoes(e.Snapshot)
	}
}

// captures judges what a snapshot is about to be made of: it counts as its disk's, and gives the right to delete the volume.
func (c *checks) captures(n disk.NewSnapshot) {
	v := c.w.outside.EC2.Volume(n.VolumeID)
	if v == nil {
		return
	}
	if r := c.w.people.byID(v.Owner); r != nil {
		c.require(countedOnce, n.Disk == disk.Key{User: r.user, Name: r.disk}, "volume %s, which is %s's %q, is captured as %s's %q", v.ID, r.user, r.disk, n.Disk.User, n.Disk.Name)
	}
	for _, s := range c.w.outside.EC2.Snapshots() {
		if s.VolumeID == v.ID && s.Tags[disk.TagReservation] == n.ReservationID && s.State != disk.SnapshotError {
			c.require(countedOnce, !c.stands(s), "volume %s is captured by attempt %d of %s, and attempt %s has made %s", v.ID, n.Attempt, n.ReservationID, s.Tags[disk.TagAttempt], s.ID)
		}
	}
}

// stands reports whether a cleanup may go on from a snapshot that it has made: it has not seen a writer since.
func (c *checks) stands(s *model.Snapshot) bool {
	return column[bool](c.w.data, `
		select exists (select from expiry.snapshots join expiry.cleanups using (reservation_id) where intent_id::text = $1 and intended_at >= writer_gone_at)`,
		s.Tags[disk.TagIntent])[0]
}

// volumeGoes judges the end of a volume.
func (c *checks) volumeGoes(v *model.Volume) {
	last := c.w.outside.EC2.LastWrite(v)
	why := "there is no snapshot of it"
	proven := false
	for _, s := range c.w.outside.EC2.Snapshots() {
		if s.VolumeID != v.ID {
			continue
		}
		switch {
		case s.State != disk.SnapshotCompleted:
			why = fmt.Sprintf("snapshot %s is %s", s.ID, s.State)
		case s.Tags[disk.TagReservation] == "":
			why = fmt.Sprintf("snapshot %s was not made by us", s.ID)
		case s.Holds.Before(last):
			why = fmt.Sprintf("snapshot %s holds what was written until %s, the last write was at %s", s.ID, s.Holds.Format(time.TimeOnly), last.Format(time.TimeOnly))
		default:
			proven = true
		}
	}
	c.require(volumeProven, proven && len(v.Attachments) == 0, "volume %s goes, but %s", v.ID, why)
}

// snapshotGoes judges the end of a snapshot.
func (c *checks) snapshotGoes(s *model.Snapshot) {
	type saved struct {
		Deleted bool
		Date    *time.Time
	}
	rows := read[saved](c.w.data, "select coalesce(is_deleted, false), delete_date from disks where user_id = $1 and disk_name = $2", s.Key().User, s.Key().Name)
	now := c.w.now()
	switch {
	case len(rows) == 0:
		c.require(newestKept, false, "snapshot %s goes, and no row knows its disk", s.ID)
	case rows[0].Deleted:
		c.require(newestKept, rows[0].Date != nil && !now.Before(*rows[0].Date), "snapshot %s goes before its disk's date %v", s.ID, rows[0].Date)
	default:
		newer := 0
		for _, o := range c.w.outside.EC2.Snapshots() {
			if o.Key() == s.Key() && o.State == disk.SnapshotCompleted && o.StartedAt.After(s.StartedAt) {
				newer++
			}
		}
		for _, o := range c.w.people.tidied { // which is listed for minutes
			if o.Key() == s.Key() && o.StartedAt.After(s.StartedAt) && now.Sub(o.at) <= staleFor {
				newer++
			}
		}
		c.require(newestKept, newer >= disk.KeepNewest && now.Sub(s.StartedAt) > disk.KeepFor,
			"snapshot %s of a live disk goes, with %d newer ones, %s old", s.ID, newer, now.Sub(s.StartedAt))
	}
}

// file judges what is written into a pod.
func (c *checks) file(e model.Effect) {
	if !strings.HasPrefix(e.File.Name, "WARN_") {
		return
	}
	of := c.w.people.byID(e.Owner)
	astray := of != nil && c.nameTaken(of)
	c.warnings = append(c.warnings, written{e.Owner, e.File.Name, e.File.Content, c.w.now(), astray})
	type state struct {
		Status string
		Ends   *time.Time
		Ended  *time.Time
	}
	rows := read[state](c.w.data, "select coalesce(status, ''), expires_at, reservation_ended from reservations where reservation_id = $1 and isfinite(expires_at)", e.Owner)
	if len(rows) == 0 {
		return
	}
	// A delivery that saw it live may be overtaken by its end: writing takes up to 15 s.
	const way = time.Minute
	r := rows[0]
	late := r.Ended != nil && r.Status != "active" && c.w.now().Sub(*r.Ended) > way
	c.require(warnedInTime, !late || astray, "%s is written to %s, which has ended at %v", e.File.Name, e.Owner, r.Ended)
}

// diskChanged judges a change of a disk's row.
func (c *checks) diskChanged(ch change, before, after *row, service bool) {
	c.require(countedOnce, after.Pending >= 0, "disk %s has %d pending snapshots", after.DiskName, after.Pending)
	if !service || before == nil || !before.InUse || after.InUse {
		return
	}
	holder := before.ReservationID
	if holder == "" { // its row was deleted: whose cleanup releases it?
		holder = strings.Join(column[string](c.w.data, `
			select reservation_id from expiry.cleanups where user_id = $1 and disk_name = $2 and disk_released_at > $3`,
			after.UserID, after.DiskName, c.w.now().Add(-time.Second)), " and ")
	}
	c.w.say("rows", "disk %s of %s released by %s", after.DiskName, after.UserID, holder)
	if holder == "" { // nobody's: that of a sweep
		c.truths = append(c.truths, truth{"dev.gpudev.disk.released.v1", ch.ID})
		for _, v := range c.volumesOf(disk.Key{User: after.UserID, Name: after.DiskName}) {
			held, open := c.held(v)
			c.require(diskSettled, held && !open, "disk %s, which nobody has, is released, and volume %s is there: held by a snapshot %t, one pending %t", after.DiskName, v.ID, held, open)
		}
		c.checked[diskSettled]++
		return
	}
	c.truths = append(c.truths, truth{"dev.gpudev.disk.released.v1", holder})
	at := status(c.w, holder)
	c.require(newIsSafe, !(&row{Status: at}).live(), "disk %s is released, and its holder %s is %s", after.DiskName, holder, at)
	for _, v := range c.w.outside.EC2.Volumes() {
		if v.Owner == holder && v.State != disk.VolumeDeleting && c.named(v, holder) {
			held, open := c.held(v)
			c.require(diskSettled, held && !open, "disk %s is released, and volume %s is there: held by a snapshot %t, one pending %t", after.DiskName, v.ID, held, open)
		}
	}
	c.checked[diskSettled]++
}

// volumesOf returns the volumes of which the disk's row or their tags say that they are the disk's.
func (c *checks) volumesOf(key disk.Key) (volumes []*model.Volume) {
	named := column[string](c.w.data, "select coalesce(ebs_volume_id, '') from disks where user_id = $1 and disk_name = $2", key.User, key.Name)
	for _, v := range c.w.outside.EC2.Volumes() {
		if !v.Deleting() && (slices.Contains(named, v.ID) || key.Named(v.Volume)) {
			volumes = append(volumes, v)
		}
	}
	return volumes
}

// named reports whether the service can know of the volume. Who was never launched had no time to write to one: unless
// something names it, the pod that did being gone, it is not sought.
func (c *checks) named(v *model.Volume, holder string) bool {
	return column[bool](c.w.data, `
		select exists (select from reservations where reservation_id = $1 and (launched_at is not null or ebs_volume_id = $2))
		    or exists (select from disks where ebs_volume_id = $2) or exists (select from expiry.cleanups where reservation_id = $1 and (launched_at is not null or volume_id = $2))`,
		holder, v.ID)[0]
}

// held reports whether a completed snapshot has all that a volume has, and whether one that its owner's cleanup has made
// is pending.
func (c *checks) held(v *model.Volume) (held, open bool) {
	last := c.w.outside.EC2.LastWrite(v)
	for _, s := range c.w.outside.EC2.Snapshots() {
		if s.VolumeID != v.ID {
			continue
		}
		held = held || s.State == disk.SnapshotCompleted && !s.Holds.Before(last)
		open = open || s.State == disk.SnapshotPending && s.Tags[disk.TagReservation] == v.Owner
	}
	return held, open
}
