package dispatch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// world is a database with rows that a test puts there.
type world struct {
	db  *postgres.DB
	url string
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{url: stacktest.Database(t)}
	var err error
	w.db, err = postgres.Open(t.Context(), stacktest.AsService(t, w.url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(w.db.Close)
	return w
}

func (w world) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
}

func (w world) count(t *testing.T, condition string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from expiry."+condition).Scan(&n))
	return n
}

// cleanups makes n cleanups due, of reservations r0, r1, ….
func (w world) cleanups(t *testing.T, n int) {
	t.Helper()
	w.exec(t, `
		insert into expiry.follow_ups (kind, key, reservation_id, subject)
		select 'cleanup', 'r' || i, 'r' || i, 'r' || i from generate_series(0, $1 - 1) i`, n)
}

func (w world) fact(t *testing.T, subject string, sequence int) {
	t.Helper()
	data, err := json.Marshal(event.Ended{ReservationID: subject, Reason: "over", EndedAt: time.Now()})
	require.NoError(t, err)
	w.exec(t, `
		insert into expiry.facts (fact_id, type, subject, sequence, data)
		values (gen_random_uuid(), $1, $2, $3, $4)`, event.ReservationExpired, subject, sequence, string(data))
}

// sink takes events, as answer says; each valid one is kept.
type sink struct {
	*httptest.Server

	mu     sync.Mutex
	events []ce.Event
}

func newSink(t *testing.T, answer func(e ce.Event) int) *sink {
	t.Helper()
	s := &sink{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e, err := binding.ToEvent(r.Context(), cehttp.NewMessageFromHttpRequest(r))
		if err == nil {
			err = e.Validate()
		}
		if err == nil {
			err = event.ValidateData(e.Type(), e.Data())
		}
		if err != nil {
			t.Errorf("the sink got what is no event of ours: %v", err)
			w.WriteHeader(http.StatusTeapot)
			return
		}
		status := http.StatusAccepted
		if answer != nil {
			status = answer(*e)
		}
		if status/100 == 2 {
			s.mu.Lock()
			s.events = append(s.events, *e)
			s.mu.Unlock()
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, `{"secret":"in a body"}`)
	}))
	t.Cleanup(s.Close)
	return s
}

// ids returns how often the sink took each event.
func (s *sink) ids() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]int{}
	for _, e := range s.events {
		seen[e.ID()]++
	}
	return seen
}

// sender sends to a URL and tries once, over connections that end with the test.
func sender(t *testing.T, target string, tries uint) dispatch.Sender {
	t.Helper()
	transport := dispatch.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	return dispatch.NewHTTPSender(target, dispatch.SenderOptions{Transport: transport, Tries: tries})
}
