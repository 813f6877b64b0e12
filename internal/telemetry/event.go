package telemetry

import (
	"context"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/extensions"
	"go.opentelemetry.io/otel/propagation"
)

// Extract returns ctx with the span that sent the event, for StartDelivery and StartAction to link to. A
// malformed or absent extension changes nothing.
func Extract(ctx context.Context, e event.Event) context.Context {
	ext, ok := extensions.GetDistributedTracingExtension(e)
	if !ok {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{
		extensions.TraceParentExtension: ext.TraceParent,
		extensions.TraceStateExtension:  ext.TraceState,
	})
}

// TraceParent returns the W3C traceparent of the span in ctx, or "" where there is none: what an event carries in
// its distributed tracing extension, and what a row remembers of who asked.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[extensions.TraceParentExtension]
}

// WithTraceParent is Extract for a row that remembers who asked.
func WithTraceParent(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{extensions.TraceParentExtension: traceparent})
}
