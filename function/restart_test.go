package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

// lag is how late a node may hear that an instance has been told to end.
const lag = comeWithin - 500*time.Millisecond

// manyRestarts in the environment has TestRestarts do so many; `make restarts` does.
const manyRestarts = "RESTARTS"

// front sends each delivery to one of the processes that stand behind it, as a Service does: to those that are ready, once,
// whatever becomes of it. It forgets a process some time after that was told to end, as a node hears of it late.
type front struct {
	mu     sync.Mutex
	behind []*beginning
}

func (f *front) put(s *beginning) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behind = append(f.behind, s)
}

func (f *front) remove(s *beginning) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.behind {
		if f.behind[i] == s {
			f.behind = append(f.behind[:i:i], f.behind[i+1:]...)
			return
		}
	}
}

func (f *front) pick() *beginning {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.behind[rand.IntN(len(f.behind))]
}

// deliver posts an event once. The error is that the delivery was lost or cut; that a process is full is none.
func (f *front) deliver(ctx context.Context, eventType, data string) (status int, err error) {
	body := fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"//load","type":%q,"datacontenttype":"application/json","data":%s}`, uuid.NewString(), eventType, data)
	s := f.pick()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, err
	}
	request.GetBody = nil // or the client itself would try again
	request.Header.Set("Content-Type", "application/cloudevents+json")
	response, err := s.client.Do(request)
	if err != nil {
		return 0, err
	}
	said, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	switch {
	case err != nil:
		return 0, err
	case response.StatusCode == http.StatusAccepted || bytes.Contains(said, []byte(errFull.reason)):
		return response.StatusCode, nil
	}
	return response.StatusCode, fmt.Errorf("%s: %s", response.Status, said)
}

// load posts ticks and follow-ups, each the cleanup of a reservation of its own, until ctx ends.
type load struct {
	*front
	base *base

	mu              sync.Mutex
	ticks, cleanups int
	lost            []string
}

func (l *load) note(err error, count *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*count++
	if err != nil {
		l.lost = append(l.lost, err.Error())
	}
}

func (l *load) run(ctx context.Context) {
	var workers sync.WaitGroup
	whole := context.WithoutCancel(ctx) // what was sent is waited for
	for range 2 {
		workers.Go(func() {
			for ctx.Err() == nil {
				_, err := l.deliver(whole, event.Ping, "{}")
				l.note(err, &l.ticks)
			}
		})
	}
	for range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				id := uuid.NewString()
				_, err := l.base.rows.Exec(whole, `insert into reservations (reservation_id, user_id, status, created_at, reservation_ended)
					values ($1, 'ada', 'cancelled', now() - interval '1 hour', now())`, id)
				status := http.StatusServiceUnavailable
				for err == nil && status == http.StatusServiceUnavailable { // it may be full
					status, err = l.deliver(whole, event.CleanupRequested, `{"reservationId":"`+id+`"}`)
				}
				l.note(err, &l.cleanups)
			}
		})
	}
	workers.Wait()
}

// again posts once more what a sweep has asked for while, or just before, it was worked on: it is due still, and of the
// sweep's own events the sink has made nothing.
func (l *load) again(t *testing.T) {
	t.Helper()
	due, err := l.base.rows.Query(t.Context(), "select key from expiry.follow_ups where kind = 'cleanup' and state = 'due' and due_at <= clock_timestamp()")
	require.NoError(t, err)
	ids, err := pgx.CollectRows(due, pgx.RowTo[string])
	require.NoError(t, err)
	for _, id := range ids {
		_, err := l.deliver(t.Context(), event.CleanupRequested, `{"reservationId":"`+id+`"}`)
		require.NoError(t, err)
	}
}

func TestRestarts(t *testing.T) {
	t.Parallel()
	restarts := 4 // a sample
	if many, err := strconv.Atoi(os.Getenv(manyRestarts)); err == nil {
		restarts = many
	}
	b := newBase(t)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	t.Cleanup(sink.Close)
	b.withWorld("HOME="+t.TempDir(), "K_SINK="+sink.URL, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "WARNING_MINUTES=30")
	program := release(t, ".", "reservation-expiry")
	l := &load{front: &front{}, base: b}
	up := func() *beginning {
		s := begin(t, program, b.environ)
		s.until(t, "/readyz")
		l.put(s)
		return s
	}
	running := []*beginning{up(), up()}
	running[0].tick(t) // a cleanup needs to know which cluster it is about
	ctx, stop := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() { defer close(loaded); l.run(ctx) }()

	var ending sync.WaitGroup
	var slowest time.Duration
	ended := make(chan error, restarts)
	began := time.Now()
	for range restarts {
		running = append(running, up())
		old := running[0]
		running = running[1:]
		ending.Go(func() { // the next one does not wait for it, as a Deployment does not
			told := time.Now()
			err := old.cmd.Process.Signal(syscall.SIGTERM)
			<-time.After(rand.N(lag))
			l.remove(old)
			err = errors.Join(err, old.cmd.Wait())
			old.client.CloseIdleConnections()
			ended <- err
			l.mu.Lock()
			defer l.mu.Unlock()
			slowest = max(slowest, time.Since(told))
		})
	}
	ending.Wait()
	took := time.Since(began)
	stop()
	<-loaded
	close(ended)
	for err := range ended {
		require.NoError(t, err, "each ends by itself, with 0")
	}
	t.Logf("%d rolling restarts in %.1f s under %d ticks and %d cleanups: %d lost or cut, told up to %s late; the slowest end took %.1f s",
		restarts, took.Seconds(), l.ticks, l.cleanups, len(l.lost), lag, slowest.Seconds())
	require.Empty(t, l.lost)
	require.NotZero(t, l.ticks)
	require.NotZero(t, l.cleanups)
	l.again(t)
	require.Equal(t, strconv.Itoa(l.cleanups), b.text(`
		select count(*)::text from expiry.cleanups c join expiry.follow_ups f using (reservation_id)
		where c.outcome = 'nothing_to_keep' and f.state = 'done' or f.attempts > 0`), "each that was answered is done, or has its failure on its row")
	require.Equal(t, "0", b.text("select count(*)::text from expiry.follow_ups where kind = 'cleanup' and lease_token is not null"))
	require.Equal(t, "0", b.text("select count(*)::text from expiry.sweeps where outcome in ('running', 'abandoned', 'failed')"))
}
