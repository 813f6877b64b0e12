package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// Swept is what a sweep from the shell did, or in a dry run would do.
type Swept struct {
	sweep.Result
	FollowUps []FollowUp `json:"followUps,omitempty"` // in the order in which they ended
	// Left says why not every follow-up that is due was carried out; they are found again.
	Left      string `json:"followUpsLeft,omitempty"`
	Announced int    `json:"factsAnnounced,omitempty"`
}

// FollowUp is what became of a follow-up.
type FollowUp struct {
	followup.Report
	Again string `json:"again,omitempty"` // in how long it is looked at again
}

// Carried makes a view of a report, with the error that kept it from being recorded, in one line.
func Carried(r followup.Report, err error) FollowUp {
	f := FollowUp{Report: r}
	if r.Next > 0 {
		f.Again = span(r.Next)
	}
	if err != nil {
		f.State, f.Error = "unknown", strings.Join(strings.Fields(err.Error()), " ")
	}
	return f
}

// Line is the follow-up in one line, for whoever watches.
func (f FollowUp) Line(s Screen) string {
	return fmt.Sprintf("%s %s: %s", f.Kind, f.about(s), f.words(s))
}

func (f FollowUp) about(s Screen) string {
	id, rest, _ := strings.Cut(f.Key, "/")
	return strings.TrimSuffix(s.id(id)+"/"+clean(rest), "/")
}

func (f FollowUp) words(s Screen) string {
	m := plain
	switch f.State {
	case followup.StateDone:
		m = good
	case followup.StateFailed, "unknown":
		m = bad
	}
	again, failure := "", ""
	if f.Again != "" {
		again = "looked at again in " + f.Again
	}
	if f.Error != "" {
		failure = s.paint(bad, clean(f.Error))
	}
	return sentence(s.paint(m, cmp.Or(words(f.Outcome), string(f.State))), again, failure)
}

// Text implements Texter.
func (r Swept) Text(s Screen) string {
	if r.Outcome == sweep.Skipped {
		return "Nothing was done: another sweep is running.\n"
	}
	var out strings.Builder
	decisions, title := r.Decided, "Decided"
	if r.DryRun {
		decisions, title = r.Planned, "A sweep would now"
	}
	table := grid{columns: []string{"reservation", "action", "reason"}}
	for _, d := range decisions {
		about := s.id(d.ReservationID)
		if d.Subject != "" {
			about = strings.TrimSpace(about + " " + clean(d.Subject))
		}
		table.add(about, words(string(d.Action)), clean(d.Reason))
	}
	fmt.Fprintf(&out, "%s\n%s", s.paint(strong, title), cmp.Or(table.text(s), "nothing\n"))

	if len(r.FollowUps) > 0 {
		table := grid{columns: []string{"follow-up", "of", "result"}}
		for _, f := range r.FollowUps {
			table.add(string(f.Kind), f.about(s), f.words(s))
		}
		section(&out, s, "Carried out", table.text(s))
	}
	out.WriteString("\n" + r.summary(s))
	return out.String()
}

func (r Swept) summary(s Screen) string {
	var f facts
	outcome, took := string(r.Outcome), ""
	if r.DryRun {
		outcome += " (dry run: nothing was changed)"
	}
	if !r.FinishedAt.IsZero() {
		took = "took " + span(r.FinishedAt.Sub(r.StartedAt))
	}
	f.add("outcome", sentence(s.paint(outcomeMood(string(r.Outcome)), outcome), took))
	if r.Paused != nil {
		f.add("paused", s.paint(attention, pausedWords(*r.Paused, r.StartedAt)))
	}
	f.add("counts", countWords(r.Counts))
	for _, failure := range r.Failures {
		f.add("failed", s.paint(bad, failure.Part+": "+clean(failure.Error)))
	}
	if r.Brake != nil && r.Brake.Reason != "" {
		m := plain
		if r.Brake.Engaged() {
			m = bad
		}
		f.add("brake", s.paint(m, clean(r.Brake.Reason)))
	}
	for _, a := range r.Anomalies {
		var ids []string
		for _, id := range a.ReservationIDs {
			ids = append(ids, s.id(id))
		}
		for _, subject := range a.Subjects {
			ids = append(ids, clean(subject))
		}
		if a.Count > len(ids) {
			ids = append(ids, "…")
		}
		f.add("left alone", s.paint(attention, fmt.Sprintf("%d: %s: %s", a.Count, a.Sentence, sentence(ids...))))
	}
	f.add("still due", s.paint(attention, clean(r.Left)))
	if r.Announced > 0 {
		f.add("announced", number(r.Announced, "fact"))
	}
	return f.text(s)
}

// countWords lists what was counted, "warnings requested 2, expired 1", without what says nothing.
func countWords(counts map[string]int) string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		if counts[what] != 0 && what != "podsListed" {
			all = append(all, fmt.Sprintf("%s %d", spaced(what), counts[what]))
		}
	}
	return sentence(all...)
}

// spaced reads a name in camel case: "warningsRequested" is "warnings requested".
func spaced(name string) string {
	var out strings.Builder
	for _, r := range clean(name) {
		if unicode.IsUpper(r) {
			out.WriteByte(' ')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}
