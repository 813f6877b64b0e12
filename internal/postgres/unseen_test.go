package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// seen collects the statements that would make a span.
type seen struct{ statements []string }

func (s *seen) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if trace.SpanFromContext(ctx).IsRecording() {
		s.statements = append(s.statements, data.SQL)
	}
	return ctx
}

func (s *seen) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestPickingWorkAndCheckingALeaseMakeNoSpans(t *testing.T) {
	t.Parallel()
	tracer := &seen{}
	db, err := postgres.Open(t.Context(), stacktest.Database(t), postgres.Options{Tracer: tracer})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	ctx, span := sdktrace.NewTracerProvider().Tracer("test").Start(t.Context(), "sweep")
	defer span.End()

	lease, _, taken, err := db.BeginSweep(ctx, uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, taken)
	_, err = db.DispatchDue(ctx, 8, time.Minute)
	require.NoError(t, err)
	require.NoError(t, postgres.RecordFact(t.Context(), db, "type", "subject", map[string]any{}, nil))
	facts, err := db.ClaimFacts(ctx, "", 8, uuid.New(), time.Minute)
	require.NoError(t, err)
	require.Len(t, facts, 1)
	require.NoError(t, db.FactPublished(ctx, facts[0]))
	_, err = db.ForgetHistory(ctx, lease, time.Now(), 10)
	require.NoError(t, err)

	all := strings.Join(tracer.statements, "\n")
	require.Contains(t, all, "insert into expiry.sweeps", "what says something does")
	require.Contains(t, all, "delete from expiry.follow_ups")
	for _, silent := range []string{"for key share", "as picked_", "set published_at"} {
		require.NotContains(t, all, silent)
	}
}
