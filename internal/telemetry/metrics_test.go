package telemetry_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// pushed keeps what Flush pushes, with the temporality of the OTLP exporter's default.
type pushed struct{ last map[string]metricdata.Metrics }

func (*pushed) Temporality(sdkmetric.InstrumentKind) metricdata.Temporality {
	return metricdata.CumulativeTemporality
}
func (*pushed) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}
func (p *pushed) Export(_ context.Context, rm *metricdata.ResourceMetrics) error {
	p.last = map[string]metricdata.Metrics{}
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			p.last[m.Name] = m
		}
	}
	return nil
}
func (*pushed) ForceFlush(context.Context) error { return nil }
func (*pushed) Shutdown(context.Context) error   { return nil }

func withMetrics(t *testing.T) (*telemetry.Telemetry, *pushed) {
	t.Helper()
	p := &pushed{}
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: env{}.get, Metrics: p})
	require.NoError(t, err)
	return tel, p
}

// recordEverything makes every instrument report.
func recordEverything(ctx context.Context, m *telemetry.Metrics) {
	m.SweepDone(ctx, 1500*time.Millisecond, "completed")
	m.SweepSkipped(ctx, "lease held")
	m.Ended(ctx, "expired", 3)
	m.Warned(ctx, 30, 12*time.Second)
	m.StepTried(ctx, "pod", "done", 2*time.Second, 2, true)
	m.EventAnswered(ctx, "dev.knative.sources.ping", 202)
	m.SweepLevels(ctx, telemetry.Levels{
		FinishedAt: noon, SinceLastSweep: time.Minute, Reservations: map[string]int64{"active": 7, "queued": 1},
		BrakeEngaged: true, OldestCleanup: time.Hour,
	})
}

func TestMetricsHaveTheNamesAndUnitsThatRulesAndDashboardsRelyOn(t *testing.T) {
	t.Parallel()
	tel, p := withMetrics(t)
	recordEverything(t.Context(), tel.Metrics)
	require.NoError(t, tel.Flush(t.Context()))
	units := map[string]string{}
	for name, m := range p.last {
		require.NotEmpty(t, m.Description, name)
		units[name] = m.Unit
	}
	require.Equal(t, map[string]string{
		"reservation_expiry.sweep.duration":               "s",
		"reservation_expiry.sweep.skipped":                "{tick}",
		"reservation_expiry.sweep.last_finished":          "s",
		"reservation_expiry.sweep.age":                    "s",
		"reservation_expiry.reservations":                 "{reservation}",
		"reservation_expiry.reservations.overdue":         "{reservation}",
		"reservation_expiry.endings":                      "{reservation}",
		"reservation_expiry.warning.lateness":             "s",
		"reservation_expiry.cleanup.step.duration":        "s",
		"reservation_expiry.cleanup.step.attempts":        "{attempt}",
		"reservation_expiry.cleanups.unfinished":          "{cleanup}",
		"reservation_expiry.cleanups.stuck":               "{cleanup}",
		"reservation_expiry.cleanups.oldest_age":          "s",
		"reservation_expiry.disks.held":                   "{disk}",
		"reservation_expiry.snapshots.pending":            "{snapshot}",
		"reservation_expiry.snapshots.oldest_pending_age": "s",
		"reservation_expiry.brake.engaged":                "",
		"reservation_expiry.paused":                       "",
		"reservation_expiry.events":                       "{event}",
		"reservation_expiry.outbox.depth":                 "{event}",
		"reservation_expiry.dead_letters":                 "{event}",
	}, units)
}

// inPrometheus gives the names under which a metric's series are found, by the default translation from OTLP.
func inPrometheus(m metricdata.Metrics) []string {
	name := strings.ReplaceAll(m.Name, ".", "_")
	if m.Unit == "s" {
		name += "_seconds"
	}
	switch m.Data.(type) {
	case metricdata.Sum[int64]:
		return []string{name + "_total"}
	case metricdata.Histogram[float64], metricdata.Histogram[int64]:
		return []string{name + "_bucket", name + "_count", name + "_sum"}
	}
	return []string{name}
}

