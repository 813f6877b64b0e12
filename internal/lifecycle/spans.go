// Package lifecycle writes into a reservation's trace what outlasts every process that works on it: the phases of its
// life, the steps of its cleanup and, last of all, the root.
package lifecycle

import (
	"cmp"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Root is the name under which the root is remembered as written. Phases have their own names.
const Root = "reservation"

// heldLong is when somebody may ask for the disk, as the alert on unfinished cleanups does.
const heldLong = 6 * time.Hour

// Name is what a record is remembered by.
func Name(r telemetry.Record) string { return cmp.Or(string(r.Phase), Root) }

// Spans returns the spans of a life that are over. Every phase below
// which work may have been filed is among them once the cleanup has settled.
func Spans(l postgres.Lifecycle) []telemetry.Record {
	s := story{life: l, about: telemetry.Reservation{
		ID: l.ID, UserID: l.UserID, Status: string(l.Status), GPUType: l.GPUType,
	}}
	s.about.Deadline, _ = l.ExpiresAt.Time()
	s.times()
	s.untilItEnded()
	s.cleanup()
	return s.spans
}

// story collects the spans of one life.
type story struct {
	life  postgres.Lifecycle
	about telemetry.Reservation
	spans []telemetry.Record

	created, preparing, active, ended time.Time // zero where it never was, or is not yet
}

// times finds out when each phase began. What the history does not tell, the columns may.
func (s *story) times() {
	l := s.life
	s.created, _ = l.CreatedAt.Time()
	s.preparing, _ = reservation.FirstEntered(l.StatusHistory, reservation.Preparing)
	s.active, _ = reservation.FirstEntered(l.StatusHistory, reservation.Active)
	if launched, ok := l.LaunchedAt.Time(); ok && s.active.IsZero() {
		s.active = launched
	}
	if l.Stage >= postgres.StageEnded {
		s.ended = l.Ended
		if s.ended.IsZero() && l.Cleanup != nil {
			s.ended = l.Cleanup.RequestedAt
		}
	}
	if s.active.IsZero() && (!l.ToldAt.IsZero() || l.Status == reservation.Expired) {
		s.active = earliest(l.ToldAt, s.ended) // it was: nothing else is warned or expires
	}
	s.created = cmp.Or(s.created, earliest(s.preparing, s.active, s.ended))
}

func (s *story) untilItEnded() {
	l := s.life
	if s.preparing.After(s.active) && !s.active.IsZero() {
		s.preparing = time.Time{} // it was prepared anew
	}
	if end := earliest(s.preparing, s.active, s.ended); l.Stage >= postgres.StagePreparing && !end.IsZero() {
		outcome := "assigned"
		if s.preparing.IsZero() && s.active.IsZero() {
			outcome = s.endedAs()
		}
		s.phase(telemetry.PhaseQueued, s.created, end, outcome)
	}
	if end := earliest(s.active, s.ended); l.Stage >= postgres.StageActive && !s.preparing.IsZero() && !end.IsZero() {
		outcome := "launched"
		if s.active.IsZero() {
			outcome = s.endedAs()
		}
		s.phase(telemetry.PhasePreparing, s.preparing, end, outcome)
	}
	if l.Stage >= postgres.StageEnded && !s.active.IsZero() {
		s.phase(telemetry.PhaseActive, s.active, s.ended, s.endedAs())
	}
	if last := len(s.spans) - 1; l.Cleanup != nil && last >= 0 { // in which it ended
		s.spans[last].Attributes = append(s.pod(), s.reason())
	}
}

// vanished is the outcome of a life whose row the platform has deleted.
const vanished = "vanished"

// endedAs is the outcome of the phase in which it ended.
func (s *story) endedAs() string {
	if s.life.Vanished {
		return vanished
	}
	return cmp.Or(string(s.life.Status), vanished)
}

func (s *story) cleanup() {
	c := s.life.Cleanup
	if s.life.Vanished {
		s.phase("", s.created, s.ended, vanished)
	}
	if c == nil {
		return
	}
	for _, step := range c.Steps {
		if !step.Finished() {
			continue
		}
		r := s.phase(telemetry.StepPhase(string(step.Step)), step.StartedAt, step.FinishedAt, step.Outcome)
		r.Reservation.Phase = telemetry.PhaseCleanup
		r.Attributes = append(s.pod(), telemetry.KeyCleanupStep.String(string(step.Step)), telemetry.KeyAttempt.Int(step.Attempts+1))
		switch step.Step {
		case postgres.StepListing:
			r.Attributes = append(r.Attributes, telemetry.Object(c.ContentURL)...)
		case postgres.StepDisk:
			r.Attributes = append(r.Attributes, s.disk()...)
		}
	}
	if c.SettledAt.IsZero() {
		return
	}
	s.phase(telemetry.PhaseCleanup, s.ended, c.SettledAt, c.Outcome).Attributes = append(s.pod(), s.disk()...)
	if !c.DiskReleased.IsZero() || c.VolumeID != "" && c.Outcome != postgres.OutcomeSuperseded { // else others hold it, or nobody did
		r := s.phase(telemetry.PhaseDiskHeld, s.ended, cmp.Or(c.DiskReleased, c.SettledAt), c.Outcome)
		r.Reservation.Phase = telemetry.PhaseCleanup
		r.Attributes = append(r.Attributes, telemetry.Volume(c.VolumeID, c.DiskName)...)
		if r.End.Sub(r.Start) > heldLong {
			r.Attributes = append(r.Attributes, telemetry.KeyDiskHeld.String("long"))
		}
	}
	s.snapshot(c)
	root := s.phase("", s.created, c.SettledAt, c.Outcome)
	root.Attributes = append(append(s.pod(), s.disk()...), s.reason())
}

// snapshot is one phase, whatever attempts it took.
func (s *story) snapshot(c *postgres.LifecycleCleanup) {
	if len(c.Snapshots) == 0 {
		return
	}
	end, last := time.Time{}, c.Snapshots[len(c.Snapshots)-1]
	for _, snapshot := range c.Snapshots {
		if snapshot.SettledAt.After(end) {
			end = snapshot.SettledAt
		}
	}
	if end.IsZero() || end.After(c.SettledAt) { // it goes on beyond the cleanup, or was purged since
		end = c.SettledAt
	}
	r := s.phase(telemetry.PhaseSnapshot, c.Snapshots[0].IntendedAt, end, string(last.State))
	r.Reservation.Phase = telemetry.PhaseCleanup
	r.Attributes = append(s.disk(), telemetry.KeyAttempt.Int(len(c.Snapshots)))
	if last.State == postgres.SnapshotError || last.State == postgres.SnapshotAbandoned {
		r.Error = cmp.Or(last.Detail, string(last.State))
	}
}

// pod is the pod that the cleanup found to be the reservation's.
func (s *story) pod() []attribute.KeyValue {
	c := s.life.Cleanup
	return telemetry.Pod(cmp.Or(c.Namespace, s.life.NamespaceName), c.PodName, c.PodUID)
}

// disk is the disk's volume, with the newest snapshot that the cleanup made of it.
func (s *story) disk() []attribute.KeyValue {
	c := s.life.Cleanup
	attrs := telemetry.Volume(c.VolumeID, c.DiskName)
	if n := len(c.Snapshots); n > 0 && c.Snapshots[n-1].SnapshotID != "" {
		attrs = append(attrs, telemetry.KeySnapshotID.String(c.Snapshots[n-1].SnapshotID))
	}
	return attrs
}

// reason is why the reservation ended.
func (s *story) reason() attribute.KeyValue {
	return telemetry.KeyReservationReason.String(s.life.Cleanup.Reason)
}

// phase adds a span below the root, or with no name the root itself.
func (s *story) phase(phase telemetry.Phase, start, end time.Time, outcome string) *telemetry.Record {
	s.spans = append(s.spans, telemetry.Record{Reservation: s.about, Phase: phase, Start: start, End: end, Outcome: outcome})
	return &s.spans[len(s.spans)-1]
}

func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
