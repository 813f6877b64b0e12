package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store remembers what is written; *postgres.DB is one.
type Store interface {
	ClaimTraces(ctx context.Context, token uuid.UUID, lease time.Duration, limit int, also ...string) ([]postgres.Lifecycle, error)
	SettleTraces(ctx context.Context, token uuid.UUID, marks []postgres.TraceMark) error
}

// Exporter sends spans and tells whether they have arrived; *telemetry.Telemetry is one.
type Exporter interface {
	Exporting() bool
	Export(ctx context.Context, records ...telemetry.Record) error
}

// Viewer shows what has arrived of a trace; *jaeger.Client is one. fault.Gone says: nothing.
type Viewer interface {
	Trace(ctx context.Context, traceID string) (jaeger.Trace, error)
}

// Options tune a Writer. The zero value is right for production.
type Options struct {
	Viewer Viewer           // nil: what may have arrived is sent again
	Lease  time.Duration    // 0: 1 minute. Longer than an export and two statements
	Batch  int              // traces in one export; 0: 100
	Within time.Duration    // how long a claim or a sweep's look may take; 0: 0.3 s
	NewID  func() uuid.UUID // of leases; nil: random
	Log    *slog.Logger     // nil: slog.Default
}

// Writer writes what is over of reservations' lives. It is safe for concurrent use, in any number of processes.
type Writer struct {
	store    Store
	exporter Exporter
	opts     Options
}

