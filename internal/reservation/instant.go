package reservation

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Instant is a timestamptz as the column really holds it: NULL (the zero value), -infinity, a time, or infinity.
// Finite times are UTC and cut to microseconds, as PostgreSQL keeps them, so Instants compare with ==.
type Instant struct {
	at    time.Time
	shape shape
}

type shape int8

const (
	null shape = iota
	pastInfinity
	finite
	futureInfinity
)

// At returns the Instant of a finite time.
func At(t time.Time) Instant {
	return Instant{at: t.UTC().Truncate(time.Microsecond), shape: finite}
}

// Infinity returns infinity, PastInfinity -infinity.
func Infinity() Instant { return Instant{shape: futureInfinity} }

// PastInfinity returns -infinity.
func PastInfinity() Instant { return Instant{shape: pastInfinity} }

// IsNull reports whether the column is NULL.
func (i Instant) IsNull() bool { return i.shape == null }

// Time returns the time, and whether there is one: NULL and the infinities have none.
func (i Instant) Time() (time.Time, bool) { return i.at, i.shape == finite }

// String returns the value as PostgreSQL names it, times in RFC 3339.
func (i Instant) String() string {
	switch i.shape {
	case finite:
		return i.at.Format(time.RFC3339Nano)
	case pastInfinity:
		return "-infinity"
	case futureInfinity:
		return "infinity"
	}
	return "null"
}

// before is SQL's `<`: false as soon as either side is NULL.
func (i Instant) before(other Instant) bool {
	if i.shape == null || other.shape == null {
		return false
	}
	if i.shape == finite && other.shape == finite {
		return i.at.Before(other.at)
	}
	return i.shape < other.shape
}

// later is SQL's greatest(): NULL only where both are.
func later(a, b Instant) Instant {
	if a.shape == null || a.before(b) {
		return b
	}
	return a
}

// Scan implements sql.Scanner for a timestamptz and for its text form. A single row with a date that time.Time or a
// driver cannot hold must not make the whole result unreadable.
func (i *Instant) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*i = Instant{}
	case time.Time:
		*i = At(v)
	case string:
		return i.parse(v)
	case []byte:
		return i.parse(string(v))
	default:
		return fmt.Errorf("scan a timestamptz: unexpected %T", src)
	}
	return nil
}

// parse reads timestamptz output in DateStyle ISO, any year and era included.
func (i *Instant) parse(text string) error {
	switch text {
	case "infinity":
		*i = Infinity()
		return nil
	case "-infinity":
		*i = PastInfinity()
		return nil
	}
	rest, beforeChrist := strings.CutSuffix(text, " BC")
	yearText, rest, found := strings.Cut(rest, "-")
	year, err := strconv.Atoi(yearText)
	if !found || err != nil || year < 1 || year > 294_276 {
		return fmt.Errorf("scan a timestamptz: malformed %.40q", text)
	}
	if beforeChrist {
		year = 1 - year
	}
	// A leap year stands in while the rest is parsed: time.Parse takes four digits and refuses 29 February elsewhere.
	for _, zone := range []string{"Z07", "Z07:00", "Z07:00:00"} {
		t, err := time.Parse("2006-01-02 15:04:05.999999"+zone, "2000-"+rest)
		if err != nil {
			continue
		}
		_, offset := t.Zone()
		*i = At(time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.FixedZone("", offset)))
		return nil
	}
	return fmt.Errorf("scan a timestamptz: malformed %.40q", text)
}
