package report

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// grid is a table whose last column takes what width is left.
type grid struct {
	columns []string
	rows    [][]string // painted cells may hold escape sequences
	indent  string
}

// narrowest is the least width of the last column; on screens narrower than that makes, lines are cut.
const narrowest = 24

// gap lies between two columns.
const gap = "  "

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

// text returns nothing where there are no rows.
func (g *grid) text(s Screen) string {
	if len(g.rows) == 0 {
		return ""
	}
	t := table.NewWriter()
	style := table.Style{Name: "plain", Format: table.FormatOptions{Header: text.FormatDefault}}
	style.Box.PaddingRight = gap
	style.Box.UnfinishedRow = "…"
	style.Options = table.Options{}
	if s.Width > 0 {
		style.Size.WidthMax = s.Width + len(gap) // the padding of the last column is cut anyway
	}
	t.SetStyle(style)
	header := make(table.Row, len(g.columns))
	for i, c := range g.columns {
		header[i] = s.paint(faint, strings.ToUpper(c))
	}
	t.AppendHeader(header)
	for _, cells := range g.rows {
		row := make(table.Row, len(cells))
		for i, c := range cells {
			row[i] = c
		}
		t.AppendRow(row)
	}
	if room := g.room(s); room > 0 {
		t.SetColumnConfigs([]table.ColumnConfig{{Number: len(g.columns), WidthMax: room, WidthMaxEnforcer: text.WrapSoft}})
	}
	var out strings.Builder
	for line := range strings.Lines(t.Render() + "\n") {
		out.WriteString(strings.TrimRight(g.indent+strings.TrimRight(line, "\n"), " ") + "\n")
	}
	return out.String()
}

// room is the width for the last column, 0 where there is no limit.
func (g *grid) room(s Screen) int {
	if s.Width == 0 {
		return 0
	}
	used := len(g.indent)
	for i := range g.columns[:len(g.columns)-1] {
		widest := text.StringWidthWithoutEscSequences(g.columns[i])
		for _, row := range g.rows {
			widest = max(widest, text.StringWidthWithoutEscSequences(row[i]))
		}
		used += widest + len(gap)
	}
	return max(s.Width-used, narrowest)
}

// facts are lines of a name and what is to be said of it, which goes on below itself where it is long.
type facts struct {
	rows [][2]string
}

func (f *facts) add(name, words string) {
	if words != "" {
		f.rows = append(f.rows, [2]string{name, words})
	}
}

func (f *facts) text(s Screen) string {
	widest := 0
	for _, row := range f.rows {
		widest = max(widest, text.StringWidthWithoutEscSequences(row[0]))
	}
	var out strings.Builder
	for _, row := range f.rows {
		words := row[1]
		if s.Width > 0 {
			words = text.WrapSoft(words, max(s.Width-widest-len(gap), narrowest))
		}
		name := row[0]
		for line := range strings.SplitSeq(words, "\n") {
			padded := name + strings.Repeat(" ", widest-text.StringWidthWithoutEscSequences(name))
			out.WriteString(strings.TrimRight(s.paint(faint, padded)+gap+line, " ") + "\n")
			name = ""
		}
	}
	return out.String()
}
