package simulation

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// people are the platform and its users: they reserve, extend, cancel, delete and start again, and write the rows
// without asking anybody.
type people struct {
	all     []*reservation
	disks   map[disk.Key]*savedDisk
	awayTil time.Time // until when another cluster answers
	otherTo time.Time // until when another AWS account answers
	paused  outage    // while which the service rests
	tidied  []tidied
}

// tidied is a snapshot of a cleanup's that somebody has deleted.
type tidied struct {
	*model.Snapshot
	at time.Time
}

var (
	userNames = []string{"ada", "bob", "jürgen"}
	diskNames = []string{"work", "data", "ünïcode disk"}
)

// reservation is one as the platform made it.
type reservation struct {
	id, user, disk, podName, domain, gpu string
	master                               string // of its set; empty where it is no node of one
	healthy                              bool   // its row is as it should be
	node, instance                       string
	pod                                  *model.Pod
	volume                               string
	entered                              time.Time // its present state, as far as the platform set it
	died                                 time.Time
	ticks                                int  // that it has gone unsettled since the last fault
	helped                               bool // somebody has put right what is said of its volume
}

// savedDisk is what the platform knows of a disk.
type savedDisk struct {
	key     disk.Key
	counted int // snapshots that somebody has counted
}

func (p *people) byID(id string) *reservation {
	for _, r := range p.all {
		if r.id == id {
			return r
		}
	}
	return nil
}

// elsewhere reports whether the cluster's address leads to another cluster, for a process as long as it lives. At first use
// nobody can tell.
func (p *people) elsewhere(ctx context.Context, w *world) bool {
	proc := processOf(ctx)
	return !p.awayTil.IsZero() && proc.began.Before(p.awayTil) && proc.knew(w, "cluster")
}

// otherAccount reports whether a process' credentials are those of another AWS account. At first use nobody can tell.
func (p *people) otherAccount(ctx context.Context, w *world) bool {
	proc := processOf(ctx)
	return !p.otherTo.IsZero() && proc.began.Before(p.otherTo) && proc.knew(w, "aws_account")
}

// knew reports whether a table had a row when the process asked first: it does not change sides on its way.
func (p *process) knew(w *world, table string) bool {
	if _, asked := p.known[table]; !asked {
		p.known[table] = column[bool](w.data, "select exists (select from expiry."+table+")")[0]
	}
	return p.known[table]
}

// settleIn makes what is there when a world begins, and the plans of its people.
func (p *people) settleIn(w *world) {
	p.disks = map[disk.Key]*savedDisk{}
	for range 1 + w.rand.IntN(3) {
		r := p.reserve(w, pick(w, userNames...), "")
		switch w.rand.IntN(8) {
		case 0:
			p.waiting(w, r, "preparing", w.between(30*time.Minute, 80*time.Minute))
		case 1:
			p.waiting(w, r, pick(w, "queued", "pending"), w.between(46*time.Hour, 50*time.Hour))
		default:
			p.launched(w, r, w.between(-10*time.Minute, 40*time.Minute), 3*time.Hour)
		}
	}
	if w.oneIn(4) && len(p.all) > 1 { // a set of two nodes
		p.all[1].master = p.all[0].id
		p.write(w, p.all[1], statement{"update reservations set is_multinode = true, master_reservation_id = $2 where reservation_id = $1", []any{p.all[1].id, p.all[0].id}})
		w.say("platform", "%s is a node of %s's set", p.all[1].id, p.all[0].id)
	}
	if w.oneIn(3) {
		p.broken(w)
	}
	for range w.rand.IntN(7) {
		w.in(w.between(0, 18*time.Minute), "people", func() { p.act(w) })
	}
	if w.oneIn(10) {
		p.awayTil = w.now().Add(w.between(3*time.Minute, 18*time.Minute))
	}
	if w.oneIn(10) {
		p.otherTo = w.now().Add(w.between(3*time.Minute, 18*time.Minute))
	}
	if w.oneIn(4) {
		w.faults.deny()
	}
}

// reserve thinks of a new reservation. like is an id whose pod's name it gets; empty: none.
func (p *people) reserve(w *world, user, like string) *reservation {
	id := w.uuid().String()
	if like != "" {
		id = like[:8] + id[8:]
	}
	r := &reservation{id: id, user: user, podName: "gpu-dev-" + id[:8], gpu: pick(w, "a100", "t4"), healthy: true}
	if name := pick(w, diskNames...); !w.oneIn(3) && !slices.ContainsFunc(p.all, func(o *reservation) bool { return o.user == user && o.disk == name }) {
		r.disk = name
	}
	if name := pick(w, "grumpy-bear", "happy-cat", "Sly_Fox"); w.oneIn(2) && !slices.ContainsFunc(p.all, func(o *reservation) bool { return o.domain == name }) {
		r.domain = name
	}
	p.all = append(p.all, r)
	return r
}

