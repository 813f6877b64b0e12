package report

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// grid is a table whose last column takes what width is left. Columns for which there is none go below their row.
type grid struct {
	columns []string
	rows    [][]string // painted cells may hold escape sequences
}

const (
	gap       = "  " // between two columns
	narrowest = 24   // the least width at which the last column is wrapped and stays in its row
)

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

// text returns nothing where there are no rows.
func (g *grid) text(s Screen) string {
	if len(g.rows) == 0 {
		return ""
	}
	kept, limit := g.fit(s.Width)
	var out strings.Builder
	for i, line := range g.render(s, g.columns[:kept], limit) {
		out.WriteString(line)
		if i == 0 || kept == len(g.columns) {
			continue
		}
		if below := g.below(g.rows[i-1], kept); below != "" {
			for line := range strings.SplitSeq(text.WrapSoft(below, max(s.Width-2*len(gap), narrowest)), "\n") {
				out.WriteString(gap + gap + strings.TrimRight(line, " ") + "\n")
			}
		}
	}
	return out.String()
}

// fit returns how many columns there is room for, and to what width the last of them is to be wrapped, 0 if it is not.
func (g *grid) fit(width int) (kept, limit int) {
	last := len(g.columns) - 1
	if width == 0 {
		return last + 1, 0
	}
	room := width
	for kept = range last {
		if room < g.widest(kept) {
			return max(kept, 1), 0
		}
		room -= g.widest(kept) + len(gap)
	}
	switch {
	case room >= g.widest(last):
		return last + 1, 0
	case room >= narrowest:
		return last + 1, room
	}
	return last, 0
}

// below is what goes below a row; only the last column explains itself without its name.
func (g *grid) below(row []string, kept int) string {
	var words []string
	for i := kept; i < len(row); i++ {
		if row[i] != "" && i < len(row)-1 {
			words = append(words, g.columns[i]+" "+row[i])
		} else {
			words = append(words, row[i])
		}
	}
	return sentence(words...)
}

// render returns the lines of the table with these columns, the last of them wrapped to limit if that is not 0.
func (g *grid) render(s Screen, columns []string, limit int) []string {
	t := table.NewWriter()
	style := table.Style{Name: "plain", Format: table.FormatOptions{Header: text.FormatDefault}}
	style.Box.PaddingRight = gap
	style.Box.UnfinishedRow = "…"
	if s.Width > 0 {
		style.Size.WidthMax = s.Width + len(gap) // the last column's padding is trimmed
	}
	t.SetStyle(style)
	if limit > 0 {
		t.SetColumnConfigs([]table.ColumnConfig{{Number: len(columns), WidthMax: limit, WidthMaxEnforcer: text.WrapSoft}})
	}
	header := make(table.Row, len(columns))
	for i, c := range columns {
		header[i] = s.paint(faint, strings.ToUpper(c))
	}
	t.AppendHeader(header)
	for _, cells := range g.rows {
		row := make(table.Row, len(columns))
		for i := range columns {
			row[i] = cells[i]
		}
		t.AppendRow(row)
	}
	var lines []string
	for line := range strings.SplitSeq(t.Render(), "\n") {
		lines = append(lines, strings.TrimRight(line, " ")+"\n")
	}
	return lines
}

func (g *grid) widest(column int) int {
	widest := text.StringWidthWithoutEscSequences(g.columns[column])
	for _, row := range g.rows {
		widest = max(widest, text.StringWidthWithoutEscSequences(row[column]))
	}
	return widest
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
