package sweep

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// pushed keeps the metrics that were pushed last, by name.
type pushed map[string]metricdata.Metrics

func (pushed) Temporality(sdkmetric.InstrumentKind) metricdata.Temporality {
	return metricdata.CumulativeTemporality
}

func (pushed) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

func (p pushed) Export(_ context.Context, rm *metricdata.ResourceMetrics) error {
	clear(p)
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			p[strings.TrimPrefix(m.Name, "reservation_expiry.")] = m
		}
	}
	return nil
}

func (pushed) ForceFlush(context.Context) error { return nil }
func (pushed) Shutdown(context.Context) error   { return nil }

// level returns the one value of a gauge, or that of a status.
func (p pushed) level(t *testing.T, name, status string) float64 {
	t.Helper()
	switch data := p[name].Data.(type) {
	case metricdata.Gauge[int64]:
		for _, point := range data.DataPoints {
			if value, ok := point.Attributes.Value("status"); !ok || value.AsString() == status {
				return float64(point.Value)
			}
		}
	case metricdata.Gauge[float64]:
		return data.DataPoints[0].Value
	}
	t.Fatalf("no level %s was pushed", name)
	return 0
}

func TestASweepMeasuresWhatItFindsAndLinksToWhatItActsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sweep() // the one before
	ids := w.insert(
		row{"expires_at": ago(time.Hour), "user_id": "'ada'", "gpu_type": "'h100'", "pod_name": "'gpu-dev-1'", "namespace": "'gpu-dev'"}, // expires
		row{"expires_at": ahead(10 * time.Minute)}, // is warned
		row{}, row{"status": "'queued'"},
	)
	spans, metrics := tracetest.NewInMemoryExporter(), pushed{}
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans, Metrics: metrics})
	require.NoError(t, err)
	traced := func(o *Options) { o.Trace = tel }
	ctx, span := tel.StartDelivery(t.Context(), "sweep")
	_, err = w.sweeper(traced).Sweep(ctx, event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	span.End("completed", nil)
	require.NoError(t, tel.Flush(t.Context()))

	swept, ok := metrics["sweep.duration"].Data.(metricdata.Histogram[float64])
	require.True(t, ok)
	outcome, _ := swept.DataPoints[0].Attributes.Value("outcome")
	require.Equal(t, string(Completed), outcome.AsString(), "the word of the sweep's span and row")
	require.InDelta(t, 2, metrics.level(t, "reservations", "active"), 0)
	require.InDelta(t, 1, metrics.level(t, "reservations", "expired"), 0)
	require.InDelta(t, 0, metrics.level(t, "reservations.overdue", ""), 0)
	require.InDelta(t, 1, metrics.level(t, "cleanups.unfinished", ""), 0)
	require.Positive(t, metrics.level(t, "sweep.age", ""))
	require.InDelta(t, 0, metrics.level(t, "paused", ""), 0)
	require.InDelta(t, float64(time.Now().Unix()), metrics.level(t, "sweep.last_finished", ""), 60)
	endings, ok := metrics["endings"].Data.(metricdata.Sum[int64])
	require.True(t, ok)
	require.Len(t, endings.DataPoints, 1)
	reason, _ := endings.DataPoints[0].Attributes.Value("reason")
	require.Equal(t, "deadline", reason.AsString())

	byName := map[string]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		byName[s.Name] = s
	}
	mark := byName["expire"]
	require.Equal(t, telemetry.TraceID(ids[0]), mark.SpanContext.TraceID())
	require.Equal(t, telemetry.RootSpanID(ids[0]), mark.Parent.SpanID())
	said := map[string]string{}
	for _, a := range mark.Attributes {
		said[string(a.Key)] = a.Value.String()
	}
	require.Equal(t, "expired", said["reservation.outcome"])
	require.Equal(t, "ada", said["user.id"])
	require.Equal(t, "h100", said["gpu.type"])
	require.Equal(t, "gpu-dev-1", said["k8s.pod.name"])
	require.Equal(t, "gpu-dev", said["k8s.namespace.name"])
	require.Equal(t, byName["sweep"].SpanContext.TraceID(), mark.Links[0].SpanContext.TraceID())
	linked := map[string]bool{}
	for _, link := range byName["sweep"].Links {
		linked[link.SpanContext.TraceID().String()] = true
	}
	require.True(t, linked[telemetry.TraceID(ids[0]).String()])
	require.True(t, linked[telemetry.TraceID(ids[1]).String()], "also to the one that is warned")
	var asked string
	require.NoError(t, w.raw.QueryRow(t.Context(), "select traceparent from expiry.follow_ups where kind = 'cleanup' and reservation_id = $1", ids[0]).Scan(&asked))
	require.Contains(t, asked, byName["sweep"].SpanContext.TraceID().String(), "what is asked for knows by whom")
}

