package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// Account is the number of the world's account.
const Account = "123456789012"

// EC2 has volumes, snapshots and instances.
type EC2 struct {
	w         *World
	volumes   map[string]*Volume
	snapshots map[string]*Snapshot
	instances map[string]*disk.Instance
	// Sound is set where, or from when on, no snapshot fails.
	Sound bool
}

// Volume is a volume with what was written to it.
type Volume struct {
	disk.Volume
	Owner string // the reservation that had it last
	// Wrote is when a process last wrote to it; one that still runs writes all the time.
	Wrote time.Time
	// Stuck is set where the operating system lets go of the device only by force.
	Stuck bool
	// Left is set where the driver forgets the volume, so that somebody has to ask for its detaching.
	Left   bool
	writer *Pod
}

// Writer returns the pod whose processes may write to the volume at this moment, nil where there is none.
func (v *Volume) Writer() *Pod {
	if v.writer != nil && v.writer.Runs() && len(v.Attachments) > 0 {
		return v.writer
	}
	return nil
}

// Snapshot is a snapshot with what it holds.
type Snapshot struct {
	disk.Snapshot
	Holds time.Time // all that was written until then
	Owner string    // the reservation whose volume it was made of
	// Listed is from when on lists show it, Known from when on it is described by its id.
	Listed, Known time.Time
}

func (e *EC2) id(prefix string) string {
	e.w.count++
	return fmt.Sprintf("%s-%017x", prefix, e.w.count)
}

// MakeInstance starts an instance and returns its id.
func (e *EC2) MakeInstance(spot bool) string {
	id := e.id("i")
	e.instances[id] = &disk.Instance{ID: id, State: disk.InstanceRunning, Spot: spot}
	return id
}

// Halt ends an instance: "stopped" keeps its attachments, "terminated" lets go of them after a while.
func (e *EC2) Halt(id, state string) {
	i := e.instances[id]
	if i == nil || i.Halted() {
		return
	}
	i.State = disk.InstanceState(state)
	if i.Spot {
		i.StateReason = "Server.SpotInstanceTermination"
	}
	if i.State != disk.InstanceTerminated {
		return
	}
	for _, v := range e.Volumes() {
		if len(v.Attachments) == 1 && v.Attachments[0].InstanceID == id {
			e.w.After(e.w.between(5*time.Second, 2*time.Minute), func() { e.detached(v, id) })
		}
	}
}

// MakeVolume makes an available volume with the given tags, whose content is as old as wrote says.
func (e *EC2) MakeVolume(tags map[string]string, owner string, wrote time.Time) *Volume {
	v := &Volume{Volume: disk.Volume{ID: e.id("vol"), State: disk.VolumeAvailable, SizeGiB: 100, Tags: maps.Clone(tags), CreatedAt: e.w.now, Zone: "us-east-1a"},
		Owner: owner, Wrote: wrote, Stuck: e.w.oneIn(25), Left: e.w.oneIn(4)}
	e.volumes[v.ID] = v
	return v
}

// MakeSnapshot adds a completed snapshot that somebody else made.
func (e *EC2) MakeSnapshot(tags map[string]string, started, holds time.Time) *Snapshot {
	s := &Snapshot{Snapshot: disk.Snapshot{ID: e.id("snap"), VolumeID: e.id("vol"), OwnerID: Account, State: disk.SnapshotCompleted, StartedAt: started,
		Progress: "100%", SizeGiB: 100, Tags: maps.Clone(tags)}, Holds: holds}
	e.snapshots[s.ID] = s
	return s
}

// Attach gives a volume to a pod's instance: from now on the pod's processes write to it.
func (e *EC2) Attach(v *Volume, instance string, p *Pod) {
	v.State, v.writer, v.Owner = disk.VolumeInUse, p, p.Owner
	v.Attachments = []disk.Attachment{{InstanceID: instance, Device: "/dev/xvdf", State: disk.Attached, AttachedAt: e.w.now}}
}

// Volume returns a volume, nil where there is none.
func (e *EC2) Volume(id string) *Volume { return e.volumes[id] }

// Volumes returns every volume, in order of ids.
func (e *EC2) Volumes() []*Volume { return inOrder(e.volumes) }

