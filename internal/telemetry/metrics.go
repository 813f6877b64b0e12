package telemetry

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// Metrics are the service's instruments. Names and units follow the OpenTelemetry conventions; durations are in
// seconds. Values are pushed by Flush.
type Metrics struct {
	sweepDuration, warningLateness, stepDuration metric.Float64Histogram
	stepAttempts                                 metric.Int64Histogram
	sweepSkipped, endings, events                metric.Int64Counter

	sweepLast, sweepAge, oldestCleanup, oldestSnapshot                                  metric.Float64Gauge
	reservations, overdue, unfinished, stuck, disksHeld, snapshots, outbox, deadLetters metric.Int64Gauge
	brake, paused                                                                       metric.Int64Gauge
}

// Levels is what a sweep finds, or leaves behind.
type Levels struct {
	FinishedAt            time.Time        // of the sweep that they are of; zero where it did not finish
	SinceLastSweep        time.Duration    // from the end of the newest finished sweep to this one's start; zero: there was none
	Reservations          map[string]int64 // by status
	Overdue               int64            // active past deadline and grace, and still not ended
	CleanupsUnfinished    int64
	CleanupsStuck         int64 // ten failures or more
	OldestCleanup         time.Duration
	DisksHeld             int64 // in use by an ended reservation
	SnapshotsPending      int64
	OldestPendingSnapshot time.Duration
	BrakeEngaged          bool
	Paused                bool
	OutboxDepth           int64
	DeadLetters           int64
}

func newMetrics(m metric.Meter) (*Metrics, error) {
	b := builder{meter: m}
	seconds := []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600}
	late := []float64{1, 5, 15, 30, 60, 120, 300, 600, 1800}
	metrics := &Metrics{
		sweepDuration:   b.seconds("reservation_expiry.sweep.duration", "Time from a sweep's start until its end is recorded, by outcome.", seconds),
		sweepSkipped:    b.counter("reservation_expiry.sweep.skipped", "{tick}", "Ticks that ran no sweep, by reason."),
		sweepLast:       b.gaugeSeconds("reservation_expiry.sweep.last_finished", "Unix time at which the newest finished sweep ended whose levels were measured."),
		sweepAge:        b.gaugeSeconds("reservation_expiry.sweep.age", "Age of the newest sweep that had finished when a sweep began."),
		reservations:    b.gauge("reservation_expiry.reservations", "{reservation}", "Reservations, by status."),
		overdue:         b.gauge("reservation_expiry.reservations.overdue", "{reservation}", "Active reservations past deadline and grace that were not ended."),
		endings:         b.counter("reservation_expiry.endings", "{reservation}", "Reservations ended, by reason."),
		warningLateness: b.seconds("reservation_expiry.warning.lateness", "Time from the moment a warning was due to the moment it was written, by level (minutes before the deadline).", late),
		stepDuration:    b.seconds("reservation_expiry.cleanup.step.duration", "Time of one attempt at a cleanup step, by step and outcome.", seconds),
		stepAttempts:    b.attempts("reservation_expiry.cleanup.step.attempts", "Attempts that a cleanup step took until it was done, by step."),
		unfinished:      b.gauge("reservation_expiry.cleanups.unfinished", "{cleanup}", "Cleanups not done."),
		stuck:           b.gauge("reservation_expiry.cleanups.stuck", "{cleanup}", "Cleanups with ten failures or more."),
		oldestCleanup:   b.gaugeSeconds("reservation_expiry.cleanups.oldest_age", "Age of the oldest unfinished cleanup."),
		disksHeld:       b.gauge("reservation_expiry.disks.held", "{disk}", "Disks in use by reservations that have ended."),
		snapshots:       b.gauge("reservation_expiry.snapshots.pending", "{snapshot}", "Snapshots of ours that have not completed."),
		oldestSnapshot:  b.gaugeSeconds("reservation_expiry.snapshots.oldest_pending_age", "Age of the oldest of them."),
		brake:           b.gauge("reservation_expiry.brake.engaged", "", "1 while a sweep stopped short of ending too many reservations at once, else 0."),
		paused:          b.gauge("reservation_expiry.paused", "", "1 while paused, else 0."),
		events:          b.counter("reservation_expiry.events", "{event}", "Events received, by type and answer."),
		outbox:          b.gauge("reservation_expiry.outbox.depth", "{event}", "Facts recorded and not yet sent."),
		deadLetters:     b.gauge("reservation_expiry.dead_letters", "{event}", "Events that the broker gave up on and nobody has replayed."),
	}
	return metrics, errors.Join(b.errs...)
}

