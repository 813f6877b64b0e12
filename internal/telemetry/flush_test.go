package telemetry_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// fakeCollector is an OTLP/HTTP endpoint that counts what it was sent, and answers as it is told.
type fakeCollector struct {
	*httptest.Server
	mu     sync.Mutex
	answer http.HandlerFunc // nil: take it
	spans  []string
	pushes int // of metrics
}

func newCollector(t *testing.T, answer http.HandlerFunc) *fakeCollector {
	t.Helper()
	c := &fakeCollector{answer: answer}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *fakeCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	answer := c.answer
	var batch collector.ExportTraceServiceRequest
	if r.URL.Path != "/v1/traces" {
		c.pushes++
	} else if proto.Unmarshal(body, &batch) == nil {
		for _, resource := range batch.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, s := range scope.Spans {
					c.spans = append(c.spans, s.Name)
				}
			}
		}
	}
	c.mu.Unlock()
	if answer != nil {
		answer(w, r)
	}
}

func (c *fakeCollector) become(answer http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

func (c *fakeCollector) got() (spans []string, pushes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.spans...), c.pushes
}

// exportingTo returns a Telemetry that speaks OTLP/HTTP to an address, as the environment would make it.
func exportingTo(t *testing.T, url string) *telemetry.Telemetry {
	t.Helper()
	spans, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(url+"/v1/traces"), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	require.NoError(t, err)
	metrics, err := otlpmetrichttp.New(t.Context(), otlpmetrichttp.WithEndpointURL(url+"/v1/metrics"), otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}))
	require.NoError(t, err)
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: env{}.get, Spans: spans, Metrics: metrics})
	require.NoError(t, err)
	return tel
}

func deliver(ctx context.Context, tel *telemetry.Telemetry, name string) {
	ctx, span := tel.StartDelivery(ctx, name)
	tel.Metrics.SweepDone(ctx, time.Second, "completed")
	span.End("completed", nil)
}

// hang never answers while the caller is still there.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func refuse(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "30")
	w.WriteHeader(http.StatusServiceUnavailable)
}

func TestFlushDeliversBeforeItReturns(t *testing.T) {
	t.Parallel()
	c := newCollector(t, nil)
	tel := exportingTo(t, c.URL)
	deliver(t.Context(), tel, "sweep")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, tel.Flush(cancelled), "a delivery that ran out of time is flushed too")
	spans, pushes := c.got()
	require.Equal(t, []string{"sweep"}, spans)
	require.Equal(t, 1, pushes)
	require.NoError(t, tel.Shutdown(t.Context()))
}

func TestWhatHasEndedCanBeSentAheadAndItsChildrenLater(t *testing.T) {
	t.Parallel()
	c := newCollector(t, nil)
	tel := exportingTo(t, c.URL)
	ctx, sweep := tel.StartDelivery(t.Context(), "sweep")
	_, call := tel.StartStep(ctx, "call")
	call.End("done", nil)
	require.NoError(t, tel.FlushSpans(t.Context()))
	spans, _ := c.got()
	require.Empty(t, spans, "nothing before what it hangs below has ended")
	sweep.End("completed", nil)
	ctx, send := tel.StartStep(ctx, "send")
	_, post := tel.StartStep(ctx, "post")
	post.End("done", nil)
	require.NoError(t, tel.FlushSpans(t.Context()))
	spans, pushes := c.got()
	require.Equal(t, []string{"sweep", "call"}, spans)
	require.Zero(t, pushes, "metrics are pushed once")
	send.End("done", nil)
	require.NoError(t, tel.Flush(t.Context()))
	spans, _ = c.got()
	require.Equal(t, []string{"sweep", "call", "send", "post"}, spans)
	require.NoError(t, tel.Shutdown(t.Context()))
}

func TestABadCollectorCostsADeliveryLessThanASecond(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections into its backlog and never reads
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, url := range map[string]string{
		"dead":                 closed.URL,
		"connected and silent": "http://" + silent.Addr().String(),
		"never answers":        newCollector(t, hang).URL,
		"refuses for now":      newCollector(t, refuse).URL,
		"refuses for good":     newCollector(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }).URL,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tel := exportingTo(t, url)
			began := time.Now()
			deliver(t.Context(), tel, "sweep")
			exported := tel.Export(t.Context(), telemetry.Record{Reservation: reservation, Start: noon, End: noon})
			flush := tel.Flush(t.Context())
			took := time.Since(began)
			require.Error(t, exported, "nothing is marked as exported")
			require.Error(t, flush)
			require.Less(t, took, time.Second)
			_ = tel.Shutdown(t.Context())
		})
	}
}