// row is a new row in reservations.
func (r *reservation) row(status string, created time.Time) statement {
	return statement{`insert into reservations (reservation_id, user_id, status, gpu_type, created_at, updated_at, pod_name, disk_name, domain_name, namespace)
		values ($1, $2, $3, $4, $5, $5, nullif($6, ''), nullif($7, ''), nullif($8, ''), 'default')`,
		[]any{r.id, r.user, status, r.gpu, created, r.podName, r.disk, r.domain}}
}

// take marks a disk in use, as the platform does: by user and name, without looking at who holds it.
func (p *people) take(w *world, r *reservation) []statement {
	if r.disk == "" {
		return nil
	}
	since := r.entered
	if since.IsZero() {
		since = w.now()
	}
	key := disk.Key{User: r.user, Name: r.disk}
	if p.disks[key] == nil {
		saved := &savedDisk{key: key}
		p.disks[key] = saved
		for range w.rand.IntN(6) {
			age := w.between(24*time.Hour, 12*24*time.Hour)
			tags := key.Tags()
			tags[disk.TagType] = "shutdown"
			at := w.now().Add(-age)
			w.outside.EC2.MakeSnapshot(tags, at, at)
			saved.counted++
		}
	}
	return []statement{{`insert into disks (disk_name, user_id, size_gb, created_at, last_used, last_updated, in_use, reservation_id, snapshot_count)
		values ($1, $2, 100, $3, $3, $3, true, $4, $5)
		on conflict (user_id, disk_name) do update
		set in_use = true, reservation_id = excluded.reservation_id, last_used = excluded.last_used, last_updated = excluded.last_updated,
		    is_deleted = false, delete_date = null`,
		[]any{r.disk, r.user, since, r.id, p.disks[key].counted}}}
}

// waiting makes a reservation that has been on its way for a while.
func (p *people) waiting(w *world, r *reservation, status string, since time.Duration) {
	r.entered = w.now().Add(-since)
	p.write(w, r, append([]statement{r.row(status, r.entered)}, p.take(w, r)...)...)
	w.say(r.user, "%s is %s since %s", r.id, status, since)
	if status == "preparing" && w.oneIn(2) {
		p.makePod(w, r, r.entered)
	}
}

func (p *people) write(w *world, r *reservation, statements ...statement) bool {
	if !w.data.platform(statements...) {
		w.say(r.user, "waits for a lock, and gives up")
		return false
	}
	return true
}

// launched makes a reservation that runs and ends at a time from now.
func (p *people) launched(w *world, r *reservation, ends, age time.Duration) bool {
	created := w.now().Add(-age)
	r.entered = created
	if !p.write(w, r, append([]statement{r.row("preparing", created)}, p.take(w, r)...)...) {
		p.all = slices.DeleteFunc(p.all, func(o *reservation) bool { return o == r })
		return false
	}
	w.say(r.user, "reserves %s with disk %q and domain %q on %s", r.id, r.disk, r.domain, r.gpu)
	if age > 0 {
		r.entered = w.now()
	}
	p.launch(w, r, created, ends)
	return true
}

// launch makes the server, as soon as pod's name and volume are free for it.
func (p *people) launch(w *world, r *reservation, created time.Time, ends time.Duration) {
	if status(w, r.id) != "preparing" {
		return
	}
	again := func() {
		if w.now().Sub(r.entered) > 3*time.Minute {
			w.say("platform", "cannot launch %s: pod's name or volume are taken", r.id)
			p.write(w, r, statement{"update reservations set status = 'failed', failed_at = $2, reservation_ended = $2 where reservation_id = $1 and status = 'preparing'",
				[]any{r.id, w.now()}})
			return
		}
		w.in(20*time.Second, "launch", func() { p.launch(w, r, created, ends) })
	}
	v := w.outside.EC2.Volume(r.volume)
	if w.outside.Cluster.Pod("gpu-dev", r.podName) != nil || r.volume != "" && (v == nil || v.State != disk.VolumeAvailable) {
		if v == nil {
			r.volume = "" // it is gone: the platform takes the newest snapshot
		}
		again()
		return
	}
	p.makePod(w, r, created)
	known := r.volume
	if w.oneIn(3) {
		known = ""
	}
	statements := []statement{{`update reservations set status = 'active', launched_at = $2, expires_at = $3, ebs_volume_id = nullif($4, ''), fqdn = nullif($5, '')
		where reservation_id = $1 and status = 'preparing'`,
		[]any{r.id, created.Add(time.Minute), w.now().Add(ends), known, ""}}}
	if r.volume != "" && w.oneIn(2) {
		statements = append(statements, statement{"update disks set ebs_volume_id = $2 where reservation_id = $1", []any{r.id, r.volume}})
	}
	if r.domain != "" {
		statements = append(statements, r.route(w)...)
	}
	if !p.write(w, r, statements...) {
		again()
		return
	}
	if r.domain != "" {
		r.makeRoute(w.outside.Network)
	}
	r.entered = w.now()
	w.say(r.user, "%s runs, until %s", r.id, w.now().Add(ends).Format("15:04:05"))
}

