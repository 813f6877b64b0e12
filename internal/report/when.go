package report

import (
	"fmt"
	"time"
)

// Span writes a length of time with the two units that matter.
func Span(d time.Duration) string { return span(d) }

func span(d time.Duration) string {
	d = d.Abs()
	switch {
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second && d%time.Second >= 100*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	}
	d = d.Truncate(time.Second)
	days, hours, minutes, seconds := int(d/(24*time.Hour)), int(d/time.Hour), int(d/time.Minute)%60, int(d/time.Second)%60
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", seconds)
	case d < time.Hour:
		return two(minutes, "m", seconds, "s")
	case d < 48*time.Hour:
		return two(hours, "h", minutes, "m")
	}
	return two(days, "d", hours%24, "h")
}

func two(large int, unit string, small int, smaller string) string {
	if small == 0 {
		return fmt.Sprintf("%d%s", large, unit)
	}
	return fmt.Sprintf("%d%s %02d%s", large, unit, small, smaller)
}

// clock writes a moment in UTC, with its date where that is not today's.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05 UTC")
	}
	return t.Format("2006-01-02 15:04:05 UTC")
}

// when writes a moment both ways: "in 4m (12:35:00 UTC)".
func when(t, now time.Time) string {
	return relative(t, now) + " (" + clock(t, now) + ")"
}

// since writes how long something has lasted: "for 12m (since 12:35:00 UTC)".
func since(t, now time.Time) string {
	return "for " + span(now.Sub(t)) + " (since " + clock(t, now) + ")"
}

// relative writes a moment as seen from now.
func relative(t, now time.Time) string {
	switch d := t.Sub(now); {
	case d.Abs() < time.Second:
		return "now"
	case d > 0:
		return "in " + span(d)
	default:
		return span(d) + " ago"
	}
}
