package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Next is something that is going to happen to a reservation.
type Next struct {
	What string `json:"what"`
	// At is the earliest moment; nil: at the next tick, or never where nothing is going to happen.
	At  *time.Time `json:"at,omitempty"`
	Now bool       `json:"now,omitempty"` // it is under way, or waits for nothing but to be sent
	Why string     `json:"why"`
}

const nothing = "nothing"

// next says what comes, the first thing first, and never nothing at all.
func next(l postgres.Life, rules config.Rules, e Explanation) []Next {
	all := goingOn(l)
	switch {
	case l.Row != nil && l.Row.Status == reservation.Active:
		all = append(all, active(l, rules, e.Warnings)...)
	case l.Row != nil && l.Row.Status.Live():
		all = append(all, waiting(l)...)
	case l.Row != nil && !l.Row.Status.Ended():
		all = append(all, Next{What: nothing, Why: fmt.Sprintf("status %q is none that the platform knows: it is left alone", l.Row.Status)})
	default:
		all = append(all, afterTheEnd(l, e.Ended)...)
	}
	slices.SortStableFunc(all, func(a, b Next) int { return a.order(l.Now).Compare(b.order(l.Now)) })
	return all
}

// order puts what waits for the next tick between what is due and what is not.
func (n Next) order(now time.Time) time.Time {
	switch {
	case n.Now:
		return now.Add(-time.Nanosecond)
	case n.At == nil:
		return now
	}
	return *n.At
}

func active(l postgres.Life, rules config.Rules, warnings []Warning) []Next {
	if l.Anomaly != reservation.NoAnomaly {
		return []Next{{What: nothing, Why: l.Anomaly.Sentence() + "; somebody has to set it right"}}
	}
	held := ""
	if l.Pause != nil {
		held = "; but while paused nothing new is decided"
	}
	var all []Next
	for _, w := range warnings { // that of the next tick, else the earliest that is to come
		if w.State != WarningComing && w.State != WarningNext {
			continue
		}
		n := Next{What: fmt.Sprintf("%d-minute warning", w.LevelMinutes), Why: "its time ends at " + clock(l.Deadline, l.Now) + held}
		if w.State == WarningComing {
			n.At = known(w.Due)
		}
		all = append(all, n)
		break
	}
	expires := l.Deadline.Add(rules.Grace())
	n := Next{What: "expires", Why: fmt.Sprintf("its time ends at %s, and the first tick %s later ends it", clock(l.Deadline, l.Now), span(rules.Grace()))}
	if expires.After(l.Now) {
		n.At = known(expires)
	} else {
		n.Why = fmt.Sprintf("its time ended %s, more than %s ago", when(l.Deadline, l.Now), span(rules.Grace()))
	}
	n.Why += held
	all = append(all, n)
	if m := l.Missing; m != nil {
		n := Next{What: "expires for want of its server", Why: fmt.Sprintf("its pod has been missing since %s; it ends where a tick still does not find it%s",
			when(m.FirstSeen, l.Now), held)}
		if confirmed := m.FirstSeen.Add(rules.MissingConfirm); confirmed.After(l.Now) {
			n.At = known(confirmed)
		}
		all = append(all, n)
	}
	return all
}

// waiting is of a reservation that has not got its server yet.
func waiting(l postgres.Life) []Next {
	ending, at, anomaly := reservation.StuckFrom(*l.Row, l.Now)
	if anomaly != reservation.NoAnomaly {
		return []Next{{What: nothing, Why: anomaly.Sentence()}}
	}
	n := Next{What: "fails", Why: fmt.Sprintf("it has been %s since %s, and %s is the limit", l.Row.Status, when(ending.Since, l.Now), span(at.Sub(ending.Since)))}
	if ending.Status == reservation.Cancelled {
		n.What = "is cancelled"
	}
	if at.After(l.Now) {
		n.At = known(at)
		n.What += " unless it gets its server"
	}
	if l.Pause != nil {
		n.Why += "; but while paused nothing new is decided"
	}
	return []Next{n}
}

// outcomes say what the outcome of a cleanup means.
var outcomes = map[string]string{
	postgres.OutcomeReleased:      "its disk is kept as a snapshot, and free",
	postgres.OutcomeNothingToKeep: "there was no volume",
	postgres.OutcomeSuperseded:    "its disk, volume or name are in a newer reservation's hands, which was left alone",
	postgres.OutcomeLost:          "but its volume had vanished without a snapshot of ours: somebody has to look at it",
}

