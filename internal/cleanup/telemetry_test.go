package cleanup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
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

func TestEachLineOfACleanupGivesItsReason(t *testing.T) {
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
