package waterfall

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// took writes a duration with the two units that matter.
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	}
	d = d.Truncate(time.Second)
	days, hours, minutes, seconds := d/(24*time.Hour), d/time.Hour, d/time.Minute%60, d/time.Second%60
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", minutes, seconds)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %02dm", hours, minutes)
	}
	return fmt.Sprintf("%dd %02dh", days, hours%24)
}

// relative writes a time as its distance from T, the deadline.
func relative(t, deadline time.Time) string {
	switch d := t.Sub(deadline); {
	case d == 0:
		return "T"
	case d < 0:
		return "T-" + took(-d)
	default:
		return "T+" + took(d)
	}
}

// fit cuts or pads text to a width.
func fit(text string, width int) string {
	if n := utf8.RuneCountInString(text); n <= width {
		return text + strings.Repeat(" ", width-n)
	}
	return string([]rune(text)[:max(width-1, 0)]) + "…"
}

// clean keeps what comes from elsewhere from moving the terminal's cursor.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
