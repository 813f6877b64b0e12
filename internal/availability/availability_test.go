package availability_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/availability"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// updater counts its invocations; during runs within one.
type updater struct {
	mu     sync.Mutex
	count  int
	err    error
	during func()
}

func (u *updater) Invoke(context.Context, []byte) error {
	u.mu.Lock()
	u.count++
	during, err := u.during, u.err
	u.mu.Unlock()
	if during != nil {
		during()
	}
	return err
}

func newRunner(t *testing.T, u availability.Invoker) (*postgres.DB, *followup.Runner) {
	t.Helper()
	return newTracedRunner(t, u, nil)
}

func newTracedRunner(t *testing.T, u availability.Invoker, tel *telemetry.Telemetry) (*postgres.DB, *followup.Runner) {
	t.Helper()
	url := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	sql, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = sql.Close(t.Context()) }()
	_, err = sql.Exec(t.Context(), "insert into reservations (reservation_id, status) values ('a', 'expired'), ('b', 'failed'), ('c', 'cancelled')")
	require.NoError(t, err)
	for _, id := range []string{"a", "b", "c"} {
		_, err := db.EnsureCleanup(t.Context(), id)
		require.NoError(t, err)
	}
	quiet := slog.New(slog.DiscardHandler)
	actions := map[postgres.FollowUpKind]followup.Action{postgres.AvailabilityUpdate: availability.New(u, availability.Options{Log: quiet, Trace: tel})}
	return db, followup.NewRunner(db, actions, followup.Options{Log: quiet})
}

// mark is what a cleanup does whose pod is gone.
func mark(t *testing.T, db *postgres.DB, reservationID string) {
	t.Helper()
	require.NoError(t, db.RecordIdentity(t.Context(), reservationID, postgres.Identity{PodUID: reservationID}, "done", ""))
	require.NoError(t, db.RecordPodGone(t.Context(), reservationID, "done", ""))
}

func TestOneInvocationClearsTheMarksOfAllCleanups(t *testing.T) {
	t.Parallel()
	u := &updater{}
	db, runner := newRunner(t, u)
	for _, id := range []string{"a", "b", "c"} {
		mark(t, db, id)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { _, _ = runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey) })
	}
	all.Wait()
	require.Equal(t, 1, u.count)
	report, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	require.Equal(t, followup.StateAlready, report.State)
	require.Equal(t, 1, u.count)
}

func TestAMarkSetDuringAnInvocationAsksForAnother(t *testing.T) {
	t.Parallel()
	u := &updater{}
	db, runner := newRunner(t, u)
	mark(t, db, "a")
	u.during = func() { u.during = nil; mark(t, db, "b") }
	for range 3 {
		_, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
		require.NoError(t, err)
	}
	require.Equal(t, 2, u.count)
}

func TestACleanupMarksOnce(t *testing.T) {
	t.Parallel()
	u := &updater{}
	db, runner := newRunner(t, u)
	mark(t, db, "a")
	_, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	mark(t, db, "a")
	report, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	require.Equal(t, followup.StateAlready, report.State)
}

func TestAFailedInvocationKeepsTheMark(t *testing.T) {
	t.Parallel()
	u := &updater{err: errors.New("throttled")}
	db, runner := newRunner(t, u)
	mark(t, db, "a")
	report, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "throttled")
}

func TestAnInvocationIsATraceOfItsOwnThatLeadsToWhoAsked(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	u := &updater{err: errors.New("throttled")}
	db, runner := newTracedRunner(t, u, tel)
	mark(t, db, "a")
	const asked = "00-000102030405060708090a0b0c0d0e0f-0102030405060708-01"
	cause := []attribute.KeyValue{attribute.String("faas.trigger", "pubsub")}
	ctx := telemetry.WithDelivery(telemetry.WithTraceParent(t.Context(), asked), cause)
	_, err = runner.Run(ctx, postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	require.NoError(t, tel.Flush(t.Context()))
	require.Len(t, spans.GetSpans(), 1)
	update := spans.GetSpans()[0]
	require.Equal(t, "availability.update", update.Name)
	require.False(t, update.Parent.IsValid(), "whoever asked may never be exported")
	require.Equal(t, asked[3:35], update.Links[0].SpanContext.TraceID().String())
	require.Subset(t, update.Attributes, append(cause, telemetry.KeyDeliveryOutcome.String("error")))
}

func TestWithoutAFunctionTheUpdateIsSkipped(t *testing.T) {
	t.Parallel()
	db, runner := newRunner(t, nil)
	mark(t, db, "a")
	report, err := runner.Run(t.Context(), postgres.AvailabilityUpdate, event.AvailabilityKey)
	require.NoError(t, err)
	require.Equal(t, "skipped", report.Outcome)
}
