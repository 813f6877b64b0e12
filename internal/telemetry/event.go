package telemetry

import (
	"context"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/extensions"
	"go.opentelemetry.io/otel/propagation"
)

// Inject writes the span in ctx into the event's distributed tracing extension (traceparent, tracestate).
func Inject(ctx context.Context, e event.EventWriter) {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	extensions.DistributedTracingExtension{
		TraceParent: carrier[extensions.TraceParentExtension],
		TraceState:  carrier[extensions.TraceStateExtension],
	}.AddTracingAttributes(e)
}

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

// TraceParent returns the W3C traceparent of the span in ctx, or "" where there is none, for rows that remember
// who asked.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[extensions.TraceParentExtension]
}
