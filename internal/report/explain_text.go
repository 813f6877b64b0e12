package report

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Text implements Texter.
func (e Explanation) Text(s Screen) string {
	var out strings.Builder
	out.WriteString(s.paint(strong, "Reservation "+clean(e.ReservationID)) + "\n\n")
	out.WriteString(e.head(s))

	table := grid{columns: []string{"when", "what", "why"}}
	for _, n := range e.Next {
		table.add(s.paint(n.mood(), n.Moment(e.At)), clean(n.What), clean(n.Why))
	}
	section(&out, s, "Next", table.text(s))
	section(&out, s, "Warnings", e.warnings(s))
	section(&out, s, "Cleanup", e.cleanup(s))
	section(&out, s, "Snapshots", e.snapshots(s))
	section(&out, s, "Disk", e.disks(s))
	return out.String()
}

// section writes a title and what is below it, or nothing where that is nothing.
func section(out *strings.Builder, s Screen, title, body string) {
	if body != "" {
		fmt.Fprintf(out, "\n%s\n%s", s.paint(strong, title), body)
	}
}

func (e Explanation) head(s Screen) string {
	var f facts
	f.add("status", s.paint(statusMood(e.Status), clean(e.Status)))
	f.add("user", clean(e.UserID))
	f.add("name", clean(e.Name))
	f.add("server", clean(sentence(e.GPU, e.Pod)))
	if e.Set != nil {
		of := ""
		if e.Set.Nodes > 0 {
			of = fmt.Sprintf(" of %d", e.Set.Nodes)
		}
		master := "the master itself"
		if e.Set.MasterID != "" {
			master = "master " + clean(e.Set.MasterID)
		}
		f.add("set", fmt.Sprintf("node %d%s, %s", e.Set.NodeIndex, of, master))
	}
	switch {
	case e.Launched != nil:
		f.add("launched", when(*e.Launched, e.At))
	case e.Created != nil:
		f.add("created", when(*e.Created, e.At))
	}
	f.add("deadline", e.deadline(s))
	if e.Ended != nil {
		f.add("ended", e.ended(s))
	}
	if e.Missing != nil {
		f.add("server missing", s.paint(attention, fmt.Sprintf("since %s, last looked for %s", when(e.Missing.Since, e.At), relative(e.Missing.Last, e.At))))
	}
	if o := e.OutOfMemory; o != nil {
		last := ""
		if !o.Last.IsZero() {
			last = "last " + when(o.Last, e.At)
		}
		container := ""
		if o.Container != "" {
			container = "container " + clean(o.Container)
		}
		f.add("out of memory", s.paint(attention, sentence(times(o.Count), container, last)))
	}
	if e.Paused != nil {
		f.add("paused", s.paint(attention, pausedWords(*e.Paused, e.At)))
	}
	f.add("trace", e.TraceID)
	return f.text(s)
}

func statusMood(status string) mood {
	switch reservation.Status(status) {
	case reservation.Active:
		return good
	case reservation.Failed:
		return bad
	}
	return plain
}

func (e Explanation) deadline(s Screen) string {
	d := e.Deadline
	switch {
	case d.Anomaly != "":
		return s.paint(bad, "unknown: "+d.Anomaly)
	case d.At == nil && d.Own == nil:
		return "none"
	case d.At == nil:
		return when(*d.Own, e.At)
	}
	words := when(*d.At, e.At)
	if d.Own != nil {
		words += fmt.Sprintf(", by its set; its own is %s", clock(*d.Own, e.At))
	}
	switch {
	case d.Expires == nil:
		return words
	case d.Expires.After(e.At):
		words += "; expires " + when(*d.Expires, e.At)
	default:
		words += "; its grace ended " + when(*d.Expires, e.At)
	}
	if e.At.After(*d.At) {
		return s.paint(attention, words)
	}
	return words
}

func (e Explanation) ended(s Screen) string {
	var at, by string
	if !e.Ended.At.IsZero() {
		at = when(e.Ended.At, e.At)
	}
	if e.Ended.By != "" {
		by = "by " + e.Ended.By
	}
	words := sentence(at, by)
	if e.Ended.Reason != "" {
		words += ": " + clean(e.Ended.Reason)
	}
	return s.paint(statusMood(e.Status), words)
}

// Moment says when it is going to happen, as seen from now.
func (n Next) Moment(now time.Time) string {
	switch {
	case n.What == nothing:
		return "–"
	case n.Now:
		return "now"
	case n.At == nil:
		return "next tick"
	}
	return when(*n.At, now)
}

func (n Next) mood() mood {
	switch {
	case n.What == nothing:
		return faint
	case n.Now || n.At == nil:
		return attention
	}
	return plain
}

func (e Explanation) warnings(s Screen) string {
	table := grid{columns: []string{"level", "deadline", "due", "state", ""}}
	for _, w := range e.Warnings {
		m, detail := plain, ""
		switch w.State {
		case WarningSent:
			m = good
			if w.SentAt != nil {
				detail = "written " + when(*w.SentAt, e.At)
			}
		case WarningPassedOver:
			m, detail = faint, "a more urgent one became due first"
		case WarningVoid:
			m, detail = faint, "its deadline moved or passed, or the reservation ended, before it was written"
		case WarningDue:
			m, detail = attention, "asked for, not written yet"
		case WarningNext:
			m = attention
		case WarningComing:
		}
		if w.Failures > 0 {
			m, detail = bad, fmt.Sprintf("failed %s: %s", times(w.Failures), clean(w.LastError))
		}
		table.add(strconv.Itoa(w.LevelMinutes)+" min", clock(w.Deadline, e.At), when(w.Due, e.At), s.paint(m, string(w.State)), detail)
	}
	return table.text(s)
}

