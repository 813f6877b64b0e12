package telemetry

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// recorder is a buffer whose exports are kept, and fail with err while that is set.
type recorder struct {
	*buffer
	names []string
	ids   []trace.SpanID
	heads map[string]trace.SpanID // by name
	sizes []int
	err   error
}

func newRecorder(t *testing.T) (*recorder, *sdktrace.TracerProvider) {
	t.Helper()
	r := &recorder{heads: map[string]trace.SpanID{}}
	r.buffer = newBuffer(func(_ context.Context, batch []sdktrace.ReadOnlySpan) error {
		if r.err != nil {
			return r.err
		}
		r.sizes = append(r.sizes, len(batch))
		for _, s := range batch {
			r.names, r.ids = append(r.names, s.Name()), append(r.ids, s.SpanContext().SpanID())
			if !s.Parent().IsValid() {
				r.heads[s.Name()] = s.SpanContext().SpanID()
			}
		}
		return nil
	})
	return r, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.buffer))
}

func TestNoSpanIsExportedBeforeTheOneItHangsBelow(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	tracer := provider.Tracer("test")
	ctx, action := tracer.Start(t.Context(), "action")
	stepCtx, step := tracer.Start(ctx, "step")
	_, call := tracer.Start(stepCtx, "call")
	call.End()
	step.End()

	require.NoError(t, r.ForceFlush(t.Context())) // another delivery's; a kill may follow
	require.Empty(t, r.names)

	action.End()
	_, late := tracer.Start(stepCtx, "late")
	late.End()
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Equal(t, []string{"action", "step", "call", "late"}, r.names)
	require.Empty(t, r.open)
}

func TestAChildThatOutlivesItsFamilyIsExportedOnItsOwn(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	tracer := provider.Tracer("test")
	ctx, action := tracer.Start(t.Context(), "action")
	_, child := tracer.Start(ctx, "child")
	action.End()
	require.NoError(t, r.ForceFlush(t.Context()))
	child.End()
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Equal(t, []string{"action", "child"}, r.names)
}

func TestTheBufferExportsInBatchesAndForgetsTheOldestWhenFull(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	tracer := provider.Tracer("test")
	add := func(name string, n int) {
		for range n {
			_, s := tracer.Start(t.Context(), name)
			s.End()
		}
	}
	add("old", 100)
	add("new", bufferLimit)
	r.err = errors.New("connection refused")
	require.Error(t, r.ForceFlush(t.Context()))
	r.err = nil
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Len(t, r.names, bufferLimit)
	require.NotContains(t, r.names, "old")
	require.Equal(t, batchSize, r.sizes[0])
}

// begin starts a family of n spans below a head and ends all.
func begin(ctx context.Context, tracer trace.Tracer, name string, n int) {
	ctx, head := tracer.Start(ctx, name)
	for range n {
		_, child := tracer.Start(ctx, name)
		child.End()
	}
	head.End()
}

func TestFamiliesAreSentWholeOrWhereTheyDoNotFitFromTheirHeadDown(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	tracer := provider.Tracer("test")
	begin(t.Context(), tracer, "first", 299)
	begin(t.Context(), tracer, "second", 299)
	begin(t.Context(), tracer, "large", batchSize)
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Equal(t, []int{300, 300, batchSize, 1}, r.sizes)
	require.Equal(t, r.heads["first"], r.ids[0])
	require.Equal(t, r.heads["second"], r.ids[300])
	require.Equal(t, r.heads["large"], r.ids[600])
}

func TestAFamilyOfWhichAPartIsLostIsForgottenWhole(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	tracer := provider.Tracer("test")
	begin(t.Context(), tracer, "large", batchSize) // its head may not have arrived
	begin(t.Context(), tracer, "small", 1)
	r.err = ErrUnconfirmed
	require.Error(t, r.ForceFlush(t.Context()))
	r.err = nil
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Equal(t, []string{"small", "small"}, r.names)

	begin(t.Context(), tracer, "old", 1)
	begin(t.Context(), tracer, "new", bufferLimit-2) // one too many
	require.NoError(t, r.ForceFlush(t.Context()))
	require.NotContains(t, r.names, "old")
	require.Len(t, r.names, 2+bufferLimit-1)
}

func TestABatchThatMayHaveArrivedIsForgotten(t *testing.T) {
	t.Parallel()
	r, provider := newRecorder(t)
	_, s := provider.Tracer("test").Start(t.Context(), "s")
	s.End()
	r.err = ErrUnconfirmed
	require.Error(t, r.ForceFlush(t.Context()))
	r.err = nil
	require.NoError(t, r.ForceFlush(t.Context()))
	require.Empty(t, r.names)
}

func TestAFlushThatWaitsForAnotherKeepsItsDeadline(t *testing.T) {
	t.Parallel()
	r, _ := newRecorder(t)
	r.flushing <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.ForceFlush(ctx), context.Canceled)
	<-r.flushing
}
