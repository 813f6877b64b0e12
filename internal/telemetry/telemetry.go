// Package telemetry sets up tracing, metrics and logging, and knows the one convention that the whole service
// shares: each reservation is one trace, whose id is the reservation's.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const (
	scope = "gpudev.internal/reservation-expiry"

	// A delivery may call Export once and Flush once, and must not lose more than a second by both.
	flushBudget  = 500 * time.Millisecond
	exportBudget = 350 * time.Millisecond
)

// Options are what Setup does not read from the environment. The zero value is what production uses.
type Options struct {
	Version string                // service.version; empty: from the build information
	Getenv  func(string) string   // os.Getenv; the exporters' own settings are always read from the environment
	Now     func() time.Time      // time.Now; the clock of spans and ages
	Random  func() uint64         // math/rand/v2; the source of span and trace ids
	Spans   sdktrace.SpanExporter // instead of the one the environment asks for
	Metrics sdkmetric.Exporter    // likewise
	Within  time.Duration         // how long Export may take; 0: 0.35 s, so that a delivery loses less than a second
}

// Telemetry makes spans and records metrics, keeps both until Flush, and is safe for concurrent use.
type Telemetry struct {
	// Metrics are the service's instruments.
	Metrics *Metrics

	exportWithin time.Duration

	now       func() time.Time
	tracer    trace.Tracer
	provider  *sdktrace.TracerProvider
	writer    trace.Tracer // makes spans with given ids and times, which Export sends
	spans     sdktrace.SpanExporter
	buffer    *buffer
	meters    *sdkmetric.MeterProvider
	reader    *sdkmetric.ManualReader
	metricOut sdkmetric.Exporter
}

// Setup reads the standard OTEL_* variables. Without an endpoint or exporter in them nothing is exported or
// dialled, while trace ids stay real, so that events and logs carry them. It makes no connection; the error
// names every variable that is wrong.
func Setup(ctx context.Context, o Options) (*Telemetry, error) {
	o = o.withDefaults()
	rest, err1 := samplerFrom(o.Getenv)
	var err2, err3 error
	if o.Spans == nil {
		o.Spans, err2 = spanExporter(ctx, o.Getenv)
	}
	if o.Metrics == nil {
		o.Metrics, err3 = metricExporter(ctx, o.Getenv)
	}
	res, err4 := newResource(ctx, o)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}

	t := &Telemetry{exportWithin: o.Within, now: o.Now, spans: o.Spans, metricOut: o.Metrics}
	common := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(res),
		sdktrace.WithSampler(sampler{rest}),
		sdktrace.WithIDGenerator(idGenerator{o.Random}),
		sdktrace.WithRawSpanLimits(spanLimits(o.Getenv)),
	}
	t.writer = sdktrace.NewTracerProvider(common...).Tracer(scope)
	if t.spans != nil {
		t.buffer = newBuffer(func(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
			return exportSpans(ctx, t.spans, batch)
		})
		common = append(common, sdktrace.WithSpanProcessor(t.buffer))
	}
	t.provider = sdktrace.NewTracerProvider(common...)
	t.tracer = t.provider.Tracer(scope)

	meterOptions := []sdkmetric.Option{sdkmetric.WithResource(res)}
	if t.metricOut != nil {
		t.reader = sdkmetric.NewManualReader(
			sdkmetric.WithTemporalitySelector(func(k sdkmetric.InstrumentKind) metricdata.Temporality {
				if k == sdkmetric.InstrumentKindGauge {
					// Forget a level once it is pushed: an instance that swept hours ago must not go on saying so.
					return metricdata.DeltaTemporality
				}
				return t.metricOut.Temporality(k)
			}),
			sdkmetric.WithAggregationSelector(t.metricOut.Aggregation))
		meterOptions = append(meterOptions, sdkmetric.WithReader(t.reader))
	}
	t.meters = sdkmetric.NewMeterProvider(meterOptions...)
	var err error
	if t.Metrics, err = newMetrics(t.meters.Meter(scope)); err != nil {
		return nil, fmt.Errorf("create the instruments: %w", err)
	}
	return t, nil
}

// Disabled returns a Telemetry that exports nothing, for commands that need none and for tests.
func Disabled() *Telemetry {
	t, err := Setup(context.Background(), Options{Getenv: func(string) string { return "" }})
	if err != nil {
		panic(err) // nothing in it depends on the outside
	}
	return t
}

// Pushing reports whether metrics go anywhere.
func (t *Telemetry) Pushing() bool { return t.metricOut != nil }