func (e Explanation) cleanup(s Screen) string {
	c := e.Cleanup
	if c == nil {
		return ""
	}
	var f facts
	f.add("asked for", when(c.RequestedAt, e.At))
	if c.SettledAt != nil {
		m := good
		if c.Outcome == "lost" {
			m = bad
		}
		f.add("settled", s.paint(m, words(c.Outcome))+" "+when(*c.SettledAt, e.At))
	} else {
		f.add("settled", s.paint(attention, "not yet"))
	}
	f.add("volume", clean(c.Volume))
	f.add("listing", clean(c.Listing))
	for _, m := range c.Milestones {
		f.add(m.What, when(m.At, e.At))
	}

	table := grid{columns: []string{"step", "state", "begun", "took", "failures", ""}}
	for _, step := range c.Steps {
		name := words(step.Step)
		switch {
		case step.StartedAt == nil:
			table.add(s.paint(faint, name), s.paint(faint, "not begun"), "", "", "", "")
		case step.FinishedAt == nil:
			table.add(name, s.paint(attention, "open"), when(*step.StartedAt, e.At), "", failures(s, step.Failures), step.words())
		default:
			table.add(name, s.paint(good, words(step.Outcome)), when(*step.StartedAt, e.At), span(step.FinishedAt.Sub(*step.StartedAt)),
				failures(s, step.Failures), step.words())
		}
	}
	return f.text(s) + "\n" + table.text(s)
}

func (step Step) words() string {
	if step.LastError == "" {
		return clean(step.Detail)
	}
	if step.Detail == "" {
		return "last error: " + clean(step.LastError)
	}
	return clean(step.Detail) + "; last error: " + clean(step.LastError)
}

func failures(s Screen, n int) string {
	switch {
	case n == 0:
		return ""
	case n >= followup.StuckAfter:
		return s.paint(bad, strconv.Itoa(n))
	}
	return s.paint(attention, strconv.Itoa(n))
}

func (e Explanation) snapshots(s Screen) string {
	table := grid{columns: []string{"snapshot", "attempt", "state", "asked for", "took", ""}}
	for _, one := range e.Snapshots {
		id, took, m := clean(one.SnapshotID), "", attention
		if id == "" {
			id = "not answered yet"
		}
		if one.SettledAt != nil {
			took = span(one.SettledAt.Sub(one.AskedAt))
		}
		switch one.State {
		case "completed":
			m = good
		case "error", "abandoned":
			m = bad
		}
		var crash, size, volume string
		if one.CrashConsistent {
			crash = "crash-consistent"
		}
		if one.DiskSize != "" {
			size = clean(one.DiskSize) + " used"
		}
		switch {
		case one.VolumeDeletedAt != nil:
			volume = clean(one.VolumeID) + " deleted " + when(*one.VolumeDeletedAt, e.At)
		case one.VolumeAsideAt != nil:
			volume = clean(one.VolumeID) + " set aside " + when(*one.VolumeAsideAt, e.At)
		case one.VolumeID != "":
			volume = "of " + clean(one.VolumeID)
		}
		table.add(id, strconv.Itoa(one.Attempt), s.paint(m, one.State), when(one.AskedAt, e.At), took, sentence(volume, size, crash, clean(one.Detail)))
	}
	return table.text(s)
}

func (e Explanation) disks(s Screen) string {
	var f facts
	for _, d := range e.Disks {
		use := s.paint(good, "free")
		switch {
		case d.InUse && d.HolderID == e.ReservationID:
			use = s.paint(attention, "in use by this reservation")
		case d.InUse && d.HolderID == "":
			use = s.paint(attention, "in use, by nobody that it names")
		case d.InUse:
			use = s.paint(attention, "in use by "+clean(d.HolderID))
		}
		snapshots := number(d.Snapshots, "snapshot")
		if d.PendingSnapshots > 0 {
			snapshots += fmt.Sprintf(" and %d pending", d.PendingSnapshots)
		}
		if d.LastSnapshotAt != nil {
			snapshots += ", the newest " + when(*d.LastSnapshotAt, e.At)
		}
		var volume, backing, deleted, operation string
		if d.VolumeID != "" {
			volume = "volume " + clean(d.VolumeID)
		}
		if d.BackingUp {
			backing = "being backed up"
		}
		if d.Deleted {
			deleted = s.paint(attention, "marked deleted")
			if d.DeleteDate != nil {
				deleted += ", snapshots go on " + d.DeleteDate.Format(time.DateOnly)
			}
		}
		if d.Operation != "" {
			operation = "operation " + clean(d.Operation)
		}
		f.add(clean(d.UserID+"/"+d.Name), sentence(use, volume, snapshots, clean(d.Size), backing, deleted, operation))
	}
	return f.text(s)
}
