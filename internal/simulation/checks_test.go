package simulation

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// The invariants, by the names that docs/invariants.md explains.
const (
	neverEarly     = "never-ended-early"
	volumeProven   = "volume-deleted-only-when-proven"
	diskSettled    = "disk-released-when-settled"
	countedOnce    = "snapshot-counted-once"
	newestKept     = "newest-snapshot-kept"
	unknownNotGone = "unknown-is-not-gone"
	warnedInTime   = "warned-in-time"
	cleanedUp      = "cleaned-up-in-three-ticks"
	factsGapless   = "facts-announced-gapless"
	eventsAreHints = "events-are-hints"
	brokenAlone    = "the-broken-delay-nobody"
	newIsSafe      = "the-new-is-never-harmed"
)

var invariants = []string{neverEarly, volumeProven, diskSettled, countedOnce, newestKept, unknownNotGone, warnedInTime, cleanedUp,
	factsGapless, eventsAreHints, brokenAlone, newIsSafe}

// violation is an invariant seen broken.
type violation struct{ invariant, what string }

// checks looks whether the invariants hold.
type checks struct {
	w        *world
	violated []violation
	checked  map[string]int // how often each invariant was looked at with something at stake

	seen     int64             // of the audit
	touched  int               // effects and writes of the service's, so far
	states   map[string]string // of the service's snapshots, by intent, when something was counted last
	warnings []written
	toWarn   []written                 // whom to warn from when on
	facts    map[string]map[int64]fact // subject → sequence
	truths   []truth                   // what became true and has to be announced
}

// written is a warning that reached a pod.
type written struct {
	owner, file, content string
	at                   time.Time
	astray               bool // its pod's name is a live one's, too, in whose life the pod was made
}

type fact struct {
	id, kind string
	data     []byte
}

type truth struct{ kind, subject string }

func newChecks(w *world) *checks {
	return &checks{w: w, checked: map[string]int{}, states: map[string]string{}, facts: map[string]map[int64]fact{}}
}

func (c *checks) broken() bool { return len(c.violated) > 0 }

// require notes that an invariant was looked at, and where it does not hold.
func (c *checks) require(invariant string, holds bool, format string, args ...any) {
	c.checked[invariant]++
	if holds {
		return
	}
	v := violation{invariant, fmt.Sprintf(format, args...)}
	c.violated = append(c.violated, v)
	c.w.say("VIOLATION", "%s: %s", v.invariant, v.what)
}

// row is what the checks need of a row of either table: see audited.
type row struct {
	Status        string  `json:"status"`
	ExpiresAt     *string `json:"expires_at"`
	DetailStatus  string  `json:"current_detailed_status"`
	UserID        string  `json:"user_id"`
	DiskName      string  `json:"disk_name"`
	InUse         bool    `json:"in_use"`
	ReservationID string  `json:"reservation_id"`
	Pending       int     `json:"pending_snapshot_count"`
	Count         int     `json:"snapshot_count"`
}

func (r *row) deadline() (time.Time, bool) {
	if r.ExpiresAt == nil {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, *r.ExpiresAt)
	return t, err == nil
}

func (r *row) live() bool {
	switch r.Status {
	case "pending", "queued", "preparing", "active":
		return true
	}
	return false
}

func (r *row) ended() bool {
	switch r.Status {
	case "expired", "cancelled", "failed":
		return true
	}
	return false
}

type change struct {
	N      int64
	At     time.Time
	Who    *string
	What   string
	ID     string
	OldRow *string
	NewRow *string
}

func parseRow(text *string) *row {
	if text == nil {
		return nil
	}
	var r row
	_ = json.Unmarshal([]byte(*text), &r)
	return &r
}

// step looks at everything that was committed since the last one. Rows that one statement changed come by id: PostgreSQL
// takes them in the order of whatever plan it chose.
func (c *checks) step() {
	wrote := c.w.data.dirty
	c.w.data.dirty = writing{}
	if wrote.rows {
		c.changes()
	}
	c.w.service.poll(wrote.followUps)
}

