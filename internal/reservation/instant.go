package reservation

import (
	"fmt"
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

// Scan implements sql.Scanner. pgx hands over NULL as nil, the infinities as words and every other date, the oldest
// and the latest that PostgreSQL knows included, as a time: one odd row never makes a whole result unreadable.
func (i *Instant) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*i = Instant{}
		return nil
	case time.Time:
		*i = At(v)
		return nil
	case string:
		switch v {
		case "infinity":
			*i = Infinity()
			return nil
		case "-infinity":
			*i = PastInfinity()
			return nil
		}
	}
	return fmt.Errorf("scan a timestamptz: unexpected %T %.40v", src, src)
}
