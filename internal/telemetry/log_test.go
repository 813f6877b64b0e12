package telemetry_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestALineOfTheLogSaysWhichReservationAndWhichSpan(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := telemetry.NewLogger(&out, "json", slog.LevelInfo)
	ctx, span := telemetry.Disabled().StartAction(t.Context(), "warn", reservation)
	log.InfoContext(ctx, "warned", "level", 15)
	span.End("warned", nil)

	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	sc := trace.SpanContextFromContext(ctx)
	require.Equal(t, sc.TraceID().String(), line["trace_id"])
	require.Equal(t, sc.SpanID().String(), line["span_id"])
	require.Equal(t, reservationID, line["reservation_id"])
}

func TestIDsAreWrittenOnceAndAtTheTopOfTheLine(t *testing.T) {
	t.Parallel()
	ctx, span := telemetry.Disabled().StartAction(t.Context(), "warn", reservation)
	t.Cleanup(func() { span.End("completed", nil) })
	for name, write := range map[string]func(*slog.Logger){
		"plain":               func(l *slog.Logger) { l.InfoContext(ctx, "m") },
		"named by the call":   func(l *slog.Logger) { l.InfoContext(ctx, "m", "reservation_id", reservationID) },
		"named by the logger": func(l *slog.Logger) { l.With("reservation_id", reservationID).InfoContext(ctx, "m") },
		"inside a group":      func(l *slog.Logger) { l.WithGroup("g").With("a", 1).InfoContext(ctx, "m", "b", 2) },
		"named before a group": func(l *slog.Logger) {
			l.With("reservation_id", reservationID).WithGroup("g").InfoContext(ctx, "m", "reservation_id", "inner")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			write(telemetry.NewLogger(&out, "", nil))
			var line struct {
				TraceID       string `json:"trace_id"`
				ReservationID string `json:"reservation_id"`
			}
			require.NoError(t, json.Unmarshal(out.Bytes(), &line))
			require.Equal(t, telemetry.TraceID(reservationID).String(), line.TraceID)
			require.Equal(t, reservationID, line.ReservationID)
			require.Equal(t, 1, strings.Count(out.String(), `"trace_id"`), out.String())
			require.Equal(t, 1, strings.Count(out.String(), reservationID), out.String())
		})
	}
}

func TestTextIsForPeople(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := telemetry.NewLogger(&out, "text", slog.LevelInfo)
	log.DebugContext(t.Context(), "unseen")
	log.InfoContext(telemetry.WithReservation(t.Context(), reservation), "expired")
	require.Regexp(t, `level=INFO msg=expired reservation_id=`+reservationID+`\n$`, out.String())
	require.NotContains(t, out.String(), "trace_id", "there is no span")
	require.NotContains(t, out.String(), "unseen")
}
