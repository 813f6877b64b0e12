// Package waterfall draws one trace in a terminal: a line for each piece of work, attempts at the same thing on
// one line, times relative to the reservation's deadline.
package waterfall

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Options say how to draw.
type Options struct {
	Width int  // columns of the terminal; zero: 100
	Color bool // with ANSI colours
	Calls bool // with the calls to the database, Kubernetes and AWS
}

const (
	fullCell  = '█'
	cutCell   = '▒' // in a stretch that is drawn short
	errorCell = '✗' // the end of what failed
	openCell  = '▶' // it goes on
	deadline  = '┊'

	minBar = 12 // columns; with fewer a bar says nothing and is left out

	red, cyan, dim, plain = "\x1b[31m", "\x1b[36m", "\x1b[2m", "\x1b[0m"
)

// Draw writes the trace to w. Where no span names a deadline, times count from the first span.
func Draw(w io.Writer, t jaeger.Trace, o Options) error {
	p := picture{Writer: bufio.NewWriter(w), o: o, trace: t, rows: tree(t, o.Calls)}
	if len(p.rows) == 0 {
		return fmt.Errorf("trace %s has no spans to draw", t.ID)
	}
	p.zero = p.rows[0].start()
	for _, r := range p.rows {
		if r.start().Before(p.zero) {
			p.zero = r.start()
		}
	}
	if at, err := time.Parse(time.RFC3339, newest(t, string(telemetry.KeyReservationDeadline))); err == nil {
		p.zero, p.hasDeadline = at, true
	}
	p.layout()
	p.head()
	for _, r := range p.rows {
		p.line(r)
	}
	p.notes()
	return p.Flush() //nolint:wrapcheck // the writer's own error says it all
}

// picture is a drawing under way. Errors of writing are kept by the bufio.Writer for Flush.
type picture struct {
	*bufio.Writer
	o           Options
	trace       jaeger.Trace
	rows        []*row
	zero        time.Time // what times are relative to
	hasDeadline bool

	label, outcome, start, took, bar int // widths of the columns; 0: left out
	scale                            scale
}

func (p *picture) layout() {
	width := cmp.Or(p.o.Width, 100)
	for _, r := range p.rows {
		p.label = max(p.label, utf8.RuneCountInString(r.text()))
		p.outcome = max(p.outcome, utf8.RuneCountInString(r.outcome()))
		p.start = max(p.start, utf8.RuneCountInString(relative(r.start(), p.zero)))
		p.took = max(p.took, utf8.RuneCountInString(p.length(r)))
	}
	p.outcome = min(max(p.outcome, len("OUTCOME")), len("nothing_to_keep"))
	p.label = min(max(p.label, len("WORK")), max(width*2/5, 16))
	if p.bar = p.room(width); p.bar < minBar && width < 80 {
		p.outcome = 0
		p.bar = p.room(width)
	}
	if p.bar < minBar {
		p.bar = 0
		p.label = max(8, p.label+min(0, p.room(width)))
	}
	var moments []time.Time
	for _, r := range p.rows {
		for _, s := range r.spans {
			moments = append(moments, s.Start, s.End())
		}
	}
	if p.hasDeadline && p.zero.Before(slices.MaxFunc(moments, time.Time.Compare)) {
		moments = append(moments, p.zero)
	}
	p.scale = newScale(moments, p.bar)
}

// room is what the columns leave of the width; two spaces part them.
func (p *picture) room(width int) int {
	rest := width - p.label - 2 - p.start - 2 - p.took - 2
	if p.outcome > 0 {
		rest -= p.outcome + 2
	}
	return rest
}

