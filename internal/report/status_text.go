package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// sweptLately is how long after a sweep its age is nothing to worry about: three ticks.
const sweptLately = 15 * time.Minute

// shown is how many rows of each kind fit on one screen.
const shown = 5

// Text implements Texter.
func (o Overview) Text(s Screen) string {
	var out strings.Builder
	out.WriteString(s.paint(strong, "Reservation Expiry") + " at " + o.At.UTC().Format("2006-01-02 15:04:05 UTC") + "\n\n")
	out.WriteString(o.head(s))
	section(&out, s, "Last sweeps", o.sweeps(s))
	section(&out, s, "Overdue", o.overdue(s))
	section(&out, s, "Unfinished cleanups, the oldest first", o.cleanups(s))
	section(&out, s, "Pending snapshots, the oldest first", o.snapshots(s))
	section(&out, s, "Stuck, tried hourly", o.stuck(s))
	section(&out, s, "Dead letters", o.deadLetters(s))
	return out.String()
}

func (o Overview) head(s Screen) string {
	var f facts
	paused, ahead := s.paint(good, "no"), ""
	if o.Paused != nil {
		paused, ahead = s.paint(attention, pausedWords(*o.Paused, o.At)), "once resumed, "
	}
	f.add("paused", paused)
	f.add("last sweep", o.lastSweep(s))
	f.add("next tick", ahead+Ahead(o.NextTick))
	f.add("brake", o.brake(s))
	f.add("reservations", o.reservations())
	f.add("overdue", count(s, len(o.Overdue), bad, "none", func() string {
		return fmt.Sprintf("%d, the first %s", len(o.Overdue), since(o.Overdue[0].Deadline, o.At))
	}))
	if len(o.Unsound) > 0 {
		f.add("never ending", s.paint(bad, number(len(o.Unsound), "active reservation")+" with a deadline that makes no sense: "+o.unsound(s)))
	}
	f.add("cleanups", count(s, o.Cleanups.Unfinished, attention, "none unfinished", func() string {
		words := fmt.Sprintf("%d unfinished", o.Cleanups.Unfinished)
		if o.Cleanups.Since != nil {
			words += ", the oldest " + since(*o.Cleanups.Since, o.At)
		}
		if o.Cleanups.Stuck > 0 {
			words += s.paint(bad, fmt.Sprintf(", %d stuck", o.Cleanups.Stuck))
		}
		return words
	}))
	f.add("disks", count(s, o.DisksHeld, attention, "none held by ended reservations", func() string {
		return fmt.Sprintf("%d held by ended reservations", o.DisksHeld)
	}))
	f.add("snapshots", count(s, o.Snapshots.Pending, plain, "none pending", func() string {
		words := fmt.Sprintf("%d pending", o.Snapshots.Pending)
		if o.Snapshots.Since != nil {
			words += ", the oldest " + since(*o.Snapshots.Since, o.At)
		}
		return words
	}))
	f.add("follow-ups", o.followUps(s))
	f.add("outbox", o.outbox(s))
	f.add("dead letters", count(s, o.DeadLetters.Open, bad, "none", func() string { return strconv.Itoa(o.DeadLetters.Open) + " to be looked at" }))
	return f.text(s)
}

func count(s Screen, n int, some mood, none string, say func() string) string {
	if n == 0 {
		return s.paint(good, none)
	}
	return s.paint(some, say())
}

func (o Overview) lastSweep(s Screen) string {
	if len(o.Sweeps) == 0 {
		return s.paint(bad, "there never was one")
	}
	last := o.Sweeps[0]
	m := plain
	switch {
	case o.At.Sub(last.StartedAt) > sweptLately, last.Outcome == "failed", last.Outcome == "abandoned":
		m = bad
	case last.Outcome == "partial":
		m = attention
	}
	return s.paint(m, last.Outcome+", begun "+when(last.StartedAt, o.At))
}

func (o Overview) brake(s Screen) string {
	if b := o.NextTick.Brake; b.Engaged() {
		return s.paint(bad, "the next tick "+clean(b.Reason))
	}
	if len(o.Sweeps) > 0 && o.Sweeps[0].Braked {
		reason := ""
		if b := o.Sweeps[0].Brake; b != nil {
			reason = ": " + clean(b.Reason)
		}
		return s.paint(bad, "the last sweep held endings back"+reason)
	}
	if words := Braking(o.NextTick); words != "" {
		return s.paint(attention, "released, although the next tick "+words)
	}
	return s.paint(good, "released")
}

