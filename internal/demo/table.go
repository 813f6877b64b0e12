package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// screen shows the table: on a terminal it is redrawn in place, elsewhere each change is a line.
type screen struct {
	out      io.Writer
	terminal int // file descriptor, -1: none
	begun    time.Time
	drawn    int      // lines on the terminal that the next drawing replaces
	said     []string // what happened while the table was shown, below it
	last     []line
	changed  []time.Time // of each line
}

func newScreen(out *os.File, begun time.Time) *screen {
	s := &screen{out: out, terminal: -1, begun: begun}
	if fd := int(out.Fd()); term.IsTerminal(fd) {
		s.terminal = fd
	}
	return s
}

// say prints a line of progress, in the form of tools/stack.
func (s *screen) say(component, format string, args ...any) {
	text := fmt.Sprintf("%6.1fs  %-10s %s", time.Since(s.begun).Seconds(), component, fmt.Sprintf(format, args...))
	if s.drawn > 0 {
		s.said = append(s.said, text)
		return
	}
	fmt.Fprintln(s.out, text)
}

// leave makes the table stay as it is: what comes is printed below it.
func (s *screen) leave() { s.drawn = 0 }

// show shows the table as it is now.
func (s *screen) show(lines []line, sweeps int) {
	before := s.last
	s.last = slices.Clone(lines)
	if s.changed == nil {
		s.changed = make([]time.Time, len(lines))
	}
	for i := range lines {
		if before == nil || before[i] != lines[i] {
			s.changed[i] = time.Now()
		}
	}
	if s.terminal < 0 {
		s.append(before, lines)
		return
	}
	s.redraw(lines, sweeps)
}

// around is how many lines there are besides the table's rows: its header, what happened, the status, the prompt.
const around = 7

func (s *screen) redraw(lines []line, sweeps int) {
	width, height, err := term.GetSize(s.terminal)
	if err != nil {
		width, height = 120, 60
	}
	status := fmt.Sprintf("%6.1fs  %d sweeps so far", time.Since(s.begun).Seconds(), sweeps)
	if room := max(height-around, 5); len(lines) > room {
		status += fmt.Sprintf("; of %d rows those that changed last (a terminal of %d lines shows all)", len(lines), len(lines)+around)
		lines = s.latest(lines, room)
	}
	all := strings.Split(render(lines), "\n")
	all = append(append(all, s.said[max(0, len(s.said)-3):]...), status)
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.drawn)
	}
	for _, l := range all {
		b.WriteString(text.Trim(l, width-1) + "\x1b[0m\n")
	}
	s.drawn = len(all)
	_, _ = io.WriteString(s.out, b.String())
}

// latest returns the n lines that changed last, in the order of the table.
func (s *screen) latest(lines []line, n int) []line {
	order := make([]int, len(lines))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Or(s.changed[b].Compare(s.changed[a]), a-b) })
	shown := order[:n]
	slices.Sort(shown)
	latest := make([]line, n)
	for i, at := range shown {
		latest[i] = lines[at]
	}
	return latest
}

// progress is what changes all the time.
var progress = regexp.MustCompile(`snapshot \d+%`)

// append prints what has changed.
func (s *screen) append(before, lines []line) {
	for i, l := range lines {
		var changes []string
		for c := 1; c < len(l); c++ {
			old, now := "–", progress.ReplaceAllString(l[c], "snapshot under way")
			if before != nil {
				old = progress.ReplaceAllString(before[i][c], "snapshot under way")
			}
			if now != old && now != "" {
				changes = append(changes, columns[c]+" "+now)
			}
		}
		if len(changes) > 0 {
			fmt.Fprintf(s.out, "%6.1fs  %-38s  %s\n", time.Since(s.begun).Seconds(), l[0], strings.Join(changes, " · "))
		}
	}
}

func render(lines []line) string {
	t := table.NewWriter()
	style := table.Style{Name: "plain", Format: table.FormatOptions{Header: text.FormatDefault}}
	style.Box.PaddingRight = "  "
	t.SetStyle(style)
	header := table.Row{}
	for _, c := range columns {
		header = append(header, text.Faint.Sprint(strings.ToUpper(c)))
	}
	t.AppendHeader(header)
	for _, l := range lines {
		row := table.Row{}
		for i, cell := range l {
			row = append(row, paint(i, cell))
		}
		t.AppendRow(row)
	}
	return strings.TrimRight(t.Render(), "\n")
}

var colors = map[string]text.Color{
	"expired": text.FgYellow, "cancelled": text.FgYellow, "failed": text.FgRed, "active": text.FgGreen,
	"dead letter": text.FgRed, "replayed": text.FgGreen, "released": text.FgGreen, "nothing to keep": text.FgGreen, "superseded": text.FgCyan, "lost": text.FgRed, "–": text.Faint,
}

func paint(column int, cell string) string {
	if color, ok := colors[cell]; ok {
		return color.Sprint(cell)
	}
	if column == len(columns)-1 {
		return text.Faint.Sprint(cell)
	}
	return cell
}
