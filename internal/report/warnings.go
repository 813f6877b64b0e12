package report

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// WarningState says how a warning stands.
type WarningState string

// How a warning may stand.
const (
	WarningSent       WarningState = "sent"
	WarningPassedOver WarningState = "passed over" // a more urgent one became due first
	WarningVoid       WarningState = "void"        // its deadline moved or passed before it was written
	WarningDue        WarningState = "due"         // asked for, not written yet
	WarningNext       WarningState = "next tick"   // its time has come, nobody has asked for it yet
	WarningComing     WarningState = "coming"
)

// Warning is the warning of one level for one deadline.
type Warning struct {
	LevelMinutes int          `json:"levelMinutes"`
	Deadline     time.Time    `json:"deadline"`
	Due          time.Time    `json:"due"`
	State        WarningState `json:"state"`
	SentAt       *time.Time   `json:"sentAt,omitempty"`
	Failures     int          `json:"failures,omitempty"`
	LastError    string       `json:"lastError,omitempty"`
}

// warnings lists the recorded ones and, of an active reservation, those that are to come.
func warnings(l postgres.Life, rules config.Rules) []Warning {
	var all []Warning
	var recorded []reservation.Level // for the present deadline
	for _, f := range l.FollowUps {
		deadline, level, ok := warningKey(f)
		if !ok {
			continue
		}
		w := Warning{LevelMinutes: int(level), Deadline: deadline, Due: deadline.Add(-level.Duration()), Failures: f.Attempts, LastError: f.LastError}
		switch {
		case !f.Done:
			w.State = WarningDue
		case f.Outcome == postgres.PassedOver:
			w.State = WarningPassedOver
		case f.Outcome == postgres.Void:
			w.State = WarningVoid
		default:
			w.State, w.SentAt = WarningSent, known(f.FinishedAt)
		}
		if deadline.Unix() == l.Deadline.Unix() && w.State != WarningVoid {
			recorded = append(recorded, level)
		}
		all = append(all, w)
	}
	if l.Row != nil && l.Row.Status == reservation.Active && l.Anomaly == reservation.NoAnomaly && l.Now.Before(l.Deadline) {
		all = append(all, unrecorded(l, rules, recorded)...)
	}
	slices.SortStableFunc(all, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.Deadline.Unix(), b.Deadline.Unix()), cmp.Compare(b.LevelMinutes, a.LevelMinutes))
	})
	return all
}

// unrecorded are the warnings for the present deadline that no tick has decided about.
func unrecorded(l postgres.Life, rules config.Rules, recorded []reservation.Level) []Warning {
	var all []Warning
	levels := reservation.Levels(rules.WarningMinutes)
	next, _, due := reservation.DueWarning(l.Deadline, l.Now, levels, recorded)
	for _, level := range levels {
		if slices.Contains(recorded, level) {
			continue
		}
		w := Warning{LevelMinutes: int(level), Deadline: l.Deadline, Due: l.Deadline.Add(-level.Duration()), State: WarningPassedOver}
		switch {
		case w.Due.After(l.Now):
			w.State = WarningComing
		case due && level == next:
			w.State = WarningNext
		}
		all = append(all, w)
	}
	return all
}

// warningKey reads <reservation>/<deadline, unix seconds>/<level, minutes>.
func warningKey(f postgres.FollowUpRecord) (deadline time.Time, level reservation.Level, ok bool) {
	rest, ours := strings.CutPrefix(f.Key, f.ReservationID+"/")
	unix, minutes, _ := strings.Cut(rest, "/")
	seconds, err1 := strconv.ParseInt(unix, 10, 64)
	n, err2 := strconv.Atoi(minutes)
	return time.Unix(seconds, 0).UTC(), reservation.Level(n), f.Kind == postgres.Warning && ours && err1 == nil && err2 == nil
}
