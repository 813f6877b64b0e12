package lifecycle_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/trace"
	otlp "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/lifecycle"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector takes spans over OTLP, keeps them as Jaeger does, each as often as it came, and can be made to misbehave.
type collector struct {
	*httptest.Server
	mu     sync.Mutex
	manner manner
	traces map[string][]jaeger.Span
}

// manner is how a collector treats a request.
type manner int

const (
	takes          manner = iota
	refuses               // for good, with 400
	fails                 // before anything is stored, with 503
	losesRequests         // the connection breaks before anything is stored
	losesAnswers          // stored, and the connection breaks
	answersTooLate        // stored, and a proxy that would not wait answers 504
)

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{traces: map[string][]jaeger.Span{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) become(m manner) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.manner = m
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var batch otlp.ExportTraceServiceRequest
	if proto.Unmarshal(body, &batch) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manner == takes || c.manner == losesAnswers || c.manner == answersTooLate {
		c.keep(&batch)
	}
	switch c.manner {
	case takes:
	case refuses:
		w.WriteHeader(http.StatusBadRequest)
	case fails:
		w.WriteHeader(http.StatusServiceUnavailable)
	case answersTooLate:
		w.WriteHeader(http.StatusGatewayTimeout)
	case losesRequests, losesAnswers:
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
}

func (c *collector) keep(batch *otlp.ExportTraceServiceRequest) {
	for _, resource := range batch.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				id := trace.TraceID(s.TraceId).String()
				span := jaeger.Span{
					ID: trace.SpanID(s.SpanId).String(), Name: s.Name, Start: time.Unix(0, int64(s.StartTimeUnixNano)).UTC(),
					Duration: time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano), Attributes: map[string]string{},
				}
				if len(s.ParentSpanId) == 8 {
					span.ParentID = trace.SpanID(s.ParentSpanId).String()
				}
				for _, a := range s.Attributes {
					span.Attributes[a.Key] = a.Value.GetStringValue()
				}
				c.traces[id] = append(c.traces[id], span)
			}
		}
	}
}

// Trace makes the collector a lifecycle.Viewer.
func (c *collector) Trace(_ context.Context, traceID string) (jaeger.Trace, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans, ok := c.traces[traceID]
	if !ok {
		return jaeger.Trace{}, fault.Errorf(fault.Gone, "no trace %s", traceID)
	}
	return jaeger.Trace{ID: traceID, Spans: append([]jaeger.Span(nil), spans...)}, nil
}

// count returns how often each span of a reservation's trace has come, by name.
func (c *collector) count(reservationID string) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for _, s := range c.traces[telemetry.TraceID(reservationID).String()] {
		n[s.Name]++
	}
	return n
}

// patience is for machines that are busy with other tests.
const patience = 30 * time.Second

// world is a database and a collector.
type world struct {
	t   testing.TB
	db  *postgres.DB
	raw *pgx.Conn
	c   *collector
	tel *telemetry.Telemetry
}

func newWorld(t testing.TB) *world {
	t.Helper()
	url := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	raw, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close(context.Background()) })
	c := newCollector(t)
	spans, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(c.URL+"/v1/traces"), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	require.NoError(t, err)
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans, Within: patience})
	require.NoError(t, err)
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return &world{t: t, db: db, raw: raw, c: c, tel: tel}
}

// writer returns a Writer; a process of its own for all that matters.
func (w *world) writer(change ...func(*lifecycle.Options)) *lifecycle.Writer {
	return w.writerTo(w.db, change...)
}

func (w *world) writerTo(store lifecycle.Store, change ...func(*lifecycle.Options)) *lifecycle.Writer {
	opts := lifecycle.Options{Log: slog.New(slog.DiscardHandler), Within: patience}
	for _, c := range change {
		c(&opts)
	}
	return lifecycle.New(store, w.tel, opts)
}

// viewing makes a Writer ask the collector what has arrived.
func (w *world) viewing(o *lifecycle.Options) { o.Viewer = w.c }

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.raw.Exec(context.WithoutCancel(w.t.Context()), sql, args...)
	require.NoError(w.t, err)
}

// timePasses lets leases lapse and pauses end.
func (w *world) timePasses() {
	w.exec("update expiry.traces set lease_expires_at = clock_timestamp() where lease_expires_at is not null")
}

// A life in steps, each as the platform and the service write it.

