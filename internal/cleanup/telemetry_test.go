package cleanup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestTheSpansSayHowTheCleanupEnded(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	const takenOver = "update disks set in_use = false, reservation_id = null"
	for name, c := range map[string]struct {
		statement     string
		cleanup, disk string
	}{
		"released":                   {"select", postgres.OutcomeReleased, postgres.OutcomeReleased},
		"the disk is in other hands": {takenOver, postgres.OutcomeSuperseded, postgres.OutcomeSuperseded},
		"the reservation is live":    {"update reservations set status = 'active'", postgres.Void, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			said := w.traced(t)
			release := w.keep
			w.keep = func(r postgres.CleanupRecord) (followup.Result, error) {
				verdict, err := w.db.WithDisk(t.Context(), r.ReservationID, nil)
				if err != nil || verdict == postgres.DiskOurs {
					return release(r)
				}
				return followup.Recorded(string(verdict)), nil
			}
			w.stand(t)
			w.request(t)
			w.exec(t, c.statement)
			require.Equal(t, followup.StateDone, w.deliver(t.Context(), t).State)
			outcomes := said()
			require.Equal(t, c.cleanup, outcomes["cleanup"])
			require.Equal(t, c.disk, outcomes["disk"])
		})
	}
}

func TestACleanupThatIsCalledOffHasNotFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said := w.traced(t)
	w.stand(t)
	w.request(t)
	ctx, stop := context.WithCancel(t.Context())
	w.keep = func(postgres.CleanupRecord) (followup.Result, error) {
		stop()
		return followup.Result{}, fmt.Errorf("describe volume: %w", ctx.Err())
	}
	require.Equal(t, followup.StateHandedBack, w.deliver(ctx, t).State)
	outcomes := said()
	require.Equal(t, "interrupted", outcomes["cleanup"])
	require.Equal(t, "interrupted", outcomes["disk"])
}

func TestAFailedStepIsFoundByItsName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said := w.traced(t)
	w.stand(t)
	w.request(t)
	w.keep = func(postgres.CleanupRecord) (followup.Result, error) {
		return followup.Result{}, errors.New("EC2 is away")
	}
	require.Equal(t, followup.StateFailed, w.deliver(t.Context(), t).State)
	outcomes := said()
	require.Equal(t, "disk", outcomes["failed disk"])
	require.NotContains(t, outcomes, "failed pod")
}

// attempts are those that each finished step took, as they were pushed last.
type attempts map[string]int64

func (attempts) Temporality(sdkmetric.InstrumentKind) metricdata.Temporality {
	return metricdata.CumulativeTemporality
}

func (attempts) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

func (a attempts) Export(_ context.Context, rm *metricdata.ResourceMetrics) error {
	for _, m := range rm.ScopeMetrics[0].Metrics {
		if m.Name != "reservation_expiry.cleanup.step.attempts" {
			continue
		}
		for _, point := range m.Data.(metricdata.Histogram[int64]).DataPoints {
			step, _ := point.Attributes.Value("step")
			a[step.AsString()] = point.Sum
		}
	}
	return nil
}

func (attempts) ForceFlush(context.Context) error { return nil }
func (attempts) Shutdown(context.Context) error   { return nil }

func TestTheAttemptsOfAStepAreCountedOnceItIsDone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	taken, spans := attempts{}, tracetest.NewInMemoryExporter()
	var err error
	w.trace, err = telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans, Metrics: taken})
	require.NoError(t, err)
	w.build(func(*cleanup.World) {})
	w.stand(t)
	w.request(t)
	finish := w.keep
	for _, c := range []struct {
		keep  func(postgres.CleanupRecord) (followup.Result, error)
		taken int64
	}{
		{func(postgres.CleanupRecord) (followup.Result, error) {
			return followup.Result{}, errors.New("EC2 is away")
		}, 0},
		{func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(time.Minute), nil }, 0},
		{finish, 2}, // waiting is no failure
	} {
		w.keep = c.keep
		w.deliver(t.Context(), t)
		require.NoError(t, w.trace.Flush(t.Context()))
		require.Equal(t, c.taken, taken["disk"])
		require.EqualValues(t, 1, taken["pod"])
	}
	var said []int64 // by the spans
	for _, s := range spans.GetSpans() {
		for _, a := range s.Attributes {
			if s.Name == "disk" && a.Key == telemetry.KeyAttempt {
				said = append(said, a.Value.AsInt64())
			}
		}
	}
	require.Equal(t, []int64{1, 2, 2}, said)
}

func TestEachLineOfACleanupGivesItsOutcomeAndReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	var out bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&out, nil))
	w.build(func(*cleanup.World) {})
	require.Equal(t, followup.StateDone, w.deliver(t.Context(), t).State)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, len(postgres.Steps())+1, "the steps, and that it is settled")
	for _, line := range lines {
		require.Regexp(t, `reason=[^ ]*[a-z]`, line)
		require.Regexp(t, `outcome=[a-z]`, line)
	}
}

// traced has the spans of what follows kept; the function it returns gives the outcome of each, by name, and which is an error.
func (w *world) traced(t *testing.T) func() map[string]string {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	var err error
	w.trace, err = telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	w.build(func(*cleanup.World) {})
	return func() map[string]string {
		require.NoError(t, w.trace.Flush(t.Context()))
		outcomes := map[string]string{}
		for _, s := range spans.GetSpans() {
			for _, a := range s.Attributes {
				if a.Key == telemetry.KeyCleanupFailed {
					outcomes["failed "+a.Value.AsString()] = s.Name
				}
				if a.Key == telemetry.KeyReservationOutcome {
					outcomes[s.Name] = a.Value.AsString()
					if s.Status.Code == codes.Error {
						outcomes[s.Name] += " ERROR"
					}
				}
			}
		}
		return outcomes
	}
}
