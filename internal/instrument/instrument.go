// Package instrument puts spans around the calls of client libraries. Such a span is made only below another one that
// this process records: a probe or a token refresh is nobody's work, and one of another process may never be exported.
package instrument

import (
	"context"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/contrib/instrumentation/github.com/aws/aws-sdk-go-v2/otelaws" //nolint:staticcheck // deprecated for want of a maintainer; nothing replaces it yet
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Providers make the spans and metrics; *telemetry.Telemetry is one.
type Providers interface {
	TracerProvider() trace.TracerProvider
	MeterProvider() metric.MeterProvider
}

// Postgres returns a tracer for pgx's ConnConfig.Tracer. Statements are recorded, their parameters are not.
func Postgres(p Providers, host string, port int, database string) pgx.QueryTracer {
	return statements{otelpgx.NewTracer(
		otelpgx.WithTracerProvider(p.TracerProvider()),
		otelpgx.WithMeterProvider(p.MeterProvider()),
		otelpgx.WithDisableAcquireTracer(),
		// The tracer would copy the whole connection config for each statement to learn these.
		otelpgx.WithDisableConnectionDetailsInAttributes(),
		otelpgx.WithTracerAttributes(semconv.ServerAddress(host), semconv.ServerPort(port), semconv.DBNamespace(database)),
	)}
}

// statements makes no span of the beginning and the end of a transaction. They would be nearly half of a sweep's, which
// its answer waits for, and say nothing: an error of theirs is the caller's, and their time is seen between the others'.
type statements struct{ *otelpgx.Tracer }

// TraceQueryStart implements pgx.QueryTracer.
func (s statements) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	switch data.SQL {
	case "begin", "commit", "rollback":
		ctx = trace.ContextWithSpan(ctx, noop.Span{})
	}
	return s.Tracer.TraceQueryStart(ctx, conn, data)
}

// HTTP wraps the transport that sends events.
func HTTP(p Providers, next http.RoundTripper) http.RoundTripper {
	return transport(p, next, func(_ string, r *http.Request) string { return r.Method })
}

// Kubernetes wraps the transport of a Kubernetes client (rest.Config.Wrap). Spans are named for the verb and the
// resource ("DELETE pods"). An exec is left to the span of whoever runs it: its address would show the whole command.
func Kubernetes(p Providers) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return transport(p, gone{next}, func(_ string, r *http.Request) string {
			return strings.TrimSpace(r.Method + " " + resource(r.URL.Path))
		})
	}
}

// AWS returns cfg with spans around every call of the clients made from it.
func AWS(p Providers, cfg aws.Config) aws.Config {
	cfg = cfg.Copy()
	otelaws.AppendMiddlewares(&cfg.APIOptions,
		otelaws.WithTracerProvider(below{p.TracerProvider()}),
		otelaws.WithTextMapPropagator(propagation.NewCompositeTextMapPropagator()), // AWS has no use for our trace ids
		otelaws.WithAttributeBuilder(otelaws.DefaultAttributeBuilder),
	)
	cfg.APIOptions = append(cfg.APIOptions, goneFromAWS)
	return cfg
}

// below makes tracers for a library that has no filter of its own.
type below struct{ trace.TracerProvider }

// Tracer implements trace.TracerProvider.
func (b below) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return belowTracer{b.TracerProvider.Tracer(name, options...)}
}

type belowTracer struct{ trace.Tracer }

// Start implements trace.Tracer.
func (b belowTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, noop.Span{}
	}
	return b.Tracer.Start(ctx, name, options...)
}

func transport(p Providers, next http.RoundTripper, name func(string, *http.Request) string) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return otelhttp.NewTransport(next,
		otelhttp.WithTracerProvider(p.TracerProvider()),
		otelhttp.WithMeterProvider(p.MeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithSpanNameFormatter(name),
		otelhttp.WithFilter(func(r *http.Request) bool {
			return trace.SpanFromContext(r.Context()).IsRecording() && !strings.HasSuffix(r.URL.Path, "/exec")
		}),
	)
}

// resource reads the resource and subresource from the path of a Kubernetes request:
// /api/v1/namespaces/{namespace}/pods/{name}/log and /apis/{group}/{version}/… .
func resource(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		parts = parts[3:]
	default:
		return ""
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	if len(parts) > 2 {
		return parts[0] + "/" + parts[2]
	}
	return parts[0]
}
