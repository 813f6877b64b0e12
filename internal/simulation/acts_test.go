package simulation

import (
	"context"
	"slices"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// act has somebody do something, at whatever moment this is.
func (p *people) act(w *world) {
	if len(p.all) == 0 || w.quiet {
		return
	}
	r := p.all[w.rand.IntN(len(p.all))]
	acts := []func(*world, *reservation){p.extend, p.extend, p.cancel, p.deletePod, p.die, p.oom, p.loseNode, p.again, p.again, p.again,
		p.deleteDisk, p.restoreDisk, p.backUp, p.forge, p.forge, p.forget, p.days, p.pause, p.revive,
		p.mislabel, p.misname, p.orphan}
	acts[w.rand.IntN(len(acts))](w, r)
}

func (p *people) extend(w *world, r *reservation) {
	by := w.between(-5*time.Minute, 50*time.Minute)
	if p.write(w, r, statement{"update reservations set expires_at = $2 where reservation_id = $1 and expires_at is not null", []any{r.id, w.now().Add(by)}}) {
		w.say(r.user, "extends %s to %s from now", r.id, by)
	}
}

// cancel ends a reservation whatever its status is by now: the user saw it live.
func (p *people) cancel(w *world, r *reservation) {
	if p.write(w, r, statement{"update reservations set status = 'cancelled', cancelled_at = $2, reservation_ended = $2 where reservation_id = $1", []any{r.id, w.now()}}) {
		w.say(r.user, "cancels %s", r.id)
		p.soonAgain(w, r)
	}
}

// soonAgain has the user of a reservation that has ended come back while it is being cleaned up.
func (p *people) soonAgain(w *world, r *reservation) {
	if w.oneIn(2) {
		w.in(w.between(time.Second, 4*time.Minute), "people", func() {
			if !w.quiet {
				p.again(w, r)
			}
		})
	}
}

func (p *people) podOf(w *world, r *reservation) bool {
	return r.pod != nil && w.outside.Cluster.Pod(r.pod.Namespace, r.pod.Name) == r.pod
}

func (p *people) deletePod(w *world, r *reservation) {
	if p.podOf(w, r) {
		w.say(r.user, "deletes pod %s", r.pod.Name)
		w.outside.Cluster.Delete(r.pod, 30*time.Second)
	}
}

// clear has administrators take away the pods that no row knows any more, which every sweep tells of: of the volumes under
// them nobody could make anything.
func (p *people) clear(w *world) {
	for _, r := range p.all {
		if status(w, r.id) == "" && p.podOf(w, r) {
			w.say("admin", "deletes pod %s, which no row knows", r.pod.Name)
			w.outside.Cluster.Delete(r.pod, 30*time.Second)
		}
	}
}

// orphan has an administrator take a pod out of the API whose node has lost its network: it goes on writing to its volume.
func (p *people) orphan(w *world, r *reservation) {
	if p.podOf(w, r) && r.pod.Runs() {
		d := w.between(10*time.Second, 10*time.Minute)
		w.say("admin", "forces pod %s, which runs on for %s", r.pod.Name, d)
		w.outside.Cluster.Orphan(r.pod, d)
	}
}

func (p *people) die(w *world, r *reservation) {
	if p.podOf(w, r) && r.pod.Runs() {
		w.say("kubelet", "evicts pod %s", r.pod.Name)
		r.died = w.now()
		w.outside.Cluster.Kill(r.pod, "Evicted", pod.Failed)
	}
}

func (p *people) oom(w *world, r *reservation) {
	if p.podOf(w, r) && r.pod.Runs() {
		w.say("kernel", "kills %s for want of memory", r.pod.Name)
		w.outside.Cluster.OOM(r.pod)
	}
}

func (p *people) loseNode(w *world, r *reservation) {
	if n := w.outside.Cluster.Node(r.node); n != nil && !n.CutOff && p.podOf(w, r) {
		state := pick(w, "terminated", "stopped")
		w.say("aws", "instance %s of %s is %s", r.instance, r.podName, state)
		w.outside.Cluster.LoseNode(r.node, state)
	}
}

// again starts a new reservation on what an ended one had: its disk, its pod's name, its domain, or its very volume.
func (p *people) again(w *world, r *reservation) {
	if !r.healthy || len(p.all) > 7 {
		return
	}
	switch status(w, r.id) {
	case "expired", "cancelled", "failed":
	default:
		return
	}
	taken := column[bool](w.data, `select exists (select from reservations where status in ('pending', 'queued', 'preparing', 'active')
		and (user_id = $1 and disk_name = $2 or domain_name = $3))`, r.user, r.disk, r.domain)[0]
	if taken {
		return
	}
	like := ""
	if w.oneIn(2) {
		like = r.id
	}
	n := p.reserve(w, r.user, like)
	n.disk, n.domain = r.disk, r.domain
	if v := w.outside.EC2.Volume(r.volume); v != nil && (w.service.keep || w.oneIn(3)) {
		n.volume = r.volume
		w.say(r.user, "will have the very volume %s", n.volume)
	}
	p.launched(w, n, w.between(8*time.Minute, 50*time.Minute), 0)
}

func (p *people) deleteDisk(w *world, r *reservation) {
	date := w.now().Add(time.Duration(pick(w, 30, 3, 0)) * 24 * time.Hour)
	if r.disk != "" && p.write(w, r, statement{`update disks set is_deleted = true, delete_date = $3::date, marked_deleted_at = $4
		where user_id = $1 and disk_name = $2`, []any{r.user, r.disk, date.Format(time.DateOnly), w.now()}}) {
		w.say(r.user, "deletes disk %s for %s", r.disk, date.Format(time.DateOnly))
	}
}

func (p *people) restoreDisk(w *world, r *reservation) {
	if r.disk != "" && p.write(w, r, statement{`update disks set is_deleted = false, delete_date = null, marked_deleted_at = null
		where user_id = $1 and disk_name = $2`, []any{r.user, r.disk}}) {
		w.say(r.user, "restores disk %s", r.disk)
	}
}

// backUp has the platform snapshot a disk in use, and count it as pending.
func (p *people) backUp(w *world, r *reservation) {
	v := w.outside.EC2.Volume(r.volume)
	if v == nil || v.State == disk.VolumeDeleting || r.disk == "" {
		return
	}
	key := disk.Key{User: r.user, Name: r.disk}
	tags := key.Tags()
	tags[disk.TagType] = "periodic"
	if p.write(w, r, statement{`update disks set is_backing_up = true, pending_snapshot_count = pending_snapshot_count + 1, last_updated = $3
		where user_id = $1 and disk_name = $2`, []any{r.user, r.disk, w.now()}}) {
		s := w.outside.EC2.Snap(v, tags, "periodic backup")
		s.Listed = w.now().Add(w.between(0, 90*time.Second))
		w.say("platform", "backs %s up as %s", r.disk, s.ID)
	}
}

// mislabel has the platform tag a volume as another user's, or as another disk's, where a row goes on naming it: what nothing
// names any more nobody could find.
func (p *people) mislabel(w *world, r *reservation) {
	v, key := w.outside.EC2.Volume(r.volume), disk.Key{User: r.user, Name: r.disk}
	if v == nil || !w.oneIn(3) || !column[bool](w.data, `
		select exists (select from reservations where reservation_id = $1 and ebs_volume_id = $2)
		    or exists (select from disks where reservation_id = $1 and ebs_volume_id = $2)`, r.id, r.volume)[0] {
		return
	}
	if w.oneIn(2) {
		key.User = pick(w, userNames...)
	} else {
		key.Name = pick(w, diskNames...)
	}
	v.Tags = key.Tags()
	w.say("platform", "tags volume %s of %s as %s's %q", v.ID, r.id, key.User, key.Name)
}

// misname has the platform write a volume of another disk's into the row of a reservation, or of its disk.
func (p *people) misname(w *world, r *reservation) {
	o := p.all[w.rand.IntN(len(p.all))]
	if r.disk == "" || o.volume == "" || o.disk == r.disk && o.user == r.user || !w.oneIn(3) {
		return
	}
	table := pick(w, "reservations", "disks")
	if p.write(w, r, statement{"update " + table + " set ebs_volume_id = $2 where reservation_id = $1", []any{r.id, o.volume}}) {
		w.say("platform", "writes %s, which is %s's, into %s of %s", o.volume, o.id, table, r.id)
	}
}

// forge sends an event that nobody asked for.
func (p *people) forge(w *world, r *reservation) {
	f := event.FollowUp{ReservationID: r.id, Subject: r.id, Kind: "cleanup", Key: r.id, Dispatch: 1}
	switch w.rand.IntN(5) {
	case 0:
		f.Kind, f.Key = "warning", event.WarningKey(r.id, w.now().Add(10*time.Minute), 15)
	case 1:
		f.Kind, f.Key = "snapshot.sync", w.uuid().String()
	case 2:
		if all := w.outside.EC2.Snapshots(); len(all) > 0 {
			f.Kind, f.Key, f.ReservationID = "snapshot.purge", all[w.rand.IntN(len(all))].ID, ""
			f.Subject = f.Key
		}
	}
	e, err := event.Builder{Now: w.now}.FollowUp(f)
	if err != nil {
		w.say("forger", "cannot make %s %s: %v", f.Kind, f.Key, err)
		return
	}
	w.faults.count("bus: event forged")
	w.checks.forged(e, func(e ce.Event) {
		proc := w.service.process("forged")
		_ = w.service.deliver(proc, e)
	})
}

// forget has the platform delete the row of a reservation that ended, or is cancelled, be its end seen or not.
func (p *people) forget(w *world, r *reservation) {
	if !w.oneIn(4) {
		return
	}
	if status(w, r.id) == "active" && r.healthy {
		p.cancel(w, r)
		w.in(w.between(0, 2*time.Minute), "people", func() { p.erase(w, r) })
		return
	}
	p.erase(w, r)
}

func (p *people) erase(w *world, r *reservation) {
	if w.quiet || !slices.Contains([]string{"expired", "cancelled", "failed"}, status(w, r.id)) {
		return
	}
	if p.write(w, r, statement{"delete from reservations where reservation_id = $1", []any{r.id}}) {
		w.say("platform", "deletes the row of %s", r.id)
	}
}

// days go by without anything.
func (p *people) days(w *world, _ *reservation) {
	if !w.oneIn(4) || w.depth > 0 {
		return
	}
	d := w.between(24*time.Hour, 9*24*time.Hour)
	w.say("world", "%s go by", d)
	w.outside.Advance(d)
}

// pause has an operator pause the service for a while.
func (p *people) pause(w *world, _ *reservation) {
	during := w.between(time.Minute, 12*time.Minute)
	w.data.tell()
	if _, err := w.data.db.Pause(context.Background(), "maintenance", during); err == nil {
		p.paused = outage{w.now(), w.now().Add(during)}
		w.say("operator", "pauses for %s", during)
	}
}

// revive has the platform bring a reservation that ended back to life, unless another has its place. In the midst of
// somebody's work it does not: nobody could help what has begun.
func (p *people) revive(w *world, r *reservation) {
	later := slices.ContainsFunc(p.all, func(o *reservation) bool {
		return o != r && (o.podName == r.podName || o.disk == r.disk && o.user == r.user && r.disk != "" || o.domain == r.domain && r.domain != "")
	})
	if later || !r.healthy || w.depth > 0 || !slices.Contains([]string{"expired", "cancelled", "failed"}, status(w, r.id)) {
		return
	}
	ends := w.between(5*time.Minute, 40*time.Minute)
	if p.write(w, r, statement{`update reservations set status = 'active', expires_at = $2, reservation_ended = null, failed_at = null, cancelled_at = null
		where reservation_id = $1`, []any{r.id, w.now().Add(ends)}}) {
		w.say("platform", "brings %s back to life for %s", r.id, ends)
	}
}

// broken makes a row that makes no sense, in one way or another. It must not be in anybody's way.
func (p *people) broken(w *world) {
	r := p.reserve(w, "broken", "")
	r.healthy, r.disk, r.domain = false, "", ""
	how := pick(w, "expires_at = null", "expires_at = 'infinity'", "expires_at = '1970-01-01'", "created_at = 'infinity'", "pod_name = repeat('x', 255)",
		"namespace = 'No Such Namespace!'", "name = repeat('ü', 3000), user_id = null", "status_history = '\"junk\"', warnings_sent = '[1]'",
		"user_id = null, pod_name = null, namespace = null, gpu_type = null, created_at = null, launched_at = null, status_history = null, warnings_sent = null",
		"master_reservation_id = 'no such master', is_multinode = true", "status = null", "status = 'odd'")
	w.say("platform", "%s is broken: %s", r.id, how)
	p.write(w, r, r.row("active", w.now().Add(-time.Hour)),
		statement{"update reservations set launched_at = created_at, expires_at = $2 where reservation_id = $1", []any{r.id, w.now().Add(10 * time.Minute)}},
		statement{"update reservations set " + how + " where reservation_id = $1", []any{r.id}})
}

// status is what the row says now.
func status(w *world, id string) string {
	if w.data.status == nil {
		w.data.status = map[string]string{}
		for _, r := range read[struct{ ID, Status string }](w.data, "select reservation_id, coalesce(status, '') from reservations") {
			w.data.status[r.ID] = r.Status
		}
	}
	return w.data.status[id]
}
