package sweep

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

type telemetryStore interface {
	Profiles(ctx context.Context, ids []string) (map[string]postgres.Profile, error)
	Backlog(ctx context.Context, stuckAfter int) (postgres.Backlog, error)
	Punctuality(ctx context.Context, sweepID string, now time.Time, grace time.Duration) (postgres.Punctuality, error)
}

// lookWithin bounds what is read for telemetry alone.
const lookWithin = 500 * time.Millisecond

// trace links the sweep to every reservation that it acted on, and leaves in the trace of each that it ended a mark
// that links back. What it asked for links back by itself when it is done.
func (s *Sweeper) trace(ctx context.Context, pt part, decisions []Decision) {
	var ended []Decision
	var ids []string
	for _, d := range decisions {
		switch {
		case d.ReservationID == "":
		case d.ends():
			ended, ids = append(ended, d), append(ids, d.ReservationID)
			s.opts.Trace.Metrics.Ended(ctx, pt.reason(d), 1)
		default:
			telemetry.LinkReservation(ctx, d.ReservationID)
		}
	}
	if len(ended) == 0 || !s.opts.Trace.Exporting() {
		return
	}
	looking, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	profiles, err := s.store.Profiles(looking, ids)
	if err != nil { // the marks then say less
		s.opts.Log.WarnContext(ctx, "cannot tell whose reservations have ended", "error", err)
	}
	for _, d := range ended {
		p := profiles[d.ReservationID]
		attrs := []attribute.KeyValue{telemetry.KeyReservationReason.String(d.Reason), attribute.String("sweep.part", pt.name)}
		attrs = append(attrs, telemetry.Pod(p.Namespace, p.PodName, p.PodUID)...)
		_, mark := s.opts.Trace.StartAction(ctx, string(d.Action), telemetry.Reservation{
			ID: d.ReservationID, UserID: p.UserID, GPUType: p.GPUType, Status: string(d.to()), Deadline: p.Deadline,
		}, attrs...)
		mark.End(string(d.to()), nil)
	}
}

// ends reports whether the decision ends a reservation.
func (d Decision) ends() bool { return d.to() != "" }

// to is the status that the decision ends a reservation with.
func (d Decision) to() reservation.Status {
	return map[Action]reservation.Status{
		Expire: reservation.Expired, Fail: reservation.Failed, Cancel: reservation.Cancelled,
	}[d.Action]
}

// reason is the word under which an ending is counted.
func (pt part) reason(d Decision) string {
	if d.Action == Expire && pt.name == "deadlines" {
		return "deadline"
	}
	return pt.name + " " + string(d.to()) // "pods expired": missing; "pods failed": dead; "stuck cancelled"
}

// measure records how the sweep went and what it leaves.
func (s *Sweeper) measure(ctx context.Context, r Result, took time.Duration) {
	if !s.opts.Trace.Pushing() {
		return
	}
	m := s.opts.Trace.Metrics
	m.SweepDone(ctx, took, string(r.Outcome))
	looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookWithin)
	defer cancel()
	backlog, err := s.store.Backlog(looking, followup.StuckAfter)
	if err != nil {
		s.opts.Log.WarnContext(ctx, "levels are not measured", "error", err)
		return
	}
	punctuality, err := s.store.Punctuality(looking, r.SweepID, r.StartedAt, s.opts.Grace)
	if err != nil {
		s.opts.Log.WarnContext(ctx, "levels are not measured", "error", err)
		return
	}
	levels := telemetry.Levels{
		Reservations: map[string]int64{}, Overdue: int64(punctuality.Overdue), CleanupsUnfinished: int64(backlog.Cleanups),
		CleanupsStuck: int64(backlog.CleanupsStuck), OldestCleanup: age(backlog.Now, backlog.OldestCleanup),
		DisksHeld: int64(backlog.DisksHeld), SnapshotsPending: int64(backlog.Snapshots),
		OldestPendingSnapshot: age(backlog.Now, backlog.OldestSnapshot), BrakeEngaged: r.Brake.Engaged(), Paused: r.Paused != nil,
		OutboxDepth: int64(backlog.Facts), DeadLetters: int64(backlog.DeadLetters),
	}
	if r.Outcome != Failed {
		levels.FinishedAt = r.FinishedAt
	}
	if !punctuality.LastFinished.IsZero() {
		levels.SinceLastSweep = age(r.StartedAt, punctuality.LastFinished)
	}
	for _, status := range []reservation.Status{reservation.Pending, reservation.Queued, reservation.Preparing, reservation.Active,
		reservation.Expired, reservation.Cancelled, reservation.Failed} { // no others: a row may hold any word
		levels.Reservations[string(status)] = int64(backlog.Reservations[string(status)])
	}
	m.SweepLevels(ctx, levels)
}

func age(now, since time.Time) time.Duration {
	if since.IsZero() {
		return 0
	}
	return max(0, now.Sub(since))
}
