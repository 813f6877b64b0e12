package main

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// site is a server on a database of its own, serving on the loopback.
type site struct {
	*server
	*desk // for post

	database string     // for the tables' owner
	stop     func()     // as SIGTERM does
	ended    chan error // what serve returned
}

type plays struct {
	sweep   func(ctx context.Context) error
	cleanup func(ctx context.Context, f postgres.FollowUp) (followup.Result, error)
}

func (p plays) Sweep(ctx context.Context, trigger string, _ event.SweepRequest) (sweep.Result, error) {
	if p.sweep == nil {
		return sweep.Result{Trigger: trigger}, nil
	}
	return sweep.Result{Trigger: trigger}, p.sweep(ctx)
}

func (p plays) Handle(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
	return p.cleanup(ctx, f)
}

// serveSite serves as the service does, with no more rights.
func serveSite(t *testing.T, database string, delivery config.Delivery, p plays, changes ...func(*server)) *site {
	t.Helper()
	return serveSiteAs(t, database, stacktest.AsService(t, database), delivery, p, changes...)
}

func serveSiteAs(t *testing.T, database, login string, delivery config.Delivery, p plays, changes ...func(*server)) *site {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	url := "http://" + listener.Addr().String()
	delivery.SelfURL = url
	db, err := postgres.Open(t.Context(), login, postgres.Options{})
	require.NoError(t, err)
	s := &site{database: database, ended: make(chan error, 1), desk: &desk{url: url}}
	s.server = newServer(parts{
		delivery: delivery, db: db, sweeper: p, actions: map[postgres.FollowUpKind]followup.Action{postgres.Cleanup: p},
		telemetry: telemetry.Disabled(), log: quiet,
	})
	s.comeWithin = 0 // nobody else sends anything
	for _, change := range changes {
		change(s.server)
	}
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	var once sync.Once
	go func() { s.ended <- s.serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		once.Do(func() {
			select {
			case err := <-s.ended:
				s.ended <- err
			case <-time.After(30 * time.Second):
				t.Error("the server does not end")
			}
			db.Close()
		})
	})
	return s
}

func (s *site) exec(t *testing.T, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.database)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), statement)
	require.NoError(t, err)
}

func (s *site) count(t *testing.T, condition string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.database)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from expiry."+condition).Scan(&n))
	return n
}

func (s *site) eventually(t *testing.T, want int, condition string) {
	t.Helper()
	require.Eventually(t, func() bool { return s.count(t, condition) == want }, 20*time.Second, 20*time.Millisecond, condition)
}

const (
	twentyCleanups = "insert into expiry.follow_ups (kind, key, reservation_id, subject) select 'cleanup', 'r' || i, 'r' || i, 'r' || i from generate_series(1, 20) i"
	oneFact        = `insert into expiry.facts (fact_id, type, subject, sequence, data)
		values (gen_random_uuid(), 'dev.gpudev.disk.released.v1', 'r1', 1, '{"userId":"ada","diskName":"main","releasedAt":"2026-01-01T00:00:00Z"}')`
)

// catch is a sink that keeps the types of what it took.
func catch(t *testing.T) (url string, types func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]int{}
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e, err := binding.ToEvent(r.Context(), cehttp.NewMessageFromHttpRequest(r))
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		seen[e.Type()]++
		mu.Unlock()
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(sink.Close)
	return sink.URL, func() map[string]int { mu.Lock(); defer mu.Unlock(); return maps.Clone(seen) }
}

func done(context.Context, postgres.FollowUp) (followup.Result, error) {
	return followup.Done("settled"), nil
}

func TestWithoutASinkItIsItsOwn(t *testing.T) {
	t.Parallel()
	var s *site
	s = serveSite(t, stacktest.Database(t), config.Delivery{}, plays{
		cleanup: done,
		sweep:   func(context.Context) error { s.exec(t, twentyCleanups+`; `+oneFact); return nil },
	})
	require.Equal(t, http.StatusAccepted, s.post(t, "/", binary(event.Ping), "").StatusCode)
	s.eventually(t, 20, "follow_ups where state = 'done' and outcome = 'settled' and dispatch = 1")
	require.Equal(t, 1, s.count(t, "facts where published_at is null and attempts = 0"), "it never receives its own facts")
}