// New returns a Writer.
func New(store Store, exporter Exporter, opts Options) *Writer {
	if opts.Lease == 0 {
		opts.Lease = time.Minute
	}
	if opts.Batch == 0 {
		opts.Batch = 100
	}
	if opts.Within == 0 {
		opts.Within = 300 * time.Millisecond
	}
	if opts.NewID == nil {
		opts.NewID = uuid.New
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &Writer{store: store, exporter: exporter, opts: opts}
}

const (
	// begunWithin is how long Write goes on beginning batches. A collector that answers is asked for many, one that
	// does not for a single one.
	begunWithin  = 100 * time.Millisecond
	settleWithin = time.Second
)

// Write writes the spans that are over and not written, each once: claimed by lease, exported, and marked once the
// collector has acknowledged. also are reservations whose cleanup may have finished a step. What does not fit is left
// to the next call. Without a collector nothing is claimed.
//
// A process that is killed between acknowledgement and mark, or a database that fails there, leaves a lease that lapses, and
// an export without a clear answer a doubt. After a pause the Viewer says what has arrived; without one the spans are sent again, since a life that is
// shown twice is better than one that is lost. It returns how many spans were written.
func (w *Writer) Write(ctx context.Context, also ...string) (written int, err error) {
	if !w.exporter.Exporting() {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	for began := time.Now(); time.Since(began) < begunWithin; {
		n, more, err := w.batch(ctx, also)
		written += n
		if err != nil || !more {
			return written, err
		}
	}
	return written, nil
}

// draft is what is to be written of one trace.
type draft struct {
	life    postgres.Lifecycle
	records []telemetry.Record // not written yet
	mark    postgres.TraceMark
}

func (w *Writer) batch(ctx context.Context, also []string) (written int, more bool, err error) {
	token := w.opts.NewID()
	claiming, cancel := context.WithTimeout(ctx, w.opts.Within)
	lives, err := w.store.ClaimTraces(claiming, token, w.opts.Lease, w.opts.Batch, also...)
	cancel()
	if err != nil || len(lives) == 0 {
		return 0, false, err
	}
	drafts := make([]draft, len(lives))
	for i, l := range lives {
		drafts[i] = newDraft(l)
	}
	within := w.opts.Within
	if len(also) > 0 { // not a sweep
		within = max(within, patience)
	}
	w.lookUp(ctx, within, drafts)
	var records []telemetry.Record
	for _, d := range drafts {
		records = append(records, d.records...)
	}
	failure := w.exporter.Export(ctx, records...)
	marks := make([]postgres.TraceMark, len(drafts))
	for i := range drafts {
		marks[i] = w.conclude(&drafts[i], failure)
	}
	if err := w.settle(ctx, token, marks); err != nil {
		return 0, false, errors.Join(failure, err)
	}
	if failure != nil {
		return 0, false, fmt.Errorf("write %d spans of %d reservations: %w", len(records), len(lives), failure)
	}
	return len(records), len(lives) == w.opts.Batch, nil
}

func newDraft(l postgres.Lifecycle) draft {
	d := draft{life: l, mark: postgres.TraceMark{ReservationID: l.ID, Stage: l.Stage, Written: l.Written}}
	for _, r := range Spans(l) {
		if !slices.Contains(l.Written, Name(r)) {
			d.records = append(d.records, r)
		}
	}
	return d
}

const (
	// hold keeps a trace from being looked at again before the collector has had time to store what it may have taken.
	hold = time.Minute
	// longHold is for one that is in doubt once more where nobody can look: it may be shown once more each time.
	longHold = time.Hour
	// patience is how long a look may take where no sweep waits for it.
	patience = 3 * time.Second
)

// lookUp finds out what has arrived of the traces in doubt, and takes it off the drafts. A trace that cannot be looked
// at is left for later.
func (w *Writer) lookUp(ctx context.Context, within time.Duration, drafts []draft) {
	if w.opts.Viewer == nil {
		return
	}
	var unseen []string
	var failure error
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for i := range drafts {
		d := &drafts[i]
		if !d.life.Doubtful || len(d.records) == 0 {
			continue
		}
		seen, err := w.opts.Viewer.Trace(ctx, telemetry.TraceID(d.life.ID).String())
		if err != nil && !fault.Is(err, fault.Gone) {
			unseen, failure = append(unseen, d.life.ID), cmp.Or(failure, err)
			d.records = nil
			d.mark = postgres.TraceMark{ReservationID: d.life.ID, Written: d.life.Written, Doubtful: true, Pause: hold}
			continue
		}
		arrived := make(map[string]bool, len(seen.Spans))
		for _, s := range seen.Spans {
			arrived[s.ID] = true
		}
		d.records = slices.DeleteFunc(d.records, func(r telemetry.Record) bool {
			if !arrived[r.SpanID().String()] {
				return false
			}
			d.mark.Written = append(slices.Clip(d.mark.Written), Name(r))
			return true
		})
	}
	if failure != nil {
		w.opts.Log.WarnContext(ctx, "traces are written later: Jaeger does not say what has arrived of them", "within", within, "reservations", unseen, "error", failure)
	}
}

// conclude says what the export has made of a draft.
func (w *Writer) conclude(d *draft, failure error) postgres.TraceMark {
	pause := hold
	if w.opts.Viewer == nil && d.life.Doubtful {
		pause = longHold
	}
	switch {
	case d.mark.Doubtful || len(d.records) == 0: // it was not exported
		return d.mark
	case errors.Is(failure, telemetry.ErrUnconfirmed):
		return postgres.TraceMark{ReservationID: d.life.ID, Written: d.mark.Written, Doubtful: true, Pause: pause}
	case failure != nil:
		return postgres.TraceMark{ReservationID: d.life.ID, Written: d.mark.Written}
	}
	for _, r := range d.records {
		d.mark.Written = append(slices.Clip(d.mark.Written), Name(r))
	}
	return d.mark
}

// settle gives the traces back, trying twice: what the collector has acknowledged and is not marked is written again.
func (w *Writer) settle(ctx context.Context, token uuid.UUID, marks []postgres.TraceMark) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	err := w.store.SettleTraces(ctx, token, marks)
	if err != nil && ctx.Err() == nil {
		err = w.store.SettleTraces(ctx, token, marks)
	}
	return err
}
