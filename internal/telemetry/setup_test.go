package telemetry_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	reservationID = "0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801"
	otherID       = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// env answers Getenv from a map.
type env map[string]string

func (e env) get(name string) string { return e[name] }

// inMemory returns a Telemetry whose spans can be read after Flush.
func inMemory(t *testing.T, e env) (*telemetry.Telemetry, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: e.get, Spans: spans, Now: func() time.Time { return noon }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tel.Shutdown(context.Background())) })
	return tel, spans
}

// flushed returns the spans exported so far, by name.
func flushed(t *testing.T, tel *telemetry.Telemetry, spans *tracetest.InMemoryExporter) map[string]tracetest.SpanStub {
	t.Helper()
	require.NoError(t, tel.Flush(t.Context()))
	byName := map[string]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		require.NotContains(t, byName, s.Name, "exported once")
		byName[s.Name] = s
	}
	return byName
}

func attributes(s tracetest.SpanStub) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func TestSetupNamesEveryWrongVariable(t *testing.T) {
	t.Parallel()
	_, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: env{
		"OTEL_TRACES_SAMPLER":         "sometimes",
		"OTEL_TRACES_EXPORTER":        "zipkin",
		"OTEL_METRICS_EXPORTER":       "otlp",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke",
	}.get})
	require.ErrorContains(t, err, "OTEL_TRACES_SAMPLER")
	require.ErrorContains(t, err, "OTEL_TRACES_EXPORTER")
	require.ErrorContains(t, err, "OTEL_EXPORTER_OTLP_PROTOCOL")
}

func TestSetupRefusesARatioThatIsNone(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"lots", "-0.1", "1.1", "NaN"} {
		_, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: env{
			"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": arg,
		}.get})
		require.ErrorContains(t, err, "OTEL_TRACES_SAMPLER_ARG", arg)
	}
}

func TestWithoutACollectorNothingIsExportedAndTraceIDsAreReal(t *testing.T) {
	t.Parallel()
	for name, e := range map[string]env{
		"nothing set":   {},
		"switched off":  {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
		"exporter none": {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: e.get})
			require.NoError(t, err)
			require.False(t, tel.Exporting())
			ctx, span := tel.StartDelivery(t.Context(), "sweep")
			require.True(t, trace.SpanContextFromContext(ctx).IsValid())
			require.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`, telemetry.TraceParent(ctx))
			span.End("completed", nil)
			tel.Metrics.SweepDone(ctx, time.Second, "completed")
			require.NoError(t, tel.Flush(ctx))
			require.NoError(t, tel.Export(ctx, telemetry.Record{Reservation: telemetry.Reservation{ID: reservationID}}))
			require.NoError(t, tel.Shutdown(ctx))
		})
	}
}

func TestTheProcessSaysWhoItIs(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, env{"K_SERVICE": "reservation-expiry", "K_REVISION": "reservation-expiry-00007", "POD_NAME": "p", "AWS_REGION": "us-east-2"})
	_, span := tel.StartDelivery(t.Context(), "sweep")
	span.End("completed", nil)
	got := map[string]string{}
	for _, a := range flushed(t, tel, spans)["sweep"].Resource.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	require.Equal(t, "reservation-expiry", got["service.name"])
	require.Equal(t, "reservation-expiry-00007", got["faas.version"])
	require.Equal(t, "us-east-2", got["cloud.region"])
	require.Equal(t, "p", got["k8s.pod.name"])
	require.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]`, got["service.instance.id"])
	require.NotEmpty(t, got["service.version"])
	require.NotContains(t, got, "k8s.namespace.name", "what is not known is not claimed")
}
