package telemetry

import (
	"context"
	"errors"
	"slices"
	"sync"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	bufferLimit = 20_000 // spans kept while the collector is away; a large sweep has some thousand
	batchSize   = 512    // spans in one request, as in the SDK's batch processor
)

// buffer holds ended spans until a delivery flushes them. Nothing is exported in between, for two reasons: a
// process that sleeps has no use for a timer, and a span must not be exported before the span it hangs below has
// ended, or a kill would leave it in the trace for ever without its parent.
type buffer struct {
	export func(context.Context, []sdktrace.ReadOnlySpan) error

	flushing chan struct{} // holds one token; a flush that waits for another still keeps its own deadline

	mu    sync.Mutex
	open  map[trace.SpanID]*family // begun and not ended, each with the family it belongs to
	ready []member                 // family by family, the head of each before what is below it
}

// family is a span whose parent is not of this process, with all that happened below it.
type family struct {
	head  trace.SpanID
	ended []sdktrace.ReadOnlySpan
	done  bool
	lost  bool // some of it will never be sent: the rest might hang below nothing
}

type member struct {
	span sdktrace.ReadOnlySpan
	of   *family
}

var _ sdktrace.SpanProcessor = (*buffer)(nil)

func newBuffer(export func(context.Context, []sdktrace.ReadOnlySpan) error) *buffer {
	return &buffer{export: export, flushing: make(chan struct{}, 1), open: map[trace.SpanID]*family{}}
}

func (b *buffer) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := s.SpanContext().SpanID()
	if parent := s.Parent(); parent.IsValid() && !parent.IsRemote() {
		if f, ok := b.open[parent.SpanID()]; ok {
			b.open[id] = f
			return
		}
	}
	b.open[id] = &family{head: id}
}

func (b *buffer) OnEnd(s sdktrace.ReadOnlySpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := s.SpanContext().SpanID()
	f, ok := b.open[id]
	if !ok {
		return
	}
	delete(b.open, id)
	f.ended = append(f.ended, s)
	f.done = f.done || id == f.head
	if f.done && !f.lost {
		b.keep(f)
	}
}

// keep adds what has ended of a family to what awaits a flush. Where there is too much the oldest families give way.
func (b *buffer) keep(f *family) {
	slices.Reverse(f.ended) // parents end last
	for _, s := range f.ended[:min(len(f.ended), bufferLimit)] {
		b.ready = append(b.ready, member{s, f})
	}
	f.ended = nil
	b.forget(b.ready[:max(0, len(b.ready)-bufferLimit)])
}

// forget drops the families of some spans, whole.
func (b *buffer) forget(some []member) {
	if len(some) == 0 {
		return
	}
	for _, m := range some {
		m.of.lost = true
	}
	b.ready = slices.DeleteFunc(b.ready, func(m member) bool { return m.of.lost })
}

// ForceFlush exports what has ended so far. A batch that never left this process waits for the next flush; one
// that may have arrived is not sent again, since a span exported twice is shown twice.
func (b *buffer) ForceFlush(ctx context.Context) error {
	select {
	case b.flushing <- struct{}{}:
		defer func() { <-b.flushing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for ctx.Err() == nil {
		batch := b.take()
		if len(batch) == 0 {
			return nil
		}
		spans := make([]sdktrace.ReadOnlySpan, len(batch))
		for i, m := range batch {
			spans[i] = m.span
		}
		if err := b.export(ctx, spans); err != nil {
			b.putBack(batch, errors.Is(err, ErrUnconfirmed))
			return err
		}
	}
	return ctx.Err()
}

// take takes as many families as fit into a batch, or a part of one that does not.
func (b *buffer) take() []member {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.ready), batchSize)
	for whole := n; whole > 0; whole-- {
		if whole == len(b.ready) || b.ready[whole].of != b.ready[whole-1].of {
			n = whole
			break
		}
	}
	batch := slices.Clone(b.ready[:n])
	b.ready = b.ready[n:]
	return batch
}

// putBack keeps a batch that failed for the next flush, or if it may have arrived forgets it, with the rest of its families.
func (b *buffer) putBack(batch []member, mayHaveArrived bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if mayHaveArrived {
		b.forget(batch)
		return
	}
	b.ready = slices.Concat(batch, b.ready)
	b.forget(b.ready[:max(0, len(b.ready)-bufferLimit)])
}

func (b *buffer) Shutdown(ctx context.Context) error { return b.ForceFlush(ctx) }
