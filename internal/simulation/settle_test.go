package simulation

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

const (
	// ticksToSettle is how many ticks an ended reservation's cleanup may take once nothing goes wrong any more.
	ticksToSettle = 3
	// ticksAtMost bounds a quiet world: 40 ticks are over three hours.
	ticksAtMost = 40
)

// settle has people come to an end, and goes on until everything is settled.
func (w *world) settle() {
	for _, r := range w.people.all {
		if status(w, r.id) != "active" || !r.healthy {
			continue
		}
		if w.oneIn(2) {
			w.people.cancel(w, r)
			continue
		}
		// A tick comes well before: here it waits for all deliveries before it, which really go side by side.
		ends := w.now().Add(w.between(8*time.Minute, 11*time.Minute))
		w.say(r.user, "has %s end at %s", r.id, ends.Format(time.TimeOnly))
		w.data.platform(statement{"update reservations set expires_at = $2 where reservation_id = $1", []any{r.id, ends}})
		if w.people.podOf(w, r) && r.pod.Runs() && r.pod.Deleting.IsZero() && !launching(w, r.master) {
			w.checks.toWarn = append(w.checks.toWarn, written{owner: r.id, at: w.now()})
		}
	}
	for range ticksAtMost {
		busy := w.checks.busy()
		for w.next(w.now().Add(tickEvery)) && !w.nextIsTick() {
		}
		if w.checks.broken() || w.checks.settled(busy || w.checks.busy()) {
			break
		}
	}
	if !w.checks.broken() {
		w.checks.atTheEnd()
	}
}

// launching reports whether the master of a set is still on its way: while it is, the set's deadline is unknown, and
// nobody can be warned of it.
func launching(w *world, master string) bool {
	switch status(w, master) {
	case "pending", "queued", "preparing":
		return true
	}
	return false
}

// nextIsTick reports whether all that belongs to the last tick is done.
func (w *world) nextIsTick() bool { return len(w.agenda) == 0 || w.agenda[0].what == "tick" }

// busy reports whether EC2 still detaches, deletes or copies something.
func (c *checks) busy() bool {
	for _, v := range c.w.outside.EC2.Volumes() {
		if v.State == disk.VolumeDeleting || len(v.Attachments) > 0 && v.Attachments[0].State != disk.Attached {
			return true
		}
	}
	for _, s := range c.w.outside.EC2.Snapshots() {
		if s.State == disk.SnapshotPending || s.Listed.After(c.w.now()) {
			return true
		}
	}
	return false
}

type open struct {
	ID      string
	Status  string
	Settled bool
	Outcome string
	Due     int
	Stuck   int
	Errors  string
}

// settled looks how far the cleanups are, and reports whether nothing is left to do.
func (c *checks) settled(busy bool) bool {
	all := read[open](c.w.data, `
		select r.reservation_id, coalesce(r.status, ''), c.settled_at is not null, coalesce(c.outcome, ''),
		       (select count(*)::int from expiry.follow_ups f where f.reservation_id = r.reservation_id and f.state = 'due' and f.due_at < $1),
		       (select coalesce(max(attempts), 0) from expiry.follow_ups f where f.reservation_id = r.reservation_id and f.state = 'due'),
		       (select coalesce(string_agg(kind || ': ' || last_error, '; '), '') from expiry.follow_ups f where f.reservation_id = r.reservation_id and f.state = 'due')
		       || coalesce((select ' ' || string_agg(concat_ws(' ', step, outcome, detail, last_error), '; ') from expiry.cleanup_steps s where s.reservation_id = r.reservation_id and finished_at is null), '')
		from reservations r left join expiry.cleanups c using (reservation_id) order by 1`, c.w.now().Add(24*time.Hour))
	whole := true
	for _, o := range all {
		r := c.w.people.byID(o.ID)
		if r == nil || !r.healthy {
			continue
		}
		rw := row{Status: o.Status}
		if rw.live() {
			whole = false
			continue
		}
		if o.Settled && !c.podLeft(r) {
			c.checked[cleanedUp]++
			continue
		}
		whole = false
		c.w.people.support(c.w, r, o.Errors)
		if !busy && !c.nameTaken(r) {
			r.ticks++
		}
		stuck := o.Stuck >= 9 // it goes on hourly
		c.require(cleanedUp, r.ticks <= ticksToSettle || stuck && r.ticks <= 16, "%s is %s and not cleaned up after %d quiet ticks: %s", o.ID, o.Status, r.ticks, o.Errors)
	}
	return whole && column[int](c.w.data, `
		select (select count(*) from expiry.facts where published_at is null)::int
		     + (select count(*) from expiry.snapshots where state in ('intended', 'pending'))::int
		     + (select count(*) from disks where pending_snapshot_count > 0)::int
		     + (select count(*) from expiry.follow_ups where kind = 'snapshot.purge' and state = 'due' and due_at <= $1)::int`, c.w.now())[0] == 0
}