// changes looks at what rows were changed.
func (c *checks) changes() {
	changes := read[change](c.w.data, `
		select n, at, nullif(who, ''), what, id, old_row::text, new_row::text from sim.audit where n > $1 order by at, what, id, n`, c.seen)
	counted := map[disk.Key]counts{}
	for _, ch := range changes {
		c.seen = max(c.seen, ch.N)
		before, after := parseRow(ch.OldRow), parseRow(ch.NewRow)
		service := ch.Who == nil
		if service {
			c.touched++
		}
		switch {
		case ch.What == "reservations" && service && before != nil && after != nil:
			c.ended(ch, before, after)
		case ch.What == "disks" && after != nil:
			c.diskChanged(ch, before, after, service)
			if service && before != nil {
				key := disk.Key{User: after.UserID, Name: after.DiskName}
				counted[key] = counted[key].plus(before, after)
			}
		}
	}
	for key, n := range counted {
		if n != (counts{}) {
			c.flipped(key, n)
		}
	}
}

// ended judges a change of a reservation's by the service.
func (c *checks) ended(ch change, before, after *row) {
	if before.Status == after.Status {
		return
	}
	c.w.say("rows", "%s: %s → %s: %s", ch.ID, before.Status, after.Status, after.DetailStatus)
	c.require(neverEarly, !before.ended(), "%s was %s, and is made %s", ch.ID, before.Status, after.Status)
	c.truths = append(c.truths, truth{"dev.gpudev.reservation." + after.Status + ".v1", ch.ID})
	r := c.w.people.byID(ch.ID)
	if r == nil || before.ended() {
		return
	}
	c.w.people.soonAgain(c.w, r)
	deadline, sound := before.deadline()
	if m := c.rowBefore(ch, r.master); m != nil { // a set ends by the latest of its deadlines
		if latest, known := m.deadline(); known && latest.After(deadline) {
			deadline = latest
		}
	}
	overdue := before.Status == "active" && sound && deadline.Add(grace).Before(ch.At)
	switch {
	case after.Status == "expired" && strings.Contains(after.DetailStatus, "missing"):
		c.require(unknownNotGone, overdue || c.absentFor(r, ch.At) >= confirm, "%s expires as missing, but its pod was there %s ago", ch.ID, c.absentFor(r, ch.At))
	case after.Status == "expired":
		c.require(neverEarly, overdue, "%s expires at %s, its deadline being %s", ch.ID, ch.At.Format(time.RFC3339), deadline.Format(time.RFC3339))
	case after.Status == "failed" && before.Status == "active":
		c.require(unknownNotGone, !r.died.IsZero(), "%s fails, though its pod never died", ch.ID)
	case after.Status == "failed":
		c.require(neverEarly, ch.At.Sub(r.entered) > time.Hour, "%s fails after %s of %s", ch.ID, ch.At.Sub(r.entered), before.Status)
	case after.Status == "cancelled":
		c.require(neverEarly, ch.At.Sub(r.entered) > 48*time.Hour, "%s is cancelled after %s of %s", ch.ID, ch.At.Sub(r.entered), before.Status)
	}
}

// rowBefore is a reservation's row as it was when a change was made; nil where it was not there yet.
func (c *checks) rowBefore(ch change, id string) *row {
	rows := column[*string](c.w.data, "select new_row::text from sim.audit where what = 'reservations' and id = $1 and n < $2 order by n desc limit 1", id, ch.N)
	if len(rows) == 0 {
		return nil
	}
	return parseRow(rows[0])
}

// absentFor is how long a reservation's pod has really been absent.
func (c *checks) absentFor(r *reservation, now time.Time) time.Duration {
	k := c.w.outside.Cluster
	if k.Pod("gpu-dev", r.podName) != nil {
		return 0
	}
	gone, ever := k.Gone["gpu-dev/"+r.podName]
	if !ever {
		return now.Sub(r.entered)
	}
	return now.Sub(gone)
}

