package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/lifecycle"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// oneLife is a lifecycle.Store in which there is always a phase to write.
type oneLife struct{}

func (oneLife) ClaimTraces(context.Context, uuid.UUID, time.Duration, int, ...string) ([]postgres.Lifecycle, error) {
	began := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	return []postgres.Lifecycle{{Stage: postgres.StageActive, Reservation: reservation.Reservation{
		ID: uuid.NewString(), Status: reservation.Active, CreatedAt: reservation.At(began), LaunchedAt: reservation.At(began.Add(time.Hour)),
	}}}, nil
}

func (oneLife) SettleTraces(context.Context, uuid.UUID, []postgres.TraceMark) error { return nil }

func TestABadCollectorNeitherFailsATickNorDelaysItByASecond(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections into its backlog and never reads
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	closed := httptest.NewServer(nil)
	closed.Close()
	slow := func(by time.Duration) string {
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then the caller is seen to leave
			select {
			case <-time.After(by):
			case <-r.Context().Done():
			}
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	for name, url := range map[string]string{
		"dead": closed.URL, "silent": "http://" + silent.Addr().String(), "black hole": "http://192.0.2.1:4318", // TEST-NET-1, RFC 5737
		"slow": slow(300 * time.Millisecond), "just in time": slow(450 * time.Millisecond), "too slow": slow(time.Minute),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spans, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(url+"/v1/traces"), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
			require.NoError(t, err)
			tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
			require.NoError(t, err)
			t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
			d := newDesk(t)
			d.telemetry, d.lives = tel, lifecycle.New(oneLife{}, tel, lifecycle.Options{Log: quiet})
			for range 2 {
				began := time.Now()
				require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode)
				require.Less(t, time.Since(began), time.Second)
			}
		})
	}
}
