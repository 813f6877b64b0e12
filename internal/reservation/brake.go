package reservation

import (
	"fmt"
	"time"
)

// MaxClockSkew is how far the database's clock and this machine's may be apart before deadlines are doubted.
const MaxClockSkew = time.Minute

// BrakeMemory is how long an expiry by a missing pod counts with those that come after it: a sick API server that loses a
// few pods at a time would otherwise end everything, a tick after the other.
const BrakeMemory = time.Hour

// BrakeInput is what a sweep is about to do. All counts are of reservations, before anything has ended.
type BrakeInput struct {
	Active        int           // all active reservations
	Overdue       int           // about to expire, or expired by this sweep, by their deadline
	Dead          int           // about to fail by a dead pod
	Missing       int           // without a pod, be that confirmed yet or not: a sweep can confirm only so many
	MissingBefore int           // expired by a missing pod within BrakeMemory, and so active no more
	Percent       int           // BRAKE_PERCENT
	Min           int           // BRAKE_MIN
	ClockSkew     time.Duration // the database's clock minus this machine's
}

// BrakeState is the brake's position, one word for the result, the metric and the log.
type BrakeState string

const (
	// BrakeReleased: everything may go on.
	BrakeReleased BrakeState = "released"
	// BrakeMissing: no reservation ends for a missing pod.
	BrakeMissing BrakeState = "missing_pods_stopped"
	// BrakeAll: nor does any end by its deadline.
	BrakeAll BrakeState = "all_stopped"
)

// BrakeDecision says what a sweep may still do.
type BrakeDecision struct {
	State  BrakeState
	Reason string // one sentence, empty where the limit is not exceeded
}

// Brake decides whether a sweep would end too much at once: more than Percent of all active reservations and more
// than Min. Then missing-pod endings stop, for a sick API server looks just like that; those of the last hour count with
// them. Deadline expiries are what users
// were told, so they stop only where, besides, the two clocks disagree by over a minute. Dead pods count but are never
// stopped: the kubelet has said so of each of them.
//
// Deadlines are decided before any pod is looked at: ask once with Missing and Dead at 0, and again with what the
// listing brought. Where there is nothing to be stopped the brake stays released, though the reason says how much ends.
func Brake(in BrakeInput) BrakeDecision {
	before := in.MissingBefore
	if in.Missing == 0 {
		before = 0 // it speaks against others that are missing, and against nothing else
	}
	total, active := in.Overdue+in.Dead+in.Missing+before, in.Active+before
	released := BrakeDecision{State: BrakeReleased}
	if total <= in.Min || total*100 <= active*in.Percent {
		return released
	}
	missing := fmt.Sprintf("%d missing", in.Missing)
	if before > 0 {
		missing += fmt.Sprintf(" and %d ended so in the last hour", before)
	}
	over := fmt.Sprintf("would end %d of %d active reservations at once (%d by deadline, %d dead, %s), more than %d%% and more than %d",
		total, active, in.Overdue, in.Dead, missing, in.Percent, in.Min)
	switch {
	case in.Overdue > 0 && in.ClockSkew.Abs() > MaxClockSkew:
		return BrakeDecision{State: BrakeAll, Reason: fmt.Sprintf(
			"%s, and the database clock differs from this machine's by %s: nothing ends by deadline or for a missing pod",
			over, in.ClockSkew.Abs().Round(time.Second))}
	case in.Missing > 0:
		return BrakeDecision{State: BrakeMissing, Reason: over + ": nothing ends for a missing pod"}
	}
	released.Reason = over + ": none of them doubtful, so they end"
	return released
}
