package sweep

import (
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Brake is what the brake was asked and what it said.
type Brake struct {
	State            reservation.BrakeState `json:"state"`
	Reason           string                 `json:"reason,omitempty"`
	Active           int                    `json:"active"` // before anything ended
	Overdue          int                    `json:"overdue"`
	Dead             int                    `json:"dead"`
	Missing          int                    `json:"missing"`                 // confirmed or not
	MissingBefore    int                    `json:"missingBefore,omitempty"` // expired so in the last hour
	ClockSkewSeconds float64                `json:"clockSkewSeconds"`        // the database's clock minus this machine's
}

// Engaged reports whether something was held back.
func (b *Brake) Engaged() bool { return b != nil && b.State != reservation.BrakeReleased }

// brake is asked before anything ends. The numbers of the whole sweep add up in it.
type brake struct {
	mu    sync.Mutex
	input reservation.BrakeInput
	said  *reservation.BrakeDecision
}

// deadlines tells how many reservations are overdue, and returns whether they may be expired.
func (b *brake) deadlines(overdue int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.input.Overdue = overdue
	return b.ask() != reservation.BrakeAll
}

// pods tells how many reservations have a dead pod, how many none, confirmed or not, and how many have ended for having
// none of late. It returns whether the missing ones may end once they are confirmed; the dead ones may.
func (b *brake) pods(dead, missing, before int) (missingAllowed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.input.Dead, b.input.Missing, b.input.MissingBefore = dead, missing, before
	return b.ask() == reservation.BrakeReleased
}

func (b *brake) ask() reservation.BrakeState {
	decision := reservation.Brake(b.input)
	b.said = &decision
	return decision.State
}

// heldBack is why a reservation does not end.
func (b *brake) heldBack() string { return "held back by the brake: " + b.report().Reason }

// report is nil where nobody has asked.
func (b *brake) report() *Brake {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.said == nil {
		return nil
	}
	return &Brake{
		State: b.said.State, Reason: b.said.Reason, Active: b.input.Active, Overdue: b.input.Overdue, Dead: b.input.Dead,
		Missing: b.input.Missing, MissingBefore: b.input.MissingBefore, ClockSkewSeconds: b.input.ClockSkew.Round(time.Millisecond).Seconds(),
	}
}
