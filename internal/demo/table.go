package main

import (
	"fmt"
	"io"
	"os"
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
	drawn    int    // lines on the terminal that the next drawing replaces
	last     []line // as last shown
	ticks    int
	said     []string // latest happenings, below the table
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

// show draws the table as it is now.
func (s *screen) show(lines []line, sweeps int) {
	if s.terminal < 0 {
		s.append(lines)
		return
	}
	width, height, err := term.GetSize(s.terminal)
	if err != nil {
		width, height = 100, 24
	}
	rendered := strings.Split(render(lines, width), "\n")
	status := fmt.Sprintf("%6.1fs  %d sweeps so far", time.Since(s.begun).Seconds(), sweeps)
	below := append([]string{}, s.said[max(0, len(s.said)-3):]...)
	room := height - len(below) - 2
	if over := len(rendered) - room; over > 0 {
		rendered = append(rendered[:room-1], fmt.Sprintf("… and %d more: the terminal is too low", over+1))
	}
	all := append(append(rendered, below...), status)
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

// append prints what has changed.
func (s *screen) append(lines []line) {
	for i, l := range lines {
		var changes []string
		for c := 1; c < len(l); c++ {
			if s.last == nil || s.last[i][c] != l[c] {
				if l[c] != "" && (s.last != nil || l[c] != "–") {
					changes = append(changes, columns[c]+" "+l[c])
				}
			}
		}
		if len(changes) > 0 {
			fmt.Fprintf(s.out, "%6.1fs  %-34s %s\n", time.Since(s.begun).Seconds(), l[0], strings.Join(changes, " · "))
		}
	}
	s.last = append([]line{}, lines...)
}

func render(lines []line, width int) string {
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
			row = append(row, paint(i, text.Trim(cell, width)))
		}
		t.AppendRow(row)
	}
	return strings.TrimRight(t.Render(), "\n")
}

var moods = map[string]text.Color{
	"expired": text.FgYellow, "cancelled": text.FgYellow, "failed": text.FgRed, "active": text.FgGreen,
	"released": text.FgGreen, "nothing to keep": text.FgGreen, "superseded": text.FgCyan, "lost": text.FgRed, "–": text.Faint,
}

func paint(column int, cell string) string {
	if color, ok := moods[cell]; ok {
		return color.Sprint(cell)
	}
	if column == len(columns)-1 {
		return text.Faint.Sprint(cell)
	}
	return cell
}
