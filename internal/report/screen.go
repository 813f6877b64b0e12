// Package report is what people read: what became of a sweep, why a reservation is where it is, how the service
// stands. It turns values into views, each of which is shown as JSON or as text for a screen of a given width.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/text"
)

// Screen is where text is shown.
type Screen struct {
	Width int  // in columns; 0: unlimited
	Color bool // whether escape sequences for colours may be used
}

// Texter is a view that can be shown as text.
type Texter interface {
	// Text returns lines for the screen, each ended.
	Text(s Screen) string
}

// JSON writes a view as indented JSON.
func JSON(w io.Writer, view any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(view); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// mood is what a piece of text means to its reader.
type mood int

const (
	plain mood = iota
	good
	attention
	bad
	faint
	strong
)

var colors = map[mood]text.Color{
	good: text.FgGreen, attention: text.FgYellow, bad: text.FgRed, faint: text.Faint, strong: text.Bold,
}

// paint colours what has been cleaned before, word by word: where lines are wrapped, each word ends its own colour.
func (s Screen) paint(m mood, words string) string {
	if !s.Color || m == plain {
		return words
	}
	each := strings.Split(words, " ")
	for i, word := range each {
		if word != "" {
			each[i] = text.Escape(word, colors[m].EscapeSeq())
		}
	}
	return strings.Join(each, " ")
}

// clean makes one printable line of what comes from rows, clusters and clouds, so that nothing in it moves the cursor.
func clean(words string) string {
	words = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, words)
	return strings.Join(strings.Fields(words), " ")
}

// number writes "1 cleanup" and "2 cleanups".
func number(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// sentence joins what is not empty.
func sentence(parts ...string) string {
	var kept []string
	for _, part := range parts {
		if part != "" {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ", ")
}
