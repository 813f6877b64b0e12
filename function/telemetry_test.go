package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// pushed takes metrics and keeps those that were pushed last.
type pushed struct {
	mu   sync.Mutex
	last map[string]metricdata.Aggregation // by name
}

// Temporality implements sdkmetric.Exporter.
func (*pushed) Temporality(k sdkmetric.InstrumentKind) metricdata.Temporality {
	return sdkmetric.DefaultTemporalitySelector(k)
}

// Aggregation implements sdkmetric.Exporter.
func (*pushed) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

// Export implements sdkmetric.Exporter.
func (p *pushed) Export(_ context.Context, rm *metricdata.ResourceMetrics) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = map[string]metricdata.Aggregation{}
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			p.last[m.Name] = m.Data
		}
	}
	return nil
}

// ForceFlush implements sdkmetric.Exporter.
func (*pushed) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdkmetric.Exporter.
func (*pushed) Shutdown(context.Context) error { return nil }

func (p *pushed) telemetry(t *testing.T) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Metrics: p})
	require.NoError(t, err)
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return tel
}

// count returns what a counter has counted under a word.
func (p *pushed) count(name, key, word string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum, _ := p.last["reservation_expiry."+name].(metricdata.Sum[int64])
	for _, point := range sum.DataPoints {
		if value, ok := point.Attributes.Value(attribute.Key(key)); ok && value.AsString() == word {
			return point.Value
		}
	}
	return 0
}

func TestASweepsSpansAreSentWhileItsFollowUpsAre(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	d := newDesk(t)
	d.telemetry = tel
	d.due = func() error {
		require.Eventually(t, func() bool { return len(spans.GetSpans()) > 0 }, 10*time.Second, time.Millisecond)
		return nil
	}
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode)
	got := spans.GetSpans()
	require.Len(t, got, 2)
	require.Equal(t, "sweep", got[0].Name)
	require.Equal(t, "send", got[1].Name)
	require.Equal(t, got[0].SpanContext.SpanID(), got[1].Parent.SpanID())
	require.Contains(t, got[1].Attributes, telemetry.KeyDeliveryOutcome.String("sent"))
}

func TestAPostedDryRunChangesNothingThoughSomebodyCollectsTelemetry(t *testing.T) {
	t.Parallel()
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(collector.Close)
	b := newBase(t)
	b.withWorld("OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "BRAKE_MIN=100", "HOME="+t.TempDir())
	p := startProcess(t, b.database, b.environ...)
	overdue := b.reservation(-time.Hour)
	b.reservation(10 * time.Minute)
	before := b.dump()

	response := p.post(t, "/", binary(event.SweepRequested, "Accept: application/json"), `{"dryRun": true}`)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, text(t, response), overdue)
	require.Equal(t, before, b.dump())

	require.Eventually(t, func() bool { // on a slow machine the first one's time for that may be over
		return p.post(t, "/", binary(event.SweepRequested), `{}`).StatusCode == http.StatusAccepted &&
			b.text("select count(*)::text from expiry.traces") != "0"
	}, time.Minute, 10*time.Millisecond, "a sweep that is none does write them")
}

func TestTraceSaysWhatToDoWhereThereIsNothingToDraw(t *testing.T) {
	t.Parallel()
	const missing = "reservation-expiry: JAEGER_QUERY_URL is missing: the address of Jaeger's query service, such as http://jaeger-query:16686"
	b := newBase(t)
	require.Equal(t, missing, complaint(t, b.run(2, "trace", "nobody")))
	plain := b.environ
	b.environ = append(slices.Clip(plain), "JAEGER_QUERY_URL="+stacktest.Env(t, "JAEGER_QUERY_URL"))
	for _, id := range []string{"5f0c2d1e-93b4-4b2b-8a57-6f3f6f0b2c11", "nobody"} { // of one whose row is gone the trace may still be there
		require.Equal(t, "reservation-expiry: jaeger has no trace of reservation "+id+
			": none was sent, it is forgotten already, nothing has happened yet, or that is not its whole id", complaint(t, b.run(1, "trace", id)))
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	b.environ = append(slices.Clip(plain), "JAEGER_QUERY_URL="+closed.URL)
	require.Contains(t, complaint(t, b.run(1, "trace", "nobody")), "cannot ask Jaeger (check JAEGER_QUERY_URL): ")
}