func TestWhatWasLeftBehindIsFoundWhenItStarts(t *testing.T) {
	t.Parallel()
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: func(_ context.Context, f postgres.FollowUp) (followup.Result, error) {
		if f.Attempts == 0 && f.Dispatch == 1 {
			return followup.LookAgain(300 * time.Millisecond), nil
		}
		return followup.Done("settled"), nil
	}})
	s.exec(t, twentyCleanups)
	s.dispatcher.Wake()
	s.eventually(t, 20, "follow_ups where state = 'done' and dispatch = 2")
}

func TestBehindASinkTheTickSendsWhatItMadeDueBeforeItIsAnswered(t *testing.T) {
	t.Parallel()
	sink, types := catch(t)
	var s *site
	s = serveSite(t, stacktest.Database(t), config.Delivery{Sink: sink, Service: "expiry"}, plays{
		sweep: func(context.Context) error { s.exec(t, twentyCleanups+`; `+oneFact); return nil },
	})
	require.Equal(t, http.StatusAccepted, s.post(t, "/", binary(event.Ping), "").StatusCode)
	require.Equal(t, map[string]int{event.CleanupRequested: 20, event.DiskReleased: 1}, types())
	require.Equal(t, 1, s.count(t, "facts where published_at is not null"))
	require.Equal(t, http.StatusOK, s.send(t, http.MethodGet, "/readyz", "", nil).StatusCode)
}