// SweepDone records how long a sweep took and its outcome ("completed", "partial", "failed", "dry-run").
func (m *Metrics) SweepDone(ctx context.Context, took time.Duration, outcome string) {
	m.sweepDuration.Record(ctx, took.Seconds(), word("outcome", outcome))
}

// SweepSkipped records a tick that ran no sweep, and why ("lease held", "too many ticks").
func (m *Metrics) SweepSkipped(ctx context.Context, reason string) {
	m.sweepSkipped.Add(ctx, 1, word("reason", reason))
}

// SweepLevels records what a sweep found, and with it when: by the newest such time it is known whose levels are
// believed. A level that is not recorded again is not pushed again.
func (m *Metrics) SweepLevels(ctx context.Context, l Levels) {
	if !l.FinishedAt.IsZero() {
		m.sweepLast.Record(ctx, float64(l.FinishedAt.UnixMilli())/1000)
	}
	if l.SinceLastSweep > 0 {
		m.sweepAge.Record(ctx, l.SinceLastSweep.Seconds())
	}
	for status, n := range l.Reservations {
		m.reservations.Record(ctx, n, word("status", status))
	}
	m.overdue.Record(ctx, l.Overdue)
	m.unfinished.Record(ctx, l.CleanupsUnfinished)
	m.stuck.Record(ctx, l.CleanupsStuck)
	m.oldestCleanup.Record(ctx, l.OldestCleanup.Seconds())
	m.disksHeld.Record(ctx, l.DisksHeld)
	m.snapshots.Record(ctx, l.SnapshotsPending)
	m.oldestSnapshot.Record(ctx, l.OldestPendingSnapshot.Seconds())
	m.brake.Record(ctx, flag(l.BrakeEngaged))
	m.paused.Record(ctx, flag(l.Paused))
	m.outbox.Record(ctx, l.OutboxDepth)
	m.deadLetters.Record(ctx, l.DeadLetters)
}

// Ended records reservations ended for one reason ("expired", "stuck preparing", "missing pod", …).
func (m *Metrics) Ended(ctx context.Context, reason string, n int) {
	if n > 0 {
		m.endings.Add(ctx, int64(n), word("reason", reason))
	}
}

// Warned records a warning of a level (minutes) and how late it was written; early counts as on time.
func (m *Metrics) Warned(ctx context.Context, level int, late time.Duration) {
	m.warningLateness.Record(ctx, max(late, 0).Seconds(), metric.WithAttributes(attribute.Int("level", level)))
}

// StepTried records one attempt at a cleanup step, attempt being 1 for the first. Outcomes are the words of the
// spans ("done", "waiting", "interrupted", "error"); done says whether the step is now complete.
func (m *Metrics) StepTried(ctx context.Context, step, outcome string, took time.Duration, attempt int, done bool) {
	m.stepDuration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("step", step), attribute.String("outcome", outcome)))
	if done {
		m.stepAttempts.Record(ctx, int64(attempt), word("step", step))
	}
}

// EventAnswered records the HTTP status with which an event was answered. The type of one that this service does not
// know, or did not read, is Unknown: a sender must not be able to invent series.
func (m *Metrics) EventAnswered(ctx context.Context, eventType string, status int) {
	m.events.Add(ctx, 1, metric.WithAttributes(semconv.CloudEventsEventType(eventType), semconv.HTTPResponseStatusCode(status)))
}

func word(key, value string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String(key, value))
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// builder creates instruments and gathers the errors.
type builder struct {
	meter metric.Meter
	errs  []error
}

func (b *builder) seconds(name, what string, bounds []float64) metric.Float64Histogram {
	h, err := b.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(bounds...))
	b.errs = append(b.errs, err)
	return h
}

func (b *builder) attempts(name, what string) metric.Int64Histogram {
	h, err := b.meter.Int64Histogram(name, metric.WithUnit("{attempt}"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(1, 2, 3, 5, 10, 20, 50))
	b.errs = append(b.errs, err)
	return h
}

func (b *builder) counter(name, unit, what string) metric.Int64Counter {
	c, err := b.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
	b.errs = append(b.errs, err)
	return c
}

func (b *builder) gauge(name, unit, what string) metric.Int64Gauge {
	g, err := b.meter.Int64Gauge(name, metric.WithUnit(unit), metric.WithDescription(what))
	b.errs = append(b.errs, err)
	return g
}

func (b *builder) gaugeSeconds(name, what string) metric.Float64Gauge {
	g, err := b.meter.Float64Gauge(name, metric.WithUnit("s"), metric.WithDescription(what))
	b.errs = append(b.errs, err)
	return g
}
