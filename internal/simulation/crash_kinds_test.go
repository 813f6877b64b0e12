package simulation

import (
	"cmp"
	"context"
	"maps"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// kind is one kind of reservation: how it is when the world begins, and what befalls it later.
type kind struct {
	what         string        // its name
	status       string        // active, unless given
	since        time.Duration // its creation; 3 hours, unless given
	ends         time.Duration // from now
	disk, domain string
	gpu          string
	bare         bool   // it has no pod
	keeps        bool   // it is there where volumes are kept, too
	row          string // what else its row says, $1 being its id and $2 now
	then         func(w *world, r *reservation)
}

const (
	overdue = -10 * time.Minute
	ended   = "cancelled_at = created_at + interval '170 minutes', reservation_ended = created_at + interval '170 minutes'"
)

// kinds are all there are.
var kinds = []kind{
	{what: "a bystander", keeps: true, ends: 5 * time.Hour, disk: "used", domain: "calm-sea", then: func(w *world, r *reservation) { w.people.backUp(w, r) }},
	{what: "half an hour to go", ends: 28 * time.Minute, then: extendedLater},
	{what: "a quarter to go", ends: 15*time.Minute - 5*time.Second, disk: "quarter", then: extendedLater},
	{what: "five minutes to go", ends: 5*time.Minute - 5*time.Second},
	{what: "past its end, with a disk", keeps: true, ends: overdue, disk: "work", domain: "grumpy-bear", then: func(w *world, r *reservation) {
		w.outside.EC2.Volume(r.volume).Left = true // its driver forgets it
	}},
	{what: "a master past its end", ends: overdue, row: "is_multinode = true"},
	{what: "a node past its end", ends: overdue, row: nodeOf("a master past its end")},
	{what: "a master that goes on", ends: 5 * time.Hour, row: "is_multinode = true"},
	{what: "a node whose master goes on", ends: overdue, row: nodeOf("a master that goes on")},
	{what: "its pod is missing", ends: 5 * time.Hour, bare: true},
	{what: "its pod is dead", ends: 5 * time.Hour, then: func(w *world, r *reservation) { w.people.die(w, r) }},
	{what: "out of memory", ends: 5 * time.Hour, then: func(w *world, r *reservation) { w.people.oom(w, r) }},
	{what: "on a spot instance that is reclaimed", ends: 5 * time.Hour, gpu: "t4", disk: "spot", then: func(w *world, r *reservation) {
		w.in(150*time.Second, "people", func() { w.outside.Cluster.LoseNode(r.node, "terminated") })
	}},
	{what: "stuck while preparing", keeps: true, status: "preparing", since: 80 * time.Minute, disk: "prepared"},
	{what: "stuck in the queue", status: "queued", since: 50 * time.Hour, disk: "queued", bare: true},
	{what: "pending for too long", status: "pending", since: 50 * time.Hour, bare: true},
	{what: "cancelled, its pod left over", status: "cancelled", ends: time.Hour, row: ended},
	{what: "ended as its status alone says", status: "expired", ends: overdue, disk: "status", bare: true, then: func(w *world, r *reservation) {
		r.volume = w.people.restore(w, r).ID
		w.people.write(w, r, statement{"update disks set ebs_volume_id = $2 where reservation_id = $1", []any{r.id, r.volume}})
	}},
	{what: "its volume held by its instance", status: "cancelled", ends: time.Hour, disk: "held", row: ended, then: func(w *world, r *reservation) {
		w.outside.EC2.Volume(r.volume).Stuck = true
		w.outside.Cluster.Kill(r.pod, "", r.pod.Phase)
		_ = w.outside.Cluster.ForceDeletePod(context.Background(), r.pod.Namespace, r.pod.Name, r.pod.UID)
		w.in(12*time.Minute, "people", func() { w.outside.EC2.Halt(r.instance, "stopped") })
	}},
	{what: "its volume vanished", status: "cancelled", ends: time.Hour, disk: "vanished", bare: true, row: ended + ", ebs_volume_id = 'vol-0dead0dead0dead00'"},
	{what: "its disk taken over", status: "cancelled", ends: time.Hour, disk: "wanted", bare: true, row: ended},
	{what: "who took that disk over", ends: 5 * time.Hour, disk: "wanted"},
	{what: "its deadline is odd", ends: 5 * time.Hour, row: "expires_at = 'infinity'"},
	{what: "its row says nothing", ends: 5 * time.Hour, bare: true,
		row: "user_id = null, pod_name = null, namespace = null, created_at = null, launched_at = null, status_history = null, warnings_sent = null"},
}

func nodeOf(master string) string {
	return "is_multinode = true, master_reservation_id = (select reservation_id from reservations where name = '" + master + "')"
}

// extendedLater has the user extend once the warning must have come.
func extendedLater(w *world, r *reservation) {
	w.in(450*time.Second, "people", func() {
		w.people.write(w, r, statement{"update reservations set expires_at = expires_at + interval '5 hours' where reservation_id = $1", []any{r.id}})
	})
}

// make has the platform make one.
func (k kind) make(w *world) {
	id := w.uuid().String()
	r := &reservation{id: id, user: "ada", disk: k.disk, podName: "gpu-dev-" + id[:8], domain: k.domain, gpu: cmp.Or(k.gpu, "a100"), healthy: true}
	status, created := cmp.Or(k.status, "active"), w.now().Add(-cmp.Or(k.since, 3*time.Hour))
	r.entered = created
	w.people.all = append(w.people.all, r)
	if k.disk != "" { // without older snapshots
		key := disk.Key{User: r.user, Name: r.disk}
		w.people.disks[key] = &savedDisk{key: key}
	}
	all := append([]statement{r.row(status, created)}, w.people.take(w, r)...)
	if !k.bare {
		w.people.makePod(w, r, created)
	}
	if v := w.outside.EC2.Volume(r.volume); v != nil {
		v.Stuck, v.Left = false, false
	}
	all = append(all, statement{"update reservations set name = $2 where reservation_id = $1", []any{id, k.what}})
	if k.ends != 0 {
		all = append(all, statement{"update reservations set launched_at = $2, expires_at = $3, ebs_volume_id = nullif($4, '') where reservation_id = $1",
			[]any{id, created.Add(time.Minute), w.now().Add(k.ends), r.volume}})
	}
	if k.row != "" {
		all = append(all, statement{"update reservations set " + k.row + " where reservation_id = $1", []any{id}})
	}
	if k.domain != "" {
		all = append(all, r.route(w)...)
		r.makeRoute(w.outside.Network)
	}
	w.people.write(w, r, all...)
	if k.then != nil {
		k.then(w, r)
	}
}

// idleDisks are those that no reservation uses.
var idleDisks = []struct {
	name, row string
	snapshots int // from 8 days ago on, one a day
	tags      map[string]string
}{
	{name: "too many snapshots", snapshots: 6},
	{name: "deleted long ago", snapshots: 2, row: ", is_deleted = true, delete_date = '2020-01-01', marked_deleted_at = '2019-12-01'"},
	{name: "to be deleted later", snapshots: 1, row: ", is_deleted = true, delete_date = '2030-01-01', marked_deleted_at = '2026-02-01'"},
	{name: "restored", snapshots: 1, tags: map[string]string{disk.TagDeleteDate: "2026-02-01", disk.TagMarkedDeletedAt: "1769904000"}},
	{name: "locked for nothing", row: ", in_use = true"},
}

func makeIdleDisks(w *world) {
	for _, d := range idleDisks {
		at := w.now().Add(-8 * 24 * time.Hour)
		w.data.platform(statement{"insert into disks (disk_name, user_id, size_gb, created_at, last_used, last_updated) values ($1, 'ada', 100, $2, $2, $2)", []any{d.name, at}},
			statement{"update disks set snapshot_count = $2" + d.row + " where disk_name = $1", []any{d.name, d.snapshots}})
		for i := range d.snapshots {
			tags := disk.Key{User: "ada", Name: d.name}.Tags()
			tags[disk.TagType] = "shutdown"
			maps.Copy(tags, d.tags)
			then := at.Add(-time.Duration(i) * 24 * time.Hour)
			w.outside.EC2.MakeSnapshot(tags, then, then)
		}
	}
}
