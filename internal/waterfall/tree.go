package waterfall

import (
	"cmp"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// row is one line: a span, or several of the same name below the same parent, which are attempts at one thing.
type row struct {
	label    string
	spans    []jaeger.Span // by start
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

// tree arranges a trace in rows, outermost first, and flattens them in the order in which they are drawn. Spans
// whose parent has not come, because its phase still lasts, hang below a row that stands for it.
func tree(t jaeger.Trace, calls bool) []*row {
	children := map[string][]jaeger.Span{}
	seen := map[string]bool{}
	for _, s := range t.Spans {
		seen[s.ID] = true
		children[s.ParentID] = append(children[s.ParentID], s)
	}
	top := group(children, []string{""}, calls)
	awaited := awaitedParents(t)
	var orphans []*row
	for parent, spans := range children {
		if parent == "" || seen[parent] {
			continue
		}
		below := group(children, []string{parent}, calls)
		if parent == telemetry.RootSpanID(reservationID(t)).String() {
			orphans = append(orphans, below...)
			continue
		}
		orphans = append(orphans, &row{label: cmp.Or(awaited[parent], "…"), spans: slices.Clone(spans), children: below, open: true})
	}
	if root := slices.IndexFunc(top, func(r *row) bool { return r.label == "reservation" }); root >= 0 {
		top[root].children = append(top[root].children, orphans...)
		byStart(top[root].children)
	} else {
		top = append(top, orphans...)
	}
	byStart(top)
	return flatten(nil, top, nil)
}

// group makes rows of the spans below any of the parents.
func group(children map[string][]jaeger.Span, parents []string, calls bool) []*row {
	var rows []*row
	byLabel := map[string]*row{}
	for _, parent := range parents {
		for _, s := range children[parent] {
			if !calls && s.Attributes["span.kind"] == "client" {
				continue
			}
			label := s.Name
			if level := s.Attributes[string(telemetry.KeyWarningLevel)]; level != "" {
				label += " " + level + " min"
			}
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
		r.children = group(children, ids, calls)
	}
	byStart(rows)
	return rows
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

// awaitedParents names the spans that are written only when what they stand for is over.
func awaitedParents(t jaeger.Trace) map[string]string {
	id := reservationID(t)
	names := map[string]string{}
	for _, phase := range []telemetry.Phase{
		telemetry.PhaseQueued, telemetry.PhasePreparing, telemetry.PhaseActive,
		telemetry.PhaseCleanup, telemetry.PhaseSnapshot, telemetry.PhaseDiskHeld,
	} {
		names[telemetry.PhaseSpanID(id, phase).String()] = string(phase)
	}
	return names
}

// newest returns an attribute of the span that started last among those that have it.
func newest(t jaeger.Trace, key string) string {
	for _, s := range slices.Backward(t.Spans) {
		if value := s.Attributes[key]; value != "" {
			return value
		}
	}
	return ""
}

func reservationID(t jaeger.Trace) string { return newest(t, string(telemetry.KeyReservationID)) }