func (w *world) queue() string {
	id := uuid.NewString()
	w.exec(`insert into reservations (reservation_id, user_id, gpu_type, status, created_at, status_history)
		values ($1, 'ada', 'h100', 'queued', clock_timestamp() - interval '25 hours',
		        jsonb_build_array(jsonb_build_object('status', 'queued', 'timestamp', clock_timestamp() - interval '25 hours')))`, id)
	return id
}

func (w *world) become(id, status, ago string) {
	w.exec(`update reservations set status = $2::text, status_history = status_history ||
		jsonb_build_object('status', $2::text, 'timestamp', clock_timestamp() - $3::interval) where reservation_id = $1`, id, status, ago)
}

func (w *world) prepare(id string) { w.become(id, "preparing", "24 hours 5 minutes") }

func (w *world) launch(id string) {
	w.become(id, "active", "24 hours")
	w.exec(`update reservations set launched_at = clock_timestamp() - interval '24 hours', expires_at = clock_timestamp() - interval '1 hour'
		where reservation_id = $1`, id)
}

func (w *world) expire(id string) {
	w.become(id, "expired", "58 minutes")
	w.exec("update reservations set reservation_ended = clock_timestamp() - interval '58 minutes' where reservation_id = $1", id)
	w.exec(`insert into expiry.cleanups (reservation_id, requested_at, reason, user_id, pod_name, namespace, volume_id, disk_name, content_key)
		values ($1, clock_timestamp() - interval '57 minutes', 'its time was over', 'ada', 'gpu-dev-1', 'gpu-dev', 'vol-0123456789abcdef0', 'data', 's3://listings/ada/data.txt')`, id)
}

// fails ends a life that never became active, of which only the disk's lock and the reason are known.
func (w *world) fails(id, reason string) {
	w.become(id, "failed", "58 minutes")
	w.exec("update reservations set failed_at = clock_timestamp() - interval '58 minutes' where reservation_id = $1", id)
	w.exec(`insert into expiry.cleanups (reservation_id, requested_at, reason, user_id, disk_name)
		values ($1, clock_timestamp() - interval '57 minutes', $2, 'ada', 'data')`, id, reason)
}

// free writes the fact with which a disk without a volume is freed.
func (w *world) free(id string) {
	w.exec(`insert into expiry.facts (fact_id, type, subject, sequence, data, occurred_at)
		values (gen_random_uuid(), $2, $1, 1, '{}', clock_timestamp() - interval '40 minutes')`, id, event.DiskReleased)
}

func (w *world) step(id string, step postgres.Step, outcome string) {
	w.exec(`insert into expiry.cleanup_steps (reservation_id, step, started_at, finished_at, outcome)
		values ($1, $2, clock_timestamp() - interval '50 minutes', clock_timestamp() - interval '49 minutes', $3)`, id, step, outcome)
}

func (w *world) snapshot(id string) {
	w.exec(`insert into expiry.snapshots (intent_id, snapshot_id, reservation_id, user_id, disk_name, state, intended_at, settled_at)
		values (gen_random_uuid(), 'snap-' || $1::text, $1::text, 'ada', 'data', 'completed', clock_timestamp() - interval '48 minutes',
		        clock_timestamp() - interval '10 minutes')`, id)
}

func (w *world) settle(id string) {
	w.exec("update expiry.cleanups set disk_released_at = clock_timestamp() - interval '5 minutes' where reservation_id = $1", id)
	w.settleAs(id, postgres.OutcomeReleased)
}

func (w *world) settleAs(id, outcome string) {
	w.exec("update expiry.cleanups set settled_at = clock_timestamp(), outcome = $2 where reservation_id = $1", id, outcome)
}

// live leads a whole life and returns the reservation's id.
func (w *world) live() string {
	id := w.queue()
	w.prepare(id)
	w.launch(id)
	w.expire(id)
	for _, s := range postgres.Steps() {
		w.step(id, s, "done")
	}
	w.snapshot(id)
	w.settle(id)
	return id
}

// whole is what the trace of a whole life has, each once.
func whole() map[string]int {
	spans := map[string]int{"reservation": 1, "queued": 1, "preparing": 1, "active": 1, "cleanup": 1, "disk held": 1, "snapshot": 1}
	for _, s := range postgres.Steps() {
		spans[string(telemetry.StepPhase(string(s)))] = 1
	}
	return spans
}