func afterTheEnd(l postgres.Life, end *End) []Next {
	c := l.Cleanup
	due := slices.ContainsFunc(l.FollowUps, func(f postgres.FollowUpRecord) bool {
		return !f.Done && (f.Kind == postgres.Cleanup || f.Kind == postgres.SnapshotSync)
	})
	switch {
	case c != nil && c.EndedAgain && l.Leftover:
		return []Next{{What: "cleanup", Why: "it has ended again since it was cleaned up: the next tick asks for a new one"}}
	case c != nil && !c.SettledAt.IsZero() && !c.EndedAgain:
		why := "it is cleaned up: " + cmp.Or(outcomes[c.Outcome], words(c.Outcome))
		if found := l.Steps[postgres.StepDisk].Detail; c.Outcome == postgres.OutcomeNothingToKeep && found != "" {
			why += " (" + clean(found) + ")"
		}
		return []Next{{What: nothing, Why: why}}
	case due:
		return nil
	case c != nil:
		return []Next{{What: "cleanup goes on", Why: "it is unfinished and nobody is asked to go on: the next tick asks"}}
	case end == nil:
		return []Next{{What: nothing, Why: "its row is gone and no cleanup of it was ever begun"}}
	}
	window := postgres.EndedWindow
	if l.Row.Status == reservation.Failed {
		window = postgres.FailedWindow
	}
	switch {
	case !l.Leftover:
		return []Next{{What: nothing, Why: fmt.Sprintf("it ended over %s ago and holds no disk: whoever ended it has cleaned up", span(window))}}
	case l.Pause != nil:
		return []Next{{What: "cleanup", Why: "it has ended and was never cleaned up; but while paused nothing new is decided"}}
	}
	return []Next{{What: "cleanup", Why: "it has ended and was never cleaned up"}}
}

// goingOn lists the follow-ups that are not done.
func goingOn(l postgres.Life) []Next {
	var all []Next
	for _, f := range l.FollowUps {
		if f.Done {
			continue
		}
		n := Next{What: doing(f), At: known(f.DueAt)}
		switch {
		case !f.HeldUntil.IsZero():
			n.At, n.Now, n.Why = nil, true, fmt.Sprintf("under way: somebody holds the lease, which ends %s unless renewed", relative(f.HeldUntil, l.Now))
		case f.Attempts >= followup.StuckAfter:
			n.Why = fmt.Sprintf("stuck: it failed %d times in a row and is tried hourly: %s", f.Attempts, clean(f.LastError))
		case f.Attempts > 0:
			n.Why = fmt.Sprintf("it failed %s: %s", times(f.Attempts), clean(f.LastError))
		case f.DueAt.After(l.Now):
			n.Why = cmp.Or(waitsFor(l, f.Kind), "it waits for the world")
		case f.Dispatch == 0:
			n.Why = "it was just asked for"
		default:
			n.Why = fmt.Sprintf("it is due since %s and was asked for %s", when(f.DueAt, l.Now), times(f.Dispatch))
		}
		if n.Now = n.Now || !f.DueAt.After(l.Now); n.Now {
			n.At = nil
		}
		all = append(all, n)
	}
	return all
}

func times(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

func doing(f postgres.FollowUpRecord) string {
	switch f.Kind {
	case postgres.Warning:
		if _, level, ok := warningKey(f); ok {
			return fmt.Sprintf("%d-minute warning is written", level)
		}
		return "warning is written"
	case postgres.Notice:
		return "out-of-memory notice is written"
	case postgres.Cleanup:
		return "cleanup goes on"
	case postgres.SnapshotSync:
		return "snapshot is looked at"
	case postgres.SnapshotPurge:
		return "snapshot is purged"
	case postgres.AvailabilityUpdate:
		return "availability is computed anew"
	}
	return string(f.Kind)
}

// waitsFor is what the open steps of the cleanup say they wait for.
func waitsFor(l postgres.Life, kind postgres.FollowUpKind) string {
	if kind == postgres.SnapshotSync {
		return "it takes EC2 a while"
	}
	var open []string
	for _, name := range postgres.Steps() {
		if s, begun := l.Steps[name]; begun && !s.Finished() && s.Detail != "" {
			open = append(open, words(string(name))+": "+clean(s.Detail))
		}
	}
	return strings.Join(open, "; ")
}

// words reads a stored name: "load_balancer" is "load balancer".
func words(name string) string { return strings.ReplaceAll(name, "_", " ") }