func TestEachWayToEndIsCountedUnderAWordOfItsOwn(t *testing.T) {
	t.Parallel()
	for want, ending := range map[string]struct {
		part   string
		action Action
	}{"deadline": {"deadlines", Expire}, "pods expired": {"pods", Expire}, "pods failed": {"pods", Fail}, "stuck cancelled": {"stuck", Cancel}} {
		require.Equal(t, want, part{name: ending.part}.reason(Decision{Action: ending.action}))
	}
}

func TestWhateverBecomesOfASweepItsDurationIsMeasured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	metrics := pushed{}
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Metrics: metrics})
	require.NoError(t, err)
	sweeper := w.sweeper(func(o *Options) { o.Trace = tel })
	_, err = sweeper.Sweep(t.Context(), event.SweepRequested, event.SweepRequest{DryRun: true})
	require.NoError(t, err)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = sweeper.Sweep(cancelled, event.Ping, event.SweepRequest{})
	require.Error(t, err)
	opts := testOptions()
	opts.Trace = tel
	r, err := New(unfinishable{w.db}, Outside{}, opts).Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.Error(t, err)
	require.Equal(t, Failed, r.Outcome, "nobody knows that it completed")
	require.NoError(t, tel.Flush(t.Context()))
	require.NotContains(t, metrics, "sweep.last_finished")
	durations, ok := metrics["sweep.duration"].Data.(metricdata.Histogram[float64])
	require.True(t, ok)
	outcomes := map[string]uint64{}
	for _, point := range durations.DataPoints {
		outcome, _ := point.Attributes.Value("outcome")
		outcomes[outcome.AsString()] = point.Count
	}
	require.Equal(t, map[string]uint64{"dry-run": 1, "failed": 2}, outcomes)
}

func TestASweepWhoseLevelsAreUnknownLeavesTheWordToTheLastThatKnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	metrics := pushed{}
	opts := testOptions()
	var err error
	opts.Trace, err = telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Metrics: metrics})
	require.NoError(t, err)
	w.run(New(unmeasurable{w.db}, Outside{}, opts), event.SweepRequest{})
	require.NoError(t, opts.Trace.Flush(t.Context()))
	require.Contains(t, metrics, "sweep.duration", "it is counted all the same")
	require.NotContains(t, metrics, "sweep.last_finished")
}

// unmeasurable is a database that is too slow to be asked for levels.
type unmeasurable struct{ *postgres.DB }

func (unmeasurable) Punctuality(context.Context, string, time.Time, time.Duration) (postgres.Punctuality, error) {
	return postgres.Punctuality{}, context.DeadlineExceeded
}

// unfinishable is a database that is gone by the time at which a sweep ends.
type unfinishable struct{ *postgres.DB }

func (unfinishable) FinishSweep(context.Context, postgres.SweepLease, postgres.SweepEnd) (time.Time, error) {
	return time.Time{}, fault.Errorf(fault.Transient, "no connection")
}