// support does what the service asks somebody to do: it puts right what rows and tags say of a reservation's volume.
func (p *people) support(w *world, r *reservation, problem string) {
	asked := strings.Contains(problem, "cannot tell") || strings.Contains(problem, "is another's") || strings.Contains(problem, "put right")
	if r.helped || !asked {
		return
	}
	volume := r.volume
	for _, o := range p.all { // of one that never ran: what its disk was on before
		if r.volume == "" && o.user == r.user && o.disk == r.disk && o.volume != "" {
			volume = o.volume
		}
	}
	if !p.write(w, r, statement{"update reservations set ebs_volume_id = nullif($2, '') where reservation_id = $1", []any{r.id, volume}},
		statement{"update disks set ebs_volume_id = nullif($2, '') where reservation_id = $1 and ebs_volume_id is not null", []any{r.id, volume}},
		statement{"update disks set ebs_volume_id = null where ebs_volume_id = $3 and (user_id, disk_name) <> ($1, $2)", []any{r.user, r.disk, volume}},
		statement{"update reservations set ebs_volume_id = null where ebs_volume_id = $3 and (user_id, disk_name) <> ($1, $2)", []any{r.user, r.disk, volume}}) {
		return
	}
	if volume == "" { // it never had one
		p.write(w, r, statement{"update disks set in_use = false, reservation_id = null where reservation_id = $1", []any{r.id}})
	}
	if v := w.outside.EC2.Volume(volume); v != nil {
		v.Tags = disk.Key{User: r.user, Name: r.disk}.Tags()
	}
	w.say("support", "says that %s was on %q", r.id, volume)
	r.helped, r.ticks = true, 0
}

// nameTaken reports whether a live reservation has the name of an ended one's pod: while it does, that pod is left alone.
func (c *checks) nameTaken(r *reservation) bool {
	return column[bool](c.w.data, `select exists (select from reservations where reservation_id <> $1 and pod_name = $2
		and status in ('pending', 'queued', 'preparing', 'active'))`, r.id, r.podName)[0]
}

// nameShared reports whether another reservation ever had the name of this one's pod. While it lives the service is left to
// it, and nobody knows of the service any more when it has ended.
func (c *checks) nameShared(r *reservation) bool {
	return slices.ContainsFunc(c.w.people.all, func(o *reservation) bool { return o != r && o.podName == r.podName })
}

// podLeft reports whether an ended reservation's pod is there although its name is free: the next tick finds it.
func (c *checks) podLeft(r *reservation) bool { return c.w.people.podOf(c.w, r) && !c.nameTaken(r) }

// domainShared reports whether another reservation ever had the domain of this one. While it lives the record is left
// to it, and nobody knows of the record any more when it has ended without taking it over.
func (c *checks) domainShared(id string) bool {
	r := c.w.people.byID(id)
	for _, o := range c.w.people.all {
		if r != nil && o != r && strings.EqualFold(o.domain, r.domain) {
			return true
		}
	}
	return false
}

