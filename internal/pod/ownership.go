package pod

import (
	"fmt"
	"slices"
	"time"
)

// Verdict says whether something belongs to an ended reservation. Only Belongs allows taking it away.
type Verdict int

// The verdicts. The zero value is UnknownOwner, so that what nobody decided is left alone.
const (
	UnknownOwner Verdict = iota
	Belongs
	NotOurs
)

// String returns the verdict as the word used in logs.
func (v Verdict) String() string {
	switch v {
	case Belongs:
		return "belongs"
	case NotOurs:
		return "not ours"
	default:
		return "unknown"
	}
}

// Object is a pod, or a service that stands before one, as the cluster shows it.
type Object struct {
	Namespace string
	// PodName is a pod's own name, a service's the name of the pod before which it stands.
	PodName string
	UID     string
	// Created is the API server's time, cut to the second.
	Created time.Time
}

// Ended is an ended reservation, as far as it tells which pod was its own. Times are zero where the row has none.
type Ended struct {
	PodName string
	// Namespace is the row's column as it is; see Namespaces.
	Namespace string
	// Start is when the reservation could first have had a pod: created_at. Not launched_at, which the platform
	// writes on its own schedule, before or after the pod is made.
	Start time.Time
	End   time.Time
	// UID is what was recorded when the object was first seen and found to belong; empty before.
	UID string
	// NameIsLive is true while a reservation that has not ended has the same pod name.
	NameIsLive bool
}

// ClockTolerance is how far the API server's clock and the database's may be apart before it shows elsewhere. An
// object created that little outside of a reservation's life may be its own or not: nobody can tell.
const ClockTolerance = time.Minute

// granularity is how coarsely Kubernetes keeps creation times.
const granularity = time.Second

// No reservation started before the platform existed, or ends after it.
var (
	earliest = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// BelongsTo decides whether an object belongs to an ended reservation, and why. A name proves nothing, since eight
// hex digits collide and rows name pods again: the object must have been created between the reservation's start
// and its end, and no live reservation may have its name. Once its UID is recorded, the UID decides instead of times.
//
// The two times come from different clocks. A creation time is cut to the second, so one second before the start is
// still within. Beyond that the clocks may differ by ClockTolerance: outside of the reservation's life by less is
// unknown, by more is not ours. Missing and odd dates are unknown, never yes.
func BelongsTo(o Object, r Ended) (Verdict, string) {
	switch {
	case o.PodName == "" || r.PodName == "":
		return UnknownOwner, "it or the reservation has no pod name"
	case o.PodName != r.PodName:
		return NotOurs, fmt.Sprintf("it is of pod %s, not %s", o.PodName, r.PodName)
	case !slices.Contains(Namespaces(r.Namespace), o.Namespace):
		return NotOurs, fmt.Sprintf("it is in namespace %q, the reservation in %q", o.Namespace, r.Namespace)
	case r.NameIsLive:
		return NotOurs, fmt.Sprintf("a live reservation has pod name %s", o.PodName)
	case o.UID == "":
		return UnknownOwner, "it has no UID"
	case r.UID != "" && r.UID != o.UID:
		return NotOurs, fmt.Sprintf("its UID is %s, the reservation's had %s", o.UID, r.UID)
	case r.UID != "":
		return Belongs, "its UID is the one recorded"
	}
	return ownedByTime(o.Created, r.Start, r.End)
}

func ownedByTime(created, start, end time.Time) (Verdict, string) {
	first := start.Truncate(granularity)
	switch {
	case odd(created):
		return UnknownOwner, "when it was created is unknown or odd"
	case odd(start):
		return UnknownOwner, "when the reservation started is unknown or odd"
	case odd(end):
		return UnknownOwner, "when the reservation ended is unknown or odd"
	case end.Before(start):
		return UnknownOwner, "the reservation ended before it started"
	case created.Before(first.Add(-ClockTolerance)):
		return NotOurs, fmt.Sprintf("created %s, before the reservation started", stamp(created))
	case created.After(end.Add(ClockTolerance)):
		return NotOurs, fmt.Sprintf("created %s, after the reservation ended", stamp(created))
	case created.Before(first):
		return UnknownOwner, fmt.Sprintf("created %s, before the reservation started, within the clocks' tolerance", stamp(created))
	case created.After(end):
		return UnknownOwner, fmt.Sprintf("created %s, after the reservation ended, within the clocks' tolerance", stamp(created))
	}
	return Belongs, fmt.Sprintf("created %s, within the reservation's life", stamp(created))
}

func odd(t time.Time) bool { return t.Before(earliest) || t.After(latest) }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