func TestRulesAndDashboardNameOnlyMetricsThatExistAndTheReferenceNamesAll(t *testing.T) {
	t.Parallel()
	const monitoring = "../../docs/monitoring/"
	tel, p := withMetrics(t)
	recordEverything(t.Context(), tel.Metrics)
	require.NoError(t, tel.Flush(t.Context()))
	reference, err := os.ReadFile(monitoring + "README.md")
	require.NoError(t, err)
	exists := map[string]bool{}
	for name, m := range p.last {
		for _, series := range inPrometheus(m) {
			exists[series] = true
		}
		last := name[strings.LastIndex(name, "."):]
		require.Regexp(t, "`("+regexp.QuoteMeta(name)+"|"+regexp.QuoteMeta(last)+")`", string(reference), name)
	}
	for _, file := range []string{"rules.yaml", "rules_test.yaml", "dashboard.json"} {
		text, err := os.ReadFile(monitoring + file)
		require.NoError(t, err)
		named := regexp.MustCompile(`reservation_expiry_[a-z_]+`).FindAllString(string(text), -1)
		require.NotEmpty(t, named)
		for _, name := range named {
			require.Contains(t, exists, name, file)
		}
	}
}

func TestMetricsCarryTheValuesTheyWereGiven(t *testing.T) {
	t.Parallel()
	tel, p := withMetrics(t)
	recordEverything(t.Context(), tel.Metrics)
	require.NoError(t, tel.Flush(t.Context()))

	sweep := p.last["reservation_expiry.sweep.duration"].Data.(metricdata.Histogram[float64]).DataPoints[0]
	require.InDelta(t, 1.5, sweep.Sum, 1e-9)
	outcome, _ := sweep.Attributes.Value("outcome")
	require.Equal(t, "completed", outcome.AsString())

	age := p.last["reservation_expiry.sweep.age"].Data.(metricdata.Gauge[float64]).DataPoints[0]
	require.InDelta(t, 60, age.Value, 1e-9)
	last := p.last["reservation_expiry.sweep.last_finished"].Data.(metricdata.Gauge[float64]).DataPoints[0]
	require.InDelta(t, noon.Unix(), last.Value, 1e-9)
	endings := p.last["reservation_expiry.endings"].Data.(metricdata.Sum[int64]).DataPoints[0]
	require.EqualValues(t, 3, endings.Value)
	brake := p.last["reservation_expiry.brake.engaged"].Data.(metricdata.Gauge[int64]).DataPoints[0]
	require.EqualValues(t, 1, brake.Value)
	require.Len(t, p.last["reservation_expiry.reservations"].Data.(metricdata.Gauge[int64]).DataPoints, 2)
	warned := p.last["reservation_expiry.warning.lateness"].Data.(metricdata.Histogram[float64]).DataPoints[0]
	require.InDelta(t, 12, warned.Sum, 1e-9)
}

func TestAnInstanceThatSweptHoursAgoNoLongerSaysWhatItFound(t *testing.T) {
	t.Parallel()
	tel, p := withMetrics(t)
	recordEverything(t.Context(), tel.Metrics)
	require.NoError(t, tel.Flush(t.Context()))
	tel.Metrics.EventAnswered(t.Context(), "dev.gpudev.expiry.cleanup.requested.v1", 202)
	require.NoError(t, tel.Flush(t.Context()))
	require.NotContains(t, p.last, "reservation_expiry.reservations")
	require.Contains(t, p.last, "reservation_expiry.sweep.duration", "what is counted goes on being counted")
}

func TestASweepThatFailedOrWasDryDidNotFinish(t *testing.T) {
	t.Parallel()
	tel, p := withMetrics(t)
	for _, outcome := range []string{"failed", "dry-run"} {
		tel.Metrics.SweepDone(t.Context(), time.Second, outcome)
	}
	tel.Metrics.SweepLevels(t.Context(), telemetry.Levels{})
	require.NoError(t, tel.Flush(t.Context()))
	require.Len(t, p.last["reservation_expiry.sweep.duration"].Data.(metricdata.Histogram[float64]).DataPoints, 2)
	require.NotContains(t, p.last, "reservation_expiry.sweep.last_finished")
}
