package telemetry

import (
	"context"
	"errors"
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
	ready []sdktrace.ReadOnlySpan
}

// family is a span whose parent is not of this process, with all that happened below it.
type family struct {
	head  trace.SpanID
	ended []sdktrace.ReadOnlySpan
	done  bool
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
	if f.done {
		b.keep(f.ended)
		f.ended = nil
	}
}

// keep appends to the spans that await a flush, the oldest giving way when there are too many.
func (b *buffer) keep(spans []sdktrace.ReadOnlySpan) {
	b.ready = append(b.ready, spans...)
	if over := len(b.ready) - bufferLimit; over > 0 {
		b.ready = append([]sdktrace.ReadOnlySpan(nil), b.ready[over:]...)
	}
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
		if err := b.export(ctx, batch); err != nil {
			if !errors.Is(err, ErrUnconfirmed) {
				b.putBack(batch)
			}
			return err
		}
	}
	return ctx.Err()
}

func (b *buffer) take() []sdktrace.ReadOnlySpan {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.ready), batchSize)
	batch := b.ready[:n:n]
	b.ready = b.ready[n:]
	return batch
}

func (b *buffer) putBack(batch []sdktrace.ReadOnlySpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	later := b.ready
	b.ready = nil
	b.keep(batch)
	b.keep(later)
}

func (b *buffer) Shutdown(ctx context.Context) error { return b.ForceFlush(ctx) }
