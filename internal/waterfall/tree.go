package waterfall

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// row is one line: a span, or several of the same name below the same parent, which are attempts at one thing.
type row struct {
	label    string
	spans    []jaeger.Span // by start
	tries    []jaeger.Span // attempts at what the row's one span stands for, by start
	children []*row        // by first start
	open     bool          // the span itself is not in the trace yet; spans are what is below it
	depth    int
	last     []bool // for each level from the outermost: is it the last of its siblings
}

func (r *row) start() time.Time { return r.spans[0].Start }

func (r *row) end() time.Time {
	end := r.spans[0].End()
	for _, s := range r.spans[1:] {
		if s.End().After(end) {
			end = s.End()
		}
	}
	return end
}

// tree arranges a trace in rows, outermost first, and flattens them in the order in which they are drawn.
func tree(t jaeger.Trace, calls bool) []*row {
	spans, open := standIns(t)
	children := map[string][]jaeger.Span{}
	for _, s := range spans {
		children[s.ParentID] = append(children[s.ParentID], s)
	}
	// Before the root is written, what hangs below it is outermost.
	outermost := []string{"", telemetry.RootSpanID(reservationID(t)).String()}
	if len(children[""]) > 0 && slices.ContainsFunc(children[""], func(s jaeger.Span) bool { return s.ID == outermost[1] }) {
		outermost = outermost[:1]
	}
	rows := flatten(nil, grouping{children, calls, newest(t, string(telemetry.KeyReservationDeadline))}.below(outermost), nil)
	for _, r := range rows {
		r.open = open[r.spans[0].ID]
	}
	return rows
}

// standIns adds to a trace's spans one for each parent that has not come, because it is written only when what it
// stands for is over. It begins and ends with what is known to be below it.
func standIns(t jaeger.Trace) (spans []jaeger.Span, open map[string]bool) {
	names, parents := phases(t)
	spans, open = slices.Clone(t.Spans), map[string]bool{}
	at := map[string]int{parents[""]: -1}
	for i, s := range spans {
		at[s.ID] = i
	}
	for i := 0; i < len(spans); i++ { // grows while it is read: a stand-in's own parent may be missing too
		s := spans[i]
		j, known := at[s.ParentID]
		switch {
		case s.ParentID == "":
		case !known:
			at[s.ParentID] = len(spans)
			open[s.ParentID] = true
			spans = append(spans, jaeger.Span{
				ID: s.ParentID, ParentID: parents[s.ParentID], Name: cmp.Or(names[s.ParentID], "…"), Start: s.Start, Duration: s.Duration,
			})
		case j >= 0 && open[s.ParentID]:
			begin, end := spans[j].Start, spans[j].End()
			if s.Start.Before(begin) {
				begin = s.Start
			}
			if s.End().After(end) {
				end = s.End()
			}
			spans[j].Start, spans[j].Duration = begin, end.Sub(begin)
		}
	}
	return spans, open
}

// phases names the derived spans, and the parent of each; the parent of "" is the root.
func phases(t jaeger.Trace) (names, parents map[string]string) {
	id := reservationID(t)
	root := telemetry.RootSpanID(id).String()
	names, parents = map[string]string{}, map[string]string{"": root}
	for _, phase := range []telemetry.Phase{
		telemetry.PhaseQueued, telemetry.PhasePreparing, telemetry.PhaseActive,
		telemetry.PhaseCleanup, telemetry.PhaseSnapshot, telemetry.PhaseDiskHeld,
	} {
		span := telemetry.PhaseSpanID(id, phase).String()
		names[span], parents[span] = string(phase), root
	}
	for _, s := range t.Spans {
		if step := s.Attributes[string(telemetry.KeyCleanupStep)]; step != "" {
			phase := telemetry.StepPhase(step)
			span := telemetry.PhaseSpanID(id, phase).String()
			names[span], parents[span] = string(phase), telemetry.PhaseSpanID(id, telemetry.PhaseCleanup).String()
		}
	}
	return names, parents
}

// grouping makes rows of spans.
type grouping struct {
	children map[string][]jaeger.Span // by parent
	calls    bool
	deadline string // the newest
}

// label names what a span is an attempt at. A warning belongs to one deadline, which may have been moved since.
func (g grouping) label(s jaeger.Span) string {
	level := s.Attributes[string(telemetry.KeyWarningLevel)]
	if level == "" {
		return s.Name
	}
	label := s.Name + " " + level + " min"
	was := s.Attributes[string(telemetry.KeyReservationDeadline)]
	if at, err := time.Parse(time.RFC3339, was); err == nil && was != g.deadline {
		label += at.UTC().Format(", T was 15:04")
	}
	return label
}

// below makes rows of the spans below any of the parents.
func (g grouping) below(parents []string) []*row {
	var rows []*row
	byLabel := map[string]*row{}
	for _, parent := range parents {
		for _, s := range g.children[parent] {
			if !g.calls && s.Attributes["span.kind"] == "client" {
				continue
			}
			label := g.label(s)
			if byLabel[label] == nil {
				byLabel[label] = &row{label: label}
				rows = append(rows, byLabel[label])
			}
			byLabel[label].spans = append(byLabel[label].spans, s)
		}
	}
	for _, r := range rows {
		slices.SortStableFunc(r.spans, func(a, b jaeger.Span) int { return a.Start.Compare(b.Start) })
		var ids []string
		for _, s := range r.spans {
			if !slices.Contains(ids, s.ID) {
				ids = append(ids, s.ID)
			}
		}
		r.children = g.below(ids)
		r.takeIn()
	}
	byStart(rows)
	return rows
}

// takeIn makes one line of a cleanup step and the attempts at it, which hang below it since it may outlast a process.
func (r *row) takeIn() {
	step, is := strings.CutPrefix(r.label, string(telemetry.StepPhase("")))
	if !is {
		return
	}
	r.label = step
	if len(r.children) == 1 && r.children[0].label == step {
		r.tries, r.children = r.children[0].spans, r.children[0].children
	}
}

func byStart(rows []*row) {
	slices.SortStableFunc(rows, func(a, b *row) int {
		return cmp.Or(a.start().Compare(b.start()), b.end().Compare(a.end()), cmp.Compare(a.label, b.label))
	})
}

func flatten(flat, rows []*row, last []bool) []*row {
	for i, r := range rows {
		r.depth = len(last)
		r.last = append(slices.Clone(last), i == len(rows)-1)
		flat = append(flat, r)
		flat = flatten(flat, r.children, r.last)
	}
	return flat
}

// newest returns an attribute of the span that started last among those that have it.
func newest(t jaeger.Trace, key string) string {
	for _, s := range slices.Backward(t.Spans) {
		if value := s.Attributes[key]; value != "" && value != telemetry.Unknown {
			return value
		}
	}
	return ""
}

func reservationID(t jaeger.Trace) string { return newest(t, string(telemetry.KeyReservationID)) }
