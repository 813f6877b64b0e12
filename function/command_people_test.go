package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
)

func TestExplainTellsUnknownFromAmbiguous(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	require.Equal(t, `reservation-expiry: there is no reservation "nobody": give its id, the beginning of it, or its pod's name`,
		complaint(t, b.run(1, "explain", "nobody")))
	b.exec("insert into reservations (reservation_id, status) select 'twin-' || i, 'active' from generate_series(1, 7) i")
	require.Equal(t, `reservation-expiry: "twin" may be any of twin-1, twin-2, twin-3, twin-4, twin-5, …: give more of the id`,
		complaint(t, b.run(1, "explain", "twin")))
	require.Regexp(t, `deadline +unknown: expires_at is NULL`, b.run(0, "explain", "twin-1").out)
	require.Contains(t, b.run(0, "explain", "TWIN-1").out, "Reservation twin-1")
	var view report.Explanation
	require.NoError(t, json.Unmarshal([]byte(b.run(0, "explain", "twin-2", "-o", "json").out), &view))
	require.Equal(t, "twin-2", view.ReservationID)
	require.NotEmpty(t, view.Next)
}

func TestPauseHoldsDecisionsAndResumeSaysHowManyWillEnd(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld("BRAKE_PERCENT=20", "BRAKE_MIN=0")
	overdue := b.reservation(-time.Hour)
	b.reservation(5 * time.Hour)
	require.Regexp(t, `next tick +1 reservation will end: 1 will expire`, b.run(0, "status").out)

	r := b.run(0, "pause", "--why", "EKS upgrade", "--for", "2h")
	require.Regexp(t, `^Paused until .* UTC, for 2h: EKS upgrade\.\nOnce resumed, 1 reservation will end: 1 will expire\.\n`+
		`The brake: it would end 1 of 2 active reservations at once .*so they end\.\n$`, r.out)
	status := b.run(0, "status").out
	require.Regexp(t, `paused +since .*, in (2h|1h 59m): EKS upgrade`, status)
	require.Regexp(t, `next tick +once resumed, 1 reservation will end`, status)
	require.Regexp(t, `paused +since .*EKS upgrade`, b.run(0, "sweep").out)
	require.Equal(t, "active", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Contains(t, b.run(0, "explain", overdue).out, "while paused nothing new is decided")

	require.Regexp(t, `^Paused until resumed: longer\.`, b.run(0, "pause", "--why", "longer").out, "the second replaces the first")
	require.Regexp(t, `^Resumed\.\nAt the next tick 1 reservation will end: 1 will expire\.\nThe brake: `, b.run(0, "resume").out)
	require.Regexp(t, `^It was not paused\.\nAt the next tick 1 reservation will end`, b.run(0, "resume").out)
	b.run(0, "sweep", "--follow-ups", "0s")
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Regexp(t, `^It was not paused\.\nAt the next tick no reservation will end\.\nThe brake: .* 1 missing\), .*\n$`, b.run(0, "resume").out,
		"the other one has no pod")
}

func TestDeadLettersAreListedAndSentAgain(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	require.Equal(t, "There are no dead letters.\n", b.run(0, "dead-letters").out)
	require.JSONEq(t, `[]`, string(mustField(t, b.run(0, "dead-letters", "list", "-o", "json").out, "newest")))
	letter := func(id, eventType string) int64 {
		stored, err := b.db.StoreDeadLetter(t.Context(), postgres.DeadLetter{
			EventID: id, EventType: eventType, EventSource: "//test", EventSubject: "it", ErrorCode: "503", ErrorData: "shutting down",
			Event: fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"//test","type":%q}`, id, eventType),
		})
		require.NoError(t, err)
		return stored
	}
	ping, stray := letter("1", event.Ping), letter("2", "com.example.stray")
	require.Regexp(t, fmt.Sprintf(`(?s)%d +.*com\.example\.stray +it +no +503, shutting down\n%d +.*dev\.knative\.sources\.ping`, stray, ping), b.run(0, "dead-letters").out)
	require.Regexp(t, `dead letters +2 to be looked at`, b.run(0, "status").out)
	require.Regexp(t, `there is no dead letter 99$`, complaint(t, b.run(1, "dead-letters", "replay", "99")), "nobody was asked")

	// To a sink that takes it, to one that does not, to nobody, and to the service itself.
	var answer atomic.Int32
	answer.Store(http.StatusAccepted)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(answer.Load())) }))
	t.Cleanup(sink.Close)
	direct := b.environ
	b.environ = append(append([]string{}, direct...), "K_SINK="+sink.URL)
	replay := func(id int64) []string { return []string{"dead-letters", "replay", fmt.Sprint(id)} }
	require.Equal(t, fmt.Sprintf("Dead letter %d was taken by K_SINK at %s: 202 Accepted\n", ping, strings.TrimPrefix(sink.URL, "http://")), b.run(0, replay(ping)...).out)
	require.Regexp(t, `dead letters +1 to be looked at`, b.run(0, "status").out)
	answer.Store(http.StatusTeapot)
	require.Contains(t, complaint(t, b.run(1, replay(stray)...)), "the sink answered 418 I'm a teapot")
	b.environ = append(append([]string{}, direct...), "PORT=1")
	require.Regexp(t, `connection refused.*: the service itself at 127\.0\.0\.1:1 did not answer$`, complaint(t, b.run(1, replay(stray)...)))

	p := startProcess(t, b.rows.Config().ConnString())
	b.environ = append(append([]string{}, direct...), "SELF_URL="+p.url)
	r := b.run(0, replay(ping)...)
	require.Regexp(t, `^Dead letter \d was taken by the service itself at \S+: 200 OK\n\{.*"outcome":`, r.out)
	require.Contains(t, complaint(t, b.run(1, replay(stray)...)), `"error":"events of type \"com.example.stray\" are not taken"`)
}

func mustField(t *testing.T, text, field string) json.RawMessage {
	t.Helper()
	var object map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(text), &object))
	return object[field]
}
