// Package fault classifies errors once, at the adapter that first sees them, so that everything above
// can ask one question: what may be concluded from this failure?
package fault

import (
	"errors"
	"fmt"
)

// Kind says what a caller may conclude from an error.
type Kind int

const (
	// Transient failures may pass: time-outs, throttling, 5xx, an unreachable API. Nothing is known about the
	// world. An error that nobody classified is transient: unknown is not gone.
	Transient Kind = iota
	// Permanent failures will not pass by themselves: malformed input, forbidden, an impossible request.
	Permanent
	// Gone means that the service which owns the thing answered that it does not exist.
	Gone
	// Conflict means that the thing is there but not as believed: in use, changed, held by somebody else.
	Conflict
)

// String returns the kind as the word used in logs, metrics and stored errors.
func (k Kind) String() string {
	switch k {
	case Permanent:
		return "permanent"
	case Gone:
		return "gone"
	case Conflict:
		return "conflict"
	default:
		return "transient"
	}
}

type classified struct {
	kind Kind
	err  error
}

func (c *classified) Error() string { return c.err.Error() }
func (c *classified) Unwrap() error { return c.err }

// Errorf is fmt.Errorf with a classification. It is meant for adapters, which say what was being done and to whom.
func Errorf(kind Kind, format string, args ...any) error {
	return &classified{kind: kind, err: fmt.Errorf(format, args...)}
}

// KindOf returns the outermost classification of err, Transient where there is none.
func KindOf(err error) Kind {
	if c, ok := errors.AsType[*classified](err); ok {
		return c.kind
	}
	return Transient
}

// Is reports whether err is not nil and of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