// makePod makes the pod with all that stands around it.
func (p *people) makePod(w *world, r *reservation, created time.Time) {
	out := w.outside
	r.instance = out.EC2.MakeInstance(r.gpu == "t4")
	r.node = "node-" + r.id[:13]
	out.Cluster.MakeNode(r.node, r.instance)
	mp := model.Pod{Owner: r.id, StopsIn: w.between(0, 45*time.Second)}
	mp.Namespace, mp.Name, mp.UserID, mp.Node = "gpu-dev", r.podName, r.user, r.node
	mp.Labels = map[string]string{"app": r.podName}
	if r.disk != "" {
		if r.volume == "" {
			r.volume = p.restore(w, r).ID
		}
		mp.Volume = r.volume
		if w.oneIn(2) {
			mp.Claims, mp.HomeClaim = []string{"claim-" + r.id}, "claim-"+r.id
			out.Cluster.MakeVolume("gpu-dev", "claim-"+r.id, "pv-"+r.id, r.volume, pick(w, "Delete", pod.RetainPolicy))
		} else {
			mp.VolumeIDs, mp.HomeVolumeID = []string{r.volume}, r.volume
		}
	}
	made, ok := out.Cluster.MakePod(mp)
	if !ok {
		return
	}
	made.Created = created.Truncate(time.Second)
	r.pod = made
	if r.volume != "" {
		out.EC2.Attach(out.EC2.Volume(r.volume), r.instance, made)
		out.EC2.Volume(r.volume).Attachments[0].AttachedAt = made.Created
	}
	out.Cluster.MakeService(model.Service{Owner: r.id, Service: pod.Service{Namespace: "gpu-dev", Name: pod.SSHService(r.podName), Selector: maps.Clone(mp.Labels)}})
	if s := out.Cluster.Service("gpu-dev", pod.SSHService(r.podName)); s != nil {
		s.Created = made.Created
	}
}

// tidyUp has an administrator delete a snapshot that a process has just seen completed, now and then, while its volume is still
// there: by hand, without a word to anybody, and for a while only who writes hears of it.
func (p *people) tidyUp(w *world, id string) {
	s := w.outside.EC2.Snapshot(id)
	if w.quiet || w.depth > 0 || w.faults.perCall[ec2] == 0 || w.service.keep || s == nil || s.State != disk.SnapshotCompleted || !w.oneIn(2) {
		return
	}
	if v := w.outside.EC2.Volume(s.VolumeID); v == nil || v.Deleting() {
		return
	}
	w.faults.count("ec2: snapshot deleted by hand")
	w.say("admin", "deletes snapshot %s of %s", id, s.VolumeID)
	w.faults.behind, w.faults.heard, w.faults.deaf = w.outside.EC2.Copy(), w.now(), true
	w.outside.EC2.Lose(id)
	p.tidied = append(p.tidied, tidied{s, w.now()})
}

// restore makes a volume from the disk's newest completed snapshot.
func (p *people) restore(w *world, r *reservation) *model.Volume {
	key := disk.Key{User: r.user, Name: r.disk}
	holds := time.Time{}
	for _, s := range w.outside.EC2.Snapshots() {
		if s.Key() == key && s.State == disk.SnapshotCompleted && s.Holds.After(holds) {
			holds = s.Holds
		}
	}
	return w.outside.EC2.MakeVolume(key.Tags(), r.id, holds)
}

// route is what the platform writes of what leads to a server, before it makes it: who takes its rows down waits for it.
func (r *reservation) route(w *world) []statement {
	return []statement{
		{`insert into domain_mappings (domain_name, reservation_id, created_at) values ($1, $2, $3)
			on conflict (domain_name) do update set reservation_id = excluded.reservation_id, updated_at = excluded.created_at`,
			[]any{r.domain, r.id, w.now()}},
		{`insert into alb_target_groups (reservation_id, domain_name, jupyter_target_group_arn, jupyter_rule_arn, created_at)
			values ($1, $2, $3, $4, $5) on conflict do nothing`, []any{r.id, r.domain, "arn:group/" + r.id, "arn:rule/" + r.id, w.now()}},
	}
}

func (r *reservation) makeRoute(out *model.Network) {
	rule := "arn:rule/" + r.id
	out.Records[strings.ToLower(r.domain)+"."+zone] = r.id
	out.Rules[rule] = r.id
	out.Groups["arn:group/"+r.id] = &model.TargetGroup{Owner: r.id, Rule: rule}
}