// heard is what the sink of facts takes.
func (c *checks) heard(e ce.Event) {
	if c.w.sabotaged(factsLost) && c.w.oneIn(3) {
		return
	}
	var sequence int64
	_, _ = fmt.Sscanf(fmt.Sprint(e.Extensions()["sequence"]), "%d", &sequence)
	of := c.facts[e.Subject()]
	if of == nil {
		of = map[int64]fact{}
		c.facts[e.Subject()] = of
	}
	if c.w.sabotaged(numbersReused) {
		sequence = 1
	}
	if c.w.sabotaged(warnedTwice) && strings.Contains(e.Type(), "warned") {
		of[sequence+1000] = fact{e.ID(), e.Type(), e.Data()}
	}
	known, again := of[sequence]
	c.require(factsGapless, !again || known.id == e.ID(), "two facts of %s are number %d: %s and %s", e.Subject(), sequence, known.kind, e.Type())
	of[sequence] = fact{e.ID(), e.Type(), e.Data()}
}

// swept judges a sweep during which nothing went wrong.
func (c *checks) swept(r sweep.Result) {
	if r.Paused != nil {
		return
	}
	c.require(brokenAlone, r.Outcome == sweep.Completed, "nothing went wrong, and the sweep is %s: %v", r.Outcome, r.Failures)
	type late struct{ ID string }
	left := read[late](c.w.data, `
		select reservation_id from reservations
		where status = 'active' and isfinite(expires_at) and expires_at > '2000-01-01' and expires_at >= created_at and expires_at + $1 < $2
		  and coalesce(launched_at, created_at) <= expires_at and user_id is distinct from 'broken' and master_reservation_id is null`, grace, r.StartedAt)
	for _, l := range left {
		c.require(brokenAlone, false, "%s is overdue, and a whole sweep has left it", l.ID)
	}
}

// paused judges a sweep by whether somebody had paused the service before it began, whatever it takes for true.
func (c *checks) paused(r sweep.Result) {
	held := c.w.people.paused.at(r.StartedAt)
	for _, d := range r.Decided {
		ends := d.Action == sweep.Expire || d.Action == sweep.Fail || d.Action == sweep.Cancel
		c.require(neverEarly, !held || !ends, "while paused: %s %s", d.Action, d.ReservationID)
	}
}

// rehearsed judges a dry run.
func (c *checks) rehearsed(run func()) {
	c.step()
	touched, writes, nested := c.touched, c.w.data.writes, c.w.faults.counted["races: something in between"]
	run()
	writes = c.w.data.writes - writes
	c.step()
	if nested == c.w.faults.counted["races: something in between"] {
		c.require(eventsAreHints, c.touched == touched && writes == 0, "a dry run has changed something, in %d statements", writes)
	}
}

// forged judges what an event does that nobody asked for.
func (c *checks) forged(e ce.Event, deliver func(ce.Event)) {
	c.step()
	kind := strings.TrimSuffix(strings.TrimPrefix(e.Type(), "dev.gpudev.expiry."), ".requested.v1")
	asked := column[bool](c.w.data, `
		select exists (select from expiry.follow_ups where state = 'due' and kind = $1 and subject = $2)
		    or $1 = 'cleanup' and exists (select from reservations where reservation_id = $2 and status in ('expired', 'cancelled', 'failed'))`,
		kind, e.Subject())[0]
	before, nested := c.touched, c.w.faults.counted["races: something in between"]
	deliver(e)
	c.step()
	if asked || nested != c.w.faults.counted["races: something in between"] {
		return
	}
	// Sending what is due may carry on other work only through the bus, so all that changed is the event's doing.
	c.require(eventsAreHints, c.touched == before, "%s %s was not asked for, and changed something", e.Type(), e.Subject())
}
