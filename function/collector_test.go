package main

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/trace"
	otlp "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/lifecycle"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/stacktest"
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
		"dead": closed.URL, "silent": "http://" + silent(t).Addr().String(), "black hole": "http://" + hole(t),
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

// silent accepts connections into its backlog, and never reads.
func silent(t *testing.T) *net.TCPListener {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// hole is the address of a listener whose backlog is full: whoever would connect is not answered at all.
func hole(t *testing.T) string {
	t.Helper()
	listener := silent(t)
	raw, err := listener.SyscallConn()
	require.NoError(t, err)
	var failure error
	require.NoError(t, raw.Control(func(fd uintptr) { failure = syscall.Listen(int(fd), 0) }))
	require.NoError(t, failure)
	for {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), 100*time.Millisecond)
		if err != nil {
			var late net.Error
			require.ErrorAs(t, err, &late)
			require.True(t, late.Timeout(), "it is not refused: %v", err)
			return listener.Addr().String()
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

func TestASweepFromTheShellWaitsForASilentCollectorOnce(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld("OTEL_EXPORTER_OTLP_ENDPOINT=http://" + silent(t).Addr().String())
	b.reservation(time.Hour)
	r := b.run(0, "sweep", "-o", "json")
	require.Equal(t, 1, strings.Count(r.err, "telemetry is lost"), "each time costs half a second: %s", r.err)
}

// relay hands spans on to the stack's collector, and knows which of them that has acknowledged. It can kill the process
// that has sent a certain one before it hears of it.
type relay struct {
	*httptest.Server
	target string

	mu     sync.Mutex
	spans  map[string]int // acknowledged, by id
	fatal  string
	victim *process
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{target: stacktest.Env(t, "STACK_OTLP_URL"), spans: map[string]int{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *relay) killAfter(id trace.SpanID, p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fatal, r.victim = id.String(), p
}

// taken returns how often the collector has taken each span, by id.
func (r *relay) taken() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.spans)
}

func (r *relay) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	var sent otlp.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(body, &sent) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	onward, err := http.NewRequestWithContext(context.WithoutCancel(request.Context()), http.MethodPost, r.target+request.URL.Path, bytes.NewReader(body))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	onward.Header = request.Header
	response, err := client.Do(onward)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	_ = response.Body.Close()
	if response.StatusCode == http.StatusOK {
		r.took(&sent)
	}
	w.WriteHeader(response.StatusCode)
}

func (r *relay) took(sent *otlp.ExportTraceServiceRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range sent.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				id := trace.SpanID(s.GetSpanId()).String()
				r.spans[id]++
				if id == r.fatal && r.victim != nil {
					_ = r.victim.cmd.Process.Kill()
					r.victim = nil
				}
			}
		}
	}
}