func (p *picture) head() {
	id := cmp.Or(reservationID(p.trace), p.trace.ID)
	fmt.Fprintf(p, "reservation %s", clean(id))
	for _, key := range []string{"user.id", string(telemetry.KeyGPUType), string(telemetry.KeyReservationStatus)} {
		if value := newest(p.trace, key); value != "" {
			fmt.Fprintf(p, "  %s", clean(value))
		}
	}
	if reason := newest(p.trace, string(telemetry.KeyReservationReason)); reason != "" {
		fmt.Fprintf(p, "\n%s", clean(reason))
	}
	if p.hasDeadline {
		fmt.Fprintf(p, "\nT is its deadline, %s\n\n", p.zero.UTC().Format("2006-01-02 15:04:05 UTC"))
	} else {
		fmt.Fprintf(p, "\nT is the first that is known of it, %s\n\n", p.zero.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	p.columns("WORK", "OUTCOME", "START", "TOOK", p.axis(), "")
}

// axis marks the deadline above the bars.
func (p *picture) axis() string {
	cells := []rune(strings.Repeat(" ", p.bar))
	if column, ok := p.deadlineColumn(); ok {
		cells[column] = 'T'
	}
	return string(cells)
}

func (p *picture) deadlineColumn() (int, bool) {
	if !p.hasDeadline || p.bar == 0 || p.zero.Before(p.scale.at[0]) || p.zero.After(p.scale.at[len(p.scale.at)-1]) {
		return 0, false
	}
	return min(int(p.scale.column(p.zero)), p.bar-1), true
}

func (p *picture) columns(label, outcome, start, took, bar, color string) {
	cells := []string{fit(label, p.label)}
	if p.outcome > 0 {
		cells = append(cells, p.paint(color, fit(outcome, p.outcome)))
	}
	cells = append(cells, fit(start, p.start), strings.Repeat(" ", max(0, p.took-utf8.RuneCountInString(took)))+took)
	line := strings.Join(cells, "  ")
	if p.bar > 0 {
		line += "  " + bar
	}
	fmt.Fprintln(p, strings.TrimRight(line, " "))
}

func (p *picture) line(r *row) {
	color := ""
	if r.newest().Error() != "" {
		color = red
	}
	p.columns(r.text(), r.outcome(), relative(r.start(), p.zero), p.length(r), p.bars(r), color)
}

func (p *picture) bars(r *row) string {
	if p.bar == 0 {
		return ""
	}
	cells := []rune(strings.Repeat(" ", p.bar))
	if column, ok := p.deadlineColumn(); ok {
		cells[column] = deadline
	}
	for _, s := range r.spans {
		begin, end := p.scale.column(s.Start), p.scale.column(s.End())
		from := min(int(begin), p.bar-1)
		to := min(max(int(math.Ceil(end)), from+1), p.bar)
		for i := from; i < to; i++ {
			cells[i] = fullCell
			if p.scale.cut((max(begin, float64(i)) + min(end, float64(i+1))) / 2) {
				cells[i] = cutCell
			}
		}
		if s.Error() != "" && !r.open {
			cells[to-1] = errorCell
		}
		if r.open && !s.End().Before(r.end()) {
			cells[to-1] = openCell
		}
	}
	return p.paint(cyan, strings.TrimRight(string(cells), " "))
}

// length is how long the row's work took, from the first attempt to the end of the last.
func (p *picture) length(r *row) string {
	if r.open {
		return "goes on"
	}
	return took(r.end().Sub(r.start()))
}

func (p *picture) paint(color, text string) string {
	if !p.o.Color || color == "" || strings.TrimSpace(text) == "" {
		return text
	}
	return color + text + plain
}

// text is the row's label behind the lines of the tree.
func (r *row) text() string {
	var b strings.Builder
	for level := 1; level <= r.depth; level++ {
		switch last := r.last[level]; {
		case level == r.depth && last:
			b.WriteString("└─ ")
		case level == r.depth:
			b.WriteString("├─ ")
		case last:
			b.WriteString("   ")
		default:
			b.WriteString("│  ")
		}
	}
	b.WriteString(clean(r.label))
	if n := max(len(r.spans), len(r.tries)); n > 1 && (!r.open || r.tries != nil) {
		fmt.Fprintf(&b, " ×%d", n)
	}
	return b.String()
}

func (r *row) newest() jaeger.Span { return r.spans[len(r.spans)-1] }

// outcome is that of the newest attempt.
func (r *row) outcome() string {
	if r.open {
		return ""
	}
	s := r.newest()
	word := cmp.Or(s.Attributes[string(telemetry.KeyReservationOutcome)], s.Attributes[string(telemetry.KeyDeliveryOutcome)])
	if word == "" && s.Error() != "" {
		word = "error"
	}
	return clean(word)
}

// notes say what the drawing could not: the errors' words, and what was left out.
func (p *picture) notes() {
	type fault struct{ label, message string }
	var order []fault
	first, count := map[fault]time.Time{}, map[fault]int{}
	for _, r := range p.rows {
		for _, s := range slices.Concat(r.spans, r.tries) {
			f := fault{clean(r.label), clean(s.Error())}
			if f.message == "" || r.open && r.tries == nil {
				continue
			}
			if count[f]++; count[f] == 1 {
				first[f] = s.Start
				order = append(order, f)
			}
		}
	}
	if len(order) > 0 {
		fmt.Fprintf(p, "\nerrors\n")
	}
	for _, f := range order {
		times := ""
		if count[f] > 1 {
			times = fmt.Sprintf(" (%d times)", count[f])
		}
		line := fmt.Sprintf("%s  %s: %s%s", relative(first[f], p.zero), f.label, f.message, times)
		fmt.Fprintf(p, "  %s\n", p.paint(red, line))
	}
	var cut []string
	for i, is := range p.scale.cuts {
		if is && p.bar > 0 {
			cut = append(cut, took(p.scale.at[i+1].Sub(p.scale.at[i])))
		}
	}
	if len(cut) > 0 {
		fmt.Fprintf(p, "\n%s\n", p.paint(dim, fmt.Sprintf("%c drawn shorter than it was, since nothing happened: %s", cutCell, strings.Join(cut, ", "))))
	}
	if !slices.ContainsFunc(p.rows, func(r *row) bool { return r.label == "reservation" }) {
		fmt.Fprintf(p, "\n%s\n", p.paint(dim, "not over yet: what still lasts is drawn as far as it is known"))
	}
}
