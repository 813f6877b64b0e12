package telemetry_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestPhasesAndTheRootAreWrittenOnceWithTimesAndIdsOfTheirOwn(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, env{"OTEL_TRACES_SAMPLER": "always_off"})
	r := reservation
	r.Status = "expired"
	require.NoError(t, tel.Export(t.Context(),
		telemetry.Record{Reservation: r, Phase: telemetry.PhaseActive, Start: noon.Add(-8 * time.Hour), End: noon, Outcome: "expired"},
		telemetry.Record{Reservation: r, Start: noon.Add(-9 * time.Hour), End: noon.Add(time.Hour), Outcome: "released", Error: "pod: conflict"},
	))
	got := spans.GetSpans() // acknowledged already: no flush is needed
	require.Len(t, got, 2)
	active, root := got[0], got[1]

	require.Equal(t, "active", active.Name)
	require.Equal(t, telemetry.TraceID(reservationID), active.SpanContext.TraceID())
	require.Equal(t, telemetry.PhaseSpanID(reservationID, telemetry.PhaseActive), active.SpanContext.SpanID())
	require.Equal(t, telemetry.RootSpanID(reservationID), active.Parent.SpanID())
	require.Equal(t, 8*time.Hour, active.EndTime.Sub(active.StartTime))

	require.Equal(t, "reservation", root.Name)
	require.Equal(t, telemetry.TraceID(reservationID), root.SpanContext.TraceID())
	require.Equal(t, telemetry.RootSpanID(reservationID), root.SpanContext.SpanID())
	require.False(t, root.Parent.SpanID().IsValid())
	require.Equal(t, noon.Add(-9*time.Hour), root.StartTime)
	require.Equal(t, "released", attributes(root)["reservation.outcome"])
	require.Equal(t, "expired", attributes(root)["reservation.status"])
	require.Equal(t, codes.Error, root.Status.Code)

	require.NoError(t, tel.Flush(t.Context()))
	require.Len(t, spans.GetSpans(), 2, "a flush does not send them again")
}

func TestAPhaseCanHangBelowAnother(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	r := reservation
	r.Phase = telemetry.PhaseCleanup
	require.NoError(t, tel.Export(t.Context(), telemetry.Record{Reservation: r, Phase: telemetry.PhaseSnapshot, Start: noon, End: noon}))
	require.Equal(t, telemetry.PhaseSpanID(reservationID, telemetry.PhaseCleanup), spans.GetSpans()[0].Parent.SpanID())
}