// atTheEnd judges a world in which everything has settled.
func (c *checks) atTheEnd() {
	c.w.say("world", "---- settled")
	for _, p := range c.w.outside.Cluster.Pods() {
		st := status(c.w, p.Owner)
		if r := c.w.people.byID(p.Owner); r != nil && r.healthy && st != "" {
			c.require(cleanedUp, (&row{Status: st}).live(), "pod %s of %s is still there, and that is %s", p.Name, p.Owner, st)
		}
	}
	for _, s := range c.w.outside.Cluster.Services() {
		st := status(c.w, s.Owner)
		if r := c.w.people.byID(s.Owner); r != nil && r.healthy && st != "" && !c.nameShared(r) {
			c.require(cleanedUp, (&row{Status: st}).live(), "service %s of %s is still there, and that is %s", s.Name, s.Owner, st)
		}
	}
	for arn, g := range c.w.outside.Network.Groups {
		st := status(c.w, g.Owner)
		c.require(cleanedUp, st == "" || (&row{Status: st}).live(), "target group %s of %s is still there", arn, g.Owner)
	}
	for fqdn, owner := range c.w.outside.Network.Records {
		if c.domainShared(owner) {
			continue
		}
		c.require(cleanedUp, status(c.w, owner) == "" || (&row{Status: status(c.w, owner)}).live(), "record %s of %s is still there", fqdn, owner)
	}
	for arn, owner := range c.w.outside.Network.Rules {
		c.require(cleanedUp, status(c.w, owner) == "" || (&row{Status: status(c.w, owner)}).live(), "rule %s of %s is still there", arn, owner)
	}
	c.disksAtTheEnd()
	c.volumesAtTheEnd()
	c.factsAtTheEnd()
	c.warningsAtTheEnd()
}

type savedRow struct {
	User, Name, Holder string
	InUse              bool
	Count, Pending     int
	Idle               time.Duration
}

func (c *checks) disksAtTheEnd() {
	rows := read[savedRow](c.w.data, `
		select user_id, disk_name, coalesce(reservation_id, ''), coalesce(in_use, false), coalesce(snapshot_count, 0), coalesce(pending_snapshot_count, 0), coalesce($1 - greatest(last_updated, last_used), interval '0') from disks`, c.w.now())
	for _, d := range rows {
		key := disk.Key{User: d.User, Name: d.Name}
		if d.InUse && (d.Holder != "" || d.Idle > 65*time.Minute && !c.locks(key)) { // one without a holder is left for an hour
			st := status(c.w, d.Holder)
			c.require(diskSettled, (&row{Status: st}).live(), "disk %s of %s stays locked for %q, which is %q", d.Name, d.User, d.Holder, st)
		}
		c.require(countedOnce, d.Pending == 0, "disk %s of %s ends with %d pending snapshots", d.Name, d.User, d.Pending)
		c.checked[diskSettled]++
		counted := 0
		for _, s := range c.w.outside.EC2.Snapshots() {
			if s.Key() == key && s.State == disk.SnapshotCompleted {
				counted++
			}
		}
		for _, id := range c.deletedUnheard(d) {
			c.w.say("books", "%s is gone, and counts until its disk's date", id)
			counted++
		}
		for _, s := range c.w.people.tidied { // of which nobody has heard
			if s.Key() == key && column[bool](c.w.data, "select exists (select from expiry.snapshots where snapshot_id = $1 and state = 'completed')", s.ID)[0] {
				counted++
			}
		}
		c.require(countedOnce, d.Count == counted, "disk %s of %s counts %d snapshots, there are %d completed ones", d.Name, d.User, d.Count, counted)
	}
}

// deletedUnheard are the snapshots of a deleted disk whose deletion was not answered for before the disk was deleted: they
// are not to be purged any more, until its date.
func (c *checks) deletedUnheard(d savedRow) (gone []string) {
	for _, id := range column[string](c.w.data, `
		select s.snapshot_id from expiry.snapshots s
		join disks d on d.user_id = s.user_id and d.disk_name = s.disk_name and d.is_deleted
		join expiry.follow_ups f on f.kind = 'snapshot.purge' and f.key = s.snapshot_id and f.outcome = 'kept'
		where s.user_id = $1 and s.disk_name = $2 and s.state = 'completed' order by 1`, d.User, d.Name) {
		if !slices.ContainsFunc(c.w.outside.EC2.Snapshots(), func(s *model.Snapshot) bool { return s.ID == id }) &&
			!slices.ContainsFunc(c.w.people.tidied, func(s tidied) bool { return s.ID == id }) {
			gone = append(gone, id)
		}
	}
	return gone
}

