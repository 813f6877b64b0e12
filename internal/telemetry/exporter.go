package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"regexp"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrUnconfirmed marks an export that failed after the request may have reached the collector. Sending the same
// spans again could show them twice.
var ErrUnconfirmed = errors.New("the collector may or may not have taken it")

// wanted reports whether a signal (TRACES, METRICS) is to be exported, and by which protocol. Unlike the
// specification, nothing is sent unless an endpoint or exporter is named: a service that nobody gave a collector
// does not go looking for one on every delivery.
func wanted(signal string, getenv func(string) string) (protocol string, ok bool, err error) {
	if strings.EqualFold(strings.TrimSpace(getenv("OTEL_SDK_DISABLED")), "true") {
		return "", false, nil
	}
	exporterVar := "OTEL_" + signal + "_EXPORTER"
	switch exporter := strings.TrimSpace(getenv(exporterVar)); exporter {
	case "otlp":
	case "none":
		return "", false, nil
	case "":
		if getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") == "" {
			return "", false, nil
		}
	default:
		return "", false, fmt.Errorf("%s: %q is not one of otlp, none", exporterVar, exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch protocol := strings.TrimSpace(getenv(name)); protocol {
		case "":
			continue
		case "http/protobuf", "http/json", "grpc":
			return protocol, true, nil
		default:
			return "", false, fmt.Errorf("%s: %q is not one of http/protobuf, http/json, grpc", name, protocol)
		}
	}
	return "http/protobuf", true, nil
}

// The exporters' own retries are off: they wait five seconds before the first one, and cannot tell a batch that
// was refused from one whose answer was lost.

func spanExporter(ctx context.Context, getenv func(string) string) (sdktrace.SpanExporter, error) {
	protocol, ok, err := wanted("TRACES", getenv)
	switch {
	case err != nil || !ok:
		return nil, err
	case protocol == "grpc":
		e, err := otlptracegrpc.New(ctx, otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{}))
		if err != nil {
			return nil, fmt.Errorf("open the span exporter: %w", err)
		}
		return e, nil
	default:
		e, err := otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
		if err != nil {
			return nil, fmt.Errorf("open the span exporter: %w", err)
		}
		return e, nil
	}
}

func metricExporter(ctx context.Context, getenv func(string) string) (sdkmetric.Exporter, error) {
	protocol, ok, err := wanted("METRICS", getenv)
	switch {
	case err != nil || !ok:
		return nil, err
	case protocol == "grpc":
		e, err := otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{}))
		if err != nil {
			return nil, fmt.Errorf("open the metric exporter: %w", err)
		}
		return e, nil
	default:
		e, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}))
		if err != nil {
			return nil, fmt.Errorf("open the metric exporter: %w", err)
		}
		return e, nil
	}
}

// exportSpans sends spans and waits for the answer, no longer than ctx allows. The error is ErrUnconfirmed unless
// it is certain that no connection was made, or an answer came that refuses the spans.
func exportSpans(ctx context.Context, e sdktrace.SpanExporter, spans []sdktrace.ReadOnlySpan) error {
	var dialled, connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { dialled.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	err := e.ExportSpans(ctx, spans)
	switch {
	case err == nil:
		return nil
	case dialled.Load() && !connected.Load(), undialled(err), refused.MatchString(err.Error()):
		return fmt.Errorf("export %d spans: %w", len(spans), err)
	default:
		return fmt.Errorf("export %d spans: %w: %w", len(spans), ErrUnconfirmed, err)
	}
}

// undialled reports whether gRPC had no connection to send anything over. It calls that Unavailable, like a connection that
// breaks later, and tells the two apart by this text only.
func undialled(err error) bool {
	return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "transport: Error while dialing")
}

// refused matches the error of an export of which the collector has answered that it does not take the spans: a 4xx. Any
// 5xx may come from a proxy that would not wait, or from a collector that had stored a part. The HTTP exporter has no
// error for that but this text, in which a 429 is like 502, 503 and 504.
var refused = regexp.MustCompile(`^traces export: failed to send to \S+: 4\d\d `)