func TestFactsHaveASinkOfTheirOwn(t *testing.T) {
	t.Parallel()
	sink, types := catch(t)
	s := serveSite(t, stacktest.Database(t), config.Delivery{FactsSink: sink}, plays{cleanup: done})
	s.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', 'r1', 'r1', 'r1'); "+oneFact)
	require.Equal(t, http.StatusAccepted, s.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`).StatusCode)
	s.eventually(t, 1, "facts where published_at is not null") // by this delivery, or by the one that it sent itself
	require.Equal(t, map[string]int{event.DiskReleased: 1}, types(), "drained by the delivery of a follow-up, too")
}

func TestATickWhoseFollowUpsFindNoTakerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	var s *site
	s = serveSite(t, stacktest.Database(t), config.Delivery{Sink: "http://127.0.0.1:1/"}, plays{
		sweep: func(context.Context) error { s.exec(t, twentyCleanups); return nil },
	})
	require.Equal(t, http.StatusServiceUnavailable, s.post(t, "/", binary(event.Ping), "").StatusCode)
	require.Equal(t, 20, s.count(t, "follow_ups where state = 'due' and ask_again_at <= clock_timestamp() and attempts = 0"))
}

func TestReadyzLooksAtTheSchemaAndTheSink(t *testing.T) {
	t.Parallel()
	s := serveSite(t, stacktest.EmptyDatabase(t), config.Delivery{}, plays{})
	response := s.send(t, http.MethodGet, "/readyz", "", nil)
	requireRefusal(t, response, text(t, response), "reservation-expiry migrate")
	require.NoError(t, postgres.Migrate(t.Context(), s.database))
	require.NoError(t, postgres.MigratePlatformTables(t.Context(), s.database))
	require.NoError(t, postgres.Grant(t.Context(), s.database, stacktest.ServiceRole(t)))
	require.Equal(t, http.StatusOK, s.send(t, http.MethodGet, "/readyz", "", nil).StatusCode)

	s = serveSite(t, stacktest.Database(t), config.Delivery{Service: "expiry"}, plays{})
	response = s.send(t, http.MethodGet, "/readyz", "", nil)
	requireRefusal(t, response, text(t, response), "K_SINK")
	require.Nil(t, s.dispatcher, "Knative would scale it away under work that it sends itself")
	require.Equal(t, http.StatusServiceUnavailable, s.post(t, "/", binary(event.Ping), "").StatusCode)

	s = serveSiteAs(t, "", "postgres://nobody:hunter2@127.0.0.1:1/none", config.Delivery{}, plays{})
	response = s.send(t, http.MethodGet, "/readyz", "", nil)
	body := text(t, response)
	requireRefusal(t, response, body, "database cannot be reached")
	require.NotContains(t, body, "127.0.0.1")
}

func TestWhatIsUnderWayFinishesBeforeItEnds(t *testing.T) {
	t.Parallel()
	inside, gate := make(chan struct{}), make(chan struct{})
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		close(inside)
		<-gate
		return followup.Done("settled"), ctx.Err()
	}})
	s.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', 'r1', 'r1', 'r1')")
	s.dispatcher.Wake()
	<-inside
	s.stop()
	require.Eventually(t, func() bool {
		return s.send(t, http.MethodGet, "/readyz", "", nil).StatusCode == http.StatusServiceUnavailable
	}, 10*time.Second, 5*time.Millisecond)
	require.Equal(t, http.StatusServiceUnavailable, s.post(t, "/", binary(event.Ping), "").StatusCode)
	close(gate)
	require.NoError(t, <-s.ended)
	s.ended <- nil
	require.Equal(t, 1, s.count(t, "follow_ups where state = 'done' and outcome = 'settled'"))
}

func TestWhatTakesTooLongIsInterruptedAndHandedBack(t *testing.T) {
	t.Parallel()
	inside := make(chan struct{})
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		close(inside)
		<-ctx.Done()
		return followup.Result{}, ctx.Err()
	}}, func(s *server) { s.finishWithin = 10 * time.Millisecond })
	s.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', 'r1', 'r1', 'r1')")
	s.dispatcher.Wake()
	<-inside
	s.stop()
	require.NoError(t, <-s.ended)
	s.ended <- nil
	require.Equal(t, 1, s.count(t, "follow_ups where state = 'due' and due_at <= clock_timestamp() and attempts = 0 and lease_token is null"))
}

func TestAnActionThatHeedsNothingDoesNotKeepTheProcess(t *testing.T) {
	t.Parallel()
	inside, gate := make(chan struct{}), make(chan struct{})
	s := serveSite(t, stacktest.Database(t), config.Delivery{Sink: "http://127.0.0.1:1/"}, plays{cleanup: func(context.Context, postgres.FollowUp) (followup.Result, error) {
		close(inside)
		<-gate
		return followup.Done("late"), nil
	}}, func(s *server) { s.finishWithin, s.handBackWithin = time.Millisecond, time.Millisecond })
	t.Cleanup(func() { close(gate) })
	s.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', 'r1', 'r1', 'r1')")
	sent := make(chan error, 1)
	go func() {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, strings.NewReader(
			`{"specversion":"1.0","id":"1","source":"//t","type":"`+event.CleanupRequested+`","data":{"reservationId":"r1"}}`))
		if err == nil {
			request.Header.Set("Content-Type", "application/cloudevents+json")
			var response *http.Response
			if response, err = client.Do(request); err == nil {
				err = errors.New(response.Status)
				_ = response.Body.Close()
			}
		}
		sent <- err
	}()
	<-inside
	s.stop()
	require.NoError(t, <-s.ended)
	s.ended <- nil
	require.Error(t, <-sent)
}

func TestAThousandIdleConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: done})
	for range 1000 {
		dial(t, strings.TrimPrefix(s.url, "http://"), "POST / HTTP/1.1\r\nHost: x\r\n") // the rest never comes
	}
	require.Equal(t, http.StatusAccepted, s.post(t, "/", binary(event.Ping), "").StatusCode)
}

func TestHugeHeadersAreRefused(t *testing.T) {
	t.Parallel()
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: done})
	response := s.post(t, "/", binary(event.Ping, "Ce-Subject: "+strings.Repeat("x", 64<<10)), "")
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
}

func TestHTTP2WithoutTLSIsSpoken(t *testing.T) {
	t.Parallel()
	s := serveSite(t, stacktest.Database(t), config.Delivery{}, plays{cleanup: done})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/readyz", nil)
	require.NoError(t, err)
	response, err := (&http.Client{Transport: transport}).Do(request)
	require.NoError(t, err)
	_ = response.Body.Close()
	require.Equal(t, 2, response.ProtoMajor)
	require.Equal(t, http.StatusOK, response.StatusCode)
}