// reservations counts the live ones by status, and the others together.
func (o Overview) reservations() string {
	var words []string
	for _, status := range []reservation.Status{reservation.Active, reservation.Preparing, reservation.Queued, reservation.Pending} {
		if n := o.Reservations[string(status)]; n > 0 || status == reservation.Active {
			words = append(words, fmt.Sprintf("%d %s", n, status))
		}
	}
	ended, odd := 0, 0
	for status, n := range o.Reservations {
		switch status := reservation.Status(status); {
		case status.Ended():
			ended += n
		case !status.Live():
			odd += n
		}
	}
	words = append(words, fmt.Sprintf("%d ended", ended))
	if odd > 0 {
		words = append(words, fmt.Sprintf("%d of unknown status", odd))
	}
	return sentence(words...)
}

func (o Overview) unsound(s Screen) string {
	var words []string
	for _, u := range o.Unsound[:min(shown, len(o.Unsound))] {
		words = append(words, fmt.Sprintf("%s (%s)", s.id(u.ReservationID), u.Anomaly))
	}
	if len(o.Unsound) > shown {
		words = append(words, "…")
	}
	return sentence(words...)
}

func (o Overview) followUps(s Screen) string {
	f := o.FollowUps
	words := func(n int, what string, m mood) string {
		if n == 0 {
			return ""
		}
		return s.paint(m, fmt.Sprintf("%d %s", n, what))
	}
	all := sentence(words(f.UnderWay, "under way", plain), words(f.Due, "due", plain), words(f.Waiting, "waiting", plain),
		words(f.Failing, "failing", attention), words(f.Stuck, "stuck", bad))
	return cmp.Or(all, s.paint(good, "none open"))
}

func (o Overview) outbox(s Screen) string {
	if o.Outbox.Facts == 0 {
		return s.paint(good, "empty")
	}
	words := number(o.Outbox.Facts, "fact") + " not announced"
	if o.Outbox.Since != nil {
		words += ", the oldest " + since(*o.Outbox.Since, o.At)
	}
	if o.Outbox.Failing == 0 {
		return words + "; none was tried: is there a sink?"
	}
	return words + s.paint(attention, fmt.Sprintf("; %d failing: %s", o.Outbox.Failing, clean(o.Outbox.LastError)))
}

func (o Overview) sweeps(s Screen) string {
	table := grid{columns: []string{"begun", "took", "by", "outcome", "what"}}
	for _, one := range o.Sweeps[:min(shown, len(o.Sweeps))] {
		took := ""
		if one.FinishedAt != nil {
			took = span(one.FinishedAt.Sub(one.StartedAt))
		}
		table.add(when(one.StartedAt, o.At), took, triggerWord(one.Trigger), s.paint(outcomeMood(one.Outcome), one.Outcome), one.what(s))
	}
	return table.text(s)
}

func outcomeMood(outcome string) mood {
	switch outcome {
	case "completed":
		return good
	case "partial", "skipped":
		return attention
	case "failed", "abandoned":
		return bad
	}
	return plain
}

// triggerWord shortens the type of the event that asked for a sweep.
func triggerWord(trigger string) string {
	switch trigger {
	case event.Ping:
		return "tick"
	case event.SweepRequested:
		return "posted"
	}
	return clean(trigger)
}

func (one Sweep) what(s Screen) string {
	var words []string
	for _, part := range slices.Sorted(maps.Keys(one.Failures)) {
		words = append(words, s.paint(bad, part+" failed: "+clean(one.Failures[part])))
	}
	if one.Braked {
		words = append(words, s.paint(bad, "braked"))
	}
	if one.Paused {
		words = append(words, s.paint(attention, "paused"))
	}
	for _, a := range one.Anomalies {
		words = append(words, s.paint(attention, fmt.Sprintf("%d left alone (%s)", a.Count, a.Kind)))
	}
	idle := ""
	if one.Outcome == "completed" {
		idle = s.paint(faint, "nothing to do")
	}
	return cmp.Or(sentence(append(words, countWords(one.Counts))...), idle)
}