func TestWhatNeverLeftTheProcessIsSentByTheNextFlush(t *testing.T) {
	t.Parallel()
	c := newCollector(t, nil)
	address := c.Listener.Addr().String()
	c.Close()
	tel := exportingTo(t, "http://"+address)
	deliver(t.Context(), tel, "sweep")
	require.Error(t, tel.Flush(t.Context()))

	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	back := &fakeCollector{}
	back.Server = httptest.NewUnstartedServer(back)
	require.NoError(t, back.Listener.Close())
	back.Listener = listener
	back.Start()
	t.Cleanup(back.Close)

	require.NoError(t, tel.Flush(t.Context()))
	spans, _ := back.got()
	require.Equal(t, []string{"sweep"}, spans)
	require.NoError(t, tel.Shutdown(t.Context()))
}

func TestWhatMayHaveArrivedIsNotSentTwice(t *testing.T) {
	t.Parallel()
	c := newCollector(t, hang) // it has read the request, and its answer is lost
	tel := exportingTo(t, c.URL)
	deliver(t.Context(), tel, "first")
	require.ErrorIs(t, tel.Flush(t.Context()), context.DeadlineExceeded)
	c.become(nil)
	deliver(t.Context(), tel, "second")
	require.NoError(t, tel.Flush(t.Context()))
	spans, _ := c.got()
	require.Equal(t, []string{"first", "second"}, spans)
	require.NoError(t, tel.Shutdown(t.Context()))
}

func TestExportTellsALostAnswerFromARefusal(t *testing.T) {
	t.Parallel()
	record := telemetry.Record{Reservation: reservation, Start: noon, End: noon}

	closed := httptest.NewServer(nil)
	closed.Close()
	tel := exportingTo(t, closed.URL)
	err := tel.Export(t.Context(), record)
	require.Error(t, err)
	require.NotErrorIs(t, err, telemetry.ErrUnconfirmed)
	_ = tel.Shutdown(t.Context())

	tel = exportingTo(t, newCollector(t, hang).URL)
	require.ErrorIs(t, tel.Export(t.Context(), record), telemetry.ErrUnconfirmed)
	_ = tel.Shutdown(t.Context())

	for status, doubt := range map[int]bool{
		http.StatusBadRequest: false, http.StatusUnauthorized: false, http.StatusRequestEntityTooLarge: false,
		http.StatusTooManyRequests:     true, // the exporter does not tell it from the next three
		http.StatusBadGateway:          true,
		http.StatusServiceUnavailable:  true,
		http.StatusGatewayTimeout:      true,
		http.StatusInternalServerError: true,
	} {
		tel = exportingTo(t, newCollector(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "upstream: 404 Not Found (body: none)", status)
		}).URL)
		err := tel.Export(t.Context(), record)
		require.Error(t, err)
		require.Equal(t, doubt, errors.Is(err, telemetry.ErrUnconfirmed), "%d: %v", status, err)
		_ = tel.Shutdown(t.Context())
	}
}

func TestExportTellsALostAnswerFromARefusedConnectionOverGRPC(t *testing.T) {
	t.Parallel()
	record := telemetry.Record{Reservation: reservation, Start: noon, End: noon}
	export := func(address string) error {
		spans, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(address), otlptracegrpc.WithInsecure(),
			otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{}))
		require.NoError(t, err)
		tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: env{}.get, Spans: spans, Within: 10 * time.Second})
		require.NoError(t, err)
		defer func() { _ = tel.Shutdown(context.Background()) }()
		return tel.Export(t.Context(), record)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	err := export(closed.Listener.Addr().String())
	require.Error(t, err)
	require.NotErrorIs(t, err, telemetry.ErrUnconfirmed, "nothing was sent")

	server := grpc.NewServer()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	collector.RegisterTraceServiceServer(server, breaking{stop: server.Stop})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	require.ErrorIs(t, export(listener.Addr().String()), telemetry.ErrUnconfirmed, "it was sent, and the connection broke")
	server.Stop()
	serving.Wait()
}

// breaking is a collector that goes down while it works on what it has got.
type breaking struct {
	collector.UnimplementedTraceServiceServer
	stop func()
}

func (b breaking) Export(ctx context.Context, _ *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	go b.stop()
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestDeliveriesThatFlushAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	c := newCollector(t, nil)
	tel := exportingTo(t, c.URL)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			deliver(t.Context(), tel, "sweep")
			_ = tel.Flush(t.Context())
		})
	}
	all.Wait()
	require.NoError(t, tel.Flush(t.Context()))
	require.NoError(t, tel.Shutdown(t.Context()))
	spans, _ := c.got()
	require.Len(t, spans, 20)
}