// Snapshots returns every snapshot, in order of ids.
func (e *EC2) Snapshots() []*Snapshot { return inOrder(e.snapshots) }

// Snapshot returns a snapshot, nil where there is none.
func (e *EC2) Snapshot(id string) *Snapshot { return e.snapshots[id] }

// Lose has somebody delete a snapshot.
func (e *EC2) Lose(id string) { delete(e.snapshots, id) }

// Instances returns every instance, in order of ids.
func (e *EC2) Instances() []*disk.Instance { return inOrder(e.instances) }

// Copy is what there is now, for looking at later: what happens to it meanwhile does not show in it.
func (e *EC2) Copy() *EC2 {
	c := &EC2{w: e.w, volumes: maps.Clone(e.volumes), snapshots: maps.Clone(e.snapshots), instances: maps.Clone(e.instances)}
	for id, v := range c.volumes {
		one := *v
		one.Attachments, one.Tags = slices.Clone(v.Attachments), maps.Clone(v.Tags)
		c.volumes[id] = &one
	}
	for id, s := range c.snapshots {
		one := *s
		one.Tags = maps.Clone(s.Tags)
		c.snapshots[id] = &one
	}
	for id, i := range c.instances {
		one := *i
		c.instances[id] = &one
	}
	return c
}

// Unstick has operating systems let go of what they still hold.
func (e *EC2) Unstick() {
	for _, v := range e.Volumes() {
		v.Stuck = false
		if len(v.Attachments) == 1 && v.Attachments[0].State == disk.Busy && v.Writer() == nil {
			instance := v.Attachments[0].InstanceID
			e.w.After(10*time.Second, func() { e.detached(v, instance) })
		}
	}
}

// wrote notes that a pod's processes have written until now.
func (e *EC2) wrote(p *Pod) {
	if v := e.volumes[p.Volume]; v != nil && v.Writer() == p {
		v.Wrote = e.w.now
	}
}

// LastWrite returns when something was last written to a volume: now, while a process runs.
func (e *EC2) LastWrite(v *Volume) time.Time {
	if v.Writer() != nil {
		return e.w.now
	}
	return v.Wrote
}

// letGo has the driver detach the volume of a pod that is gone. It does so only where the processes have ended.
func (e *EC2) letGo(p *Pod) {
	v := e.volumes[p.Volume]
	if v == nil || v.writer != p || v.Stuck || p.Runs() || len(v.Attachments) == 0 {
		return
	}
	if v.Left && v.Attachments[0].State != disk.Busy { // what was asked for before is done once the device is free
		return
	}
	instance := v.Attachments[0].InstanceID
	if i := e.instances[instance]; i != nil && i.Halted() {
		return // EC2 does it, or nobody
	}
	v.Attachments[0].State = disk.Detaching
	e.w.After(e.w.between(time.Second, 25*time.Second), func() { e.detached(v, instance) })
}

// detached ends an attachment.
func (e *EC2) detached(v *Volume, instance string) {
	if len(v.Attachments) != 1 || v.Attachments[0].InstanceID != instance {
		return
	}
	if p := v.Writer(); p != nil {
		v.Wrote = e.w.now
	}
	v.Attachments, v.writer = nil, nil
	if v.State == disk.VolumeInUse {
		v.State = disk.VolumeAvailable
	}
}

// reclaim deletes an EBS volume as the driver does by a reclaim policy: without looking for a snapshot.
func (e *EC2) reclaim(id string) {
	if v := e.volumes[id]; v != nil && len(v.Attachments) == 0 {
		e.w.watch(Effect{What: "delete volume", Name: id, Owner: v.Owner, Volume: v})
		delete(e.volumes, id)
	}
}

// keys returns the ids of the snapshots that a list shows now.
func (e *EC2) listed(want func(*Snapshot) bool) []disk.Snapshot {
	var out []disk.Snapshot
	for _, s := range e.Snapshots() {
		if !s.Listed.After(e.w.now) && want(s) {
			c := s.Snapshot
			c.Tags = maps.Clone(s.Tags)
			out = append(out, c)
		}
	}
	return slices.Clip(out)
}