// locks reports whether a volume keeps a disk locked that nobody has: one set aside does not, which waits for the disk,
// unless the disk's row names it or something may write to it.
func (c *checks) locks(key disk.Key) bool {
	aside := column[string](c.w.data, `
		select volume_id from expiry.snapshots where volume_id is not null and coalesce(volume_aside_at, volume_kept_at, volume_deleted_at) is not null
		except select ebs_volume_id from disks where user_id = $1 and disk_name = $2`, key.User, key.Name)
	return slices.ContainsFunc(c.volumesOf(key), func(v *model.Volume) bool {
		idle, _ := disk.WriterGone(v.Volume)
		return !idle || !slices.Contains(aside, v.ID)
	})
}

// volumesAtTheEnd looks whether what the books call deleted is.
func (c *checks) volumesAtTheEnd() {
	for _, id := range column[string](c.w.data, "select distinct volume_id from expiry.snapshots where volume_deleted_at is not null order by 1") {
		v := c.w.outside.EC2.Volume(id)
		c.require(cleanedUp, v == nil || v.State == disk.VolumeDeleting, "volume %s is recorded as deleted, and is there", id)
	}
}

func (c *checks) factsAtTheEnd() {
	for subject, of := range c.facts {
		for n := int64(1); n <= int64(len(of)); n++ {
			c.require(factsGapless, of[n].id != "", "fact %d of %s was never announced, later ones were", n, subject)
		}
	}
	became, announced := map[truth]int{}, map[truth]int{}
	for subject, of := range c.facts {
		for _, f := range of {
			announced[truth{f.kind, subject}]++
		}
	}
	for _, t := range c.truths {
		became[t]++
	}
	for t, n := range became {
		c.require(factsGapless, announced[t] >= n, "%s of %s became true %d times, and was announced %d times", t.kind, t.subject, n, announced[t])
	}
}

func (c *checks) warningsAtTheEnd() {
	for _, due := range c.toWarn {
		reached := slices.ContainsFunc(c.warnings, func(w written) bool { return w.owner == due.owner && w.at.After(due.at) })
		c.require(warnedInTime, reached, "%s ended without a warning, though nothing went wrong any more", due.owner)
	}
	type sent struct{ ID, Key string }
	for _, s := range read[sent](c.w.data, "select reservation_id, key from expiry.follow_ups where kind = 'warning' and outcome = 'sent' order by 2") {
		var deadline, level int64
		_, err := fmt.Sscanf(strings.TrimPrefix(s.Key, s.ID), "/%d/%d", &deadline, &level)
		file, when := fmt.Sprintf("WARN_EXPIRES_IN_%dMIN.txt", level), time.Unix(deadline, 0).UTC().Format(time.DateTime)+" UTC"
		reached := err == nil && slices.ContainsFunc(c.warnings, func(w written) bool {
			return (w.owner == s.ID || w.astray && c.w.people.byID(w.owner).podName == c.w.people.byID(s.ID).podName) && w.file == file && strings.Contains(w.content, when+", ")
		})
		c.require(warnedInTime, reached, "the %d-minute warning of %s's end at %s is recorded and never reached the pod", level, s.ID, when)
	}
	for subject, of := range c.facts {
		once := map[string]int{}
		for _, f := range of {
			if f.kind == "dev.gpudev.reservation.warned.v1" {
				var d struct {
					LevelMinutes int
					ExpiresAt    time.Time
				}
				_ = json.Unmarshal(f.data, &d)
				key := fmt.Sprintf("%d minutes before %s", d.LevelMinutes, d.ExpiresAt)
				once[key]++
				c.require(warnedInTime, once[key] == 1, "the warning of %s %s is recorded twice", subject, key)
			}
		}
	}
}