// TracerProvider makes the spans of instrumented clients.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.provider }

// MeterProvider makes the metrics of instrumented clients.
func (t *Telemetry) MeterProvider() metric.MeterProvider { return t.meters }

// Flush pushes what the delivery recorded, spans and metrics side by side, and returns within half a second
// whatever the collector does. It does not heed ctx being cancelled: a delivery that ran out of time is the one
// worth seeing. A failure is worth a line in the log and nothing more.
func (t *Telemetry) Flush(ctx context.Context) error {
	return t.push(ctx, t.flushSpans, t.flushMetrics)
}

// FlushSpans is Flush without the metrics, of which a delivery is to push one reading: what has ended is sent while
// the rest of the delivery goes on.
func (t *Telemetry) FlushSpans(ctx context.Context) error { return t.push(ctx, t.flushSpans) }

func (t *Telemetry) push(ctx context.Context, signals ...func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushBudget)
	defer cancel()
	done := make(chan error, len(signals))
	for _, signal := range signals {
		go func() { done <- signal(ctx) }()
	}
	var errs []error
	for range signals {
		select {
		case err := <-done:
			errs = append(errs, err)
		case <-ctx.Done(): // an exporter that ignores its context is left behind
			errs = append(errs, ctx.Err())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("flush telemetry: %w", err)
	}
	return nil
}

func (t *Telemetry) flushSpans(ctx context.Context) error {
	if t.buffer == nil {
		return nil
	}
	return t.buffer.ForceFlush(ctx)
}

func (t *Telemetry) flushMetrics(ctx context.Context) error {
	if t.reader == nil {
		return nil
	}
	var rm metricdata.ResourceMetrics
	if err := t.reader.Collect(ctx, &rm); err != nil {
		return fmt.Errorf("collect metrics: %w", err)
	}
	if len(rm.ScopeMetrics) == 0 {
		return nil
	}
	if err := t.metricOut.Export(ctx, &rm); err != nil {
		return fmt.Errorf("export metrics: %w", err)
	}
	return nil
}

// Shutdown closes the exporters. It sends nothing, since a collector that has just cost a Flush its time would cost as
// much again: what is to be sent is flushed before.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushBudget)
	defer cancel()
	err := t.meters.Shutdown(ctx)
	if t.metricOut != nil {
		err = errors.Join(err, t.metricOut.Shutdown(ctx))
	}
	if t.spans != nil {
		err = errors.Join(err, t.spans.Shutdown(ctx))
	}
	return err
}

func (o Options) withDefaults() Options {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Uint64
	}
	if o.Within == 0 {
		o.Within = exportBudget
	}
	if o.Version == "" {
		o.Version = "devel"
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			o.Version = info.Main.Version
		}
	}
	return o
}

// longest is what is kept of an attribute's text. The beginning of a statement tells which one it is, and a collector
// that indexes attributes takes its time over long ones.
const longest = 1024

// spanLimits are the SDK's, except that a sweep links to every reservation it acted on and that no text is endless.
func spanLimits(getenv func(string) string) sdktrace.SpanLimits {
	limits := sdktrace.NewSpanLimits()
	if getenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT") == "" {
		limits.AttributeValueLengthLimit = longest
	}
	if getenv("OTEL_SPAN_LINK_COUNT_LIMIT") == "" {
		limits.LinkCountLimit = -1
	}
	return limits
}

// newResource says which process this is. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over what is found.
func newResource(ctx context.Context, o Options) (*resource.Resource, error) {
	attrs := []attribute.KeyValue{
		semconv.ServiceName("reservation-expiry"),
		semconv.ServiceVersion(o.Version),
		semconv.ServiceInstanceID(instanceID(o.Random)),
	}
	for _, v := range []struct {
		name string
		key  attribute.Key
	}{
		{"K_SERVICE", semconv.FaaSNameKey},
		{"K_REVISION", semconv.FaaSVersionKey},
		{"HOSTNAME", semconv.FaaSInstanceKey},
		{"POD_NAME", semconv.K8SPodNameKey},
		{"POD_NAMESPACE", semconv.K8SNamespaceNameKey},
		{"EKS_CLUSTER_NAME", semconv.K8SClusterNameKey},
		{"AWS_REGION", semconv.CloudRegionKey},
	} {
		if value := o.Getenv(v.name); value != "" {
			attrs = append(attrs, v.key.String(value))
		}
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(attrs...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return res, nil
}

func instanceID(random func() uint64) string {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(random()) //nolint:gosec // any eight bits do
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // version 4, RFC 9562
	return id.String()
}