func (o Overview) overdue(s Screen) string {
	table := grid{columns: []string{"reservation", "user", "deadline"}}
	for _, one := range o.Overdue[:min(shown, len(o.Overdue))] {
		table.add(s.id(one.ReservationID), clean(one.UserID), s.paint(bad, when(one.Deadline, o.At)))
	}
	return table.text(s) + more(s, len(o.Overdue), len(table.rows))
}

func (o Overview) cleanups(s Screen) string {
	table := grid{columns: []string{"reservation", "disk", "since", "steps", "next", "waits for"}}
	for _, one := range o.Cleanups.Oldest[:min(shown, len(o.Cleanups.Oldest))] {
		next, m := "next tick", attention
		switch {
		case one.UnderWay:
			next, m = "under way", good
		case one.Next != nil && one.Next.After(o.At):
			next, m = relative(*one.Next, o.At), plain
		case one.Next != nil:
			next = "due"
		}
		table.add(s.id(one.ReservationID), clean(disk(one.UserID, one.DiskName)), when(one.Since, o.At),
			fmt.Sprintf("%d/%d", one.StepsDone, len(postgres.Steps())), s.paint(m, next), one.words(s))
	}
	return table.text(s) + more(s, o.Cleanups.Unfinished, len(table.rows))
}

func disk(user, name string) string {
	if name == "" {
		return user
	}
	return user + "/" + name
}

func (one UnfinishedCleanup) words(s Screen) string {
	trouble := ""
	switch {
	case one.Failures > 0:
		trouble = s.paint(bad, fmt.Sprintf("failed %s: %s", times(one.Failures), clean(one.LastError)))
	case one.LastError != "":
		trouble = s.paint(attention, "last error: "+clean(one.LastError))
	}
	waits := clean(one.WaitsFor)
	if one.OpenStep != "" {
		waits = strings.TrimSuffix(words(one.OpenStep)+": "+waits, ": ")
	}
	if !one.Begun {
		waits = "to be begun"
	}
	return sentence(waits, trouble)
}

func (o Overview) snapshots(s Screen) string {
	table := grid{columns: []string{"snapshot", "state", "since", "disk", "volume", "reservation"}}
	for _, one := range o.Snapshots.Oldest[:min(shown, len(o.Snapshots.Oldest))] {
		table.add(cmp.Or(clean(one.SnapshotID), "not answered yet"), one.State, when(one.Since, o.At), clean(disk(one.UserID, one.DiskName)),
			clean(one.VolumeID), s.id(one.ReservationID))
	}
	return table.text(s) + more(s, o.Snapshots.Pending, len(table.rows))
}

func (o Overview) stuck(s Screen) string {
	table := grid{columns: []string{"what", "of", "failures", "next try", "last error"}}
	for _, one := range o.FollowUps.Worst[:min(shown, len(o.FollowUps.Worst))] {
		table.add(one.Kind, cmp.Or(s.id(one.ReservationID), clean(one.Key)), s.paint(bad, strconv.Itoa(one.Failures)), when(one.Next, o.At), clean(one.LastError))
	}
	return table.text(s) + more(s, o.FollowUps.Stuck, len(table.rows))
}

func (o Overview) deadLetters(s Screen) string {
	if len(o.DeadLetters.Newest) == 0 {
		return ""
	}
	newest := o.DeadLetters.Newest[:min(3, len(o.DeadLetters.Newest))]
	return letterTable(s, newest, o.At) + more(s, o.DeadLetters.Open, len(newest)) +
		s.paint(faint, "dead-letters lists them, dead-letters replay ID sends one again") + "\n"
}

// more says that there is more than is shown.
func more(s Screen, all, shown int) string {
	if all <= shown {
		return ""
	}
	return s.paint(faint, fmt.Sprintf("… and %d more", all-shown)) + "\n"
}

// id is a reservation's id as explain takes it: where the screen is narrow, its beginning.
func (s Screen) id(id string) string {
	const uuidLength, enough = 36, 8
	if s.Width > 0 && s.Width < 140 && len(id) == uuidLength {
		id = id[:enough]
	}
	return clean(id)
}
