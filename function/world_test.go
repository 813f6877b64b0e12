package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

var quiet = slog.New(slog.DiscardHandler)

// desk is a handler behind a real HTTP server, with everything behind it played by the test.
type desk struct {
	*handler
	url string

	// What is behind the handler; a test replaces what it cares for, before its first request.
	sweep   func(ctx context.Context, trigger string, request event.SweepRequest) (sweep.Result, error)
	run     func(ctx context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error)
	ensure  func(reservationID string) (bool, error)
	letter  func(d postgres.DeadLetter) (int64, error)
	due     func() error
	drain   func() error
	isReady func() error

	mu    sync.Mutex
	calls []string
}

func (d *desk) called(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, what)
}

func (d *desk) Sweep(ctx context.Context, trigger string, request event.SweepRequest) (sweep.Result, error) {
	d.called("sweep " + trigger)
	return d.sweep(ctx, trigger, request)
}

func (d *desk) Run(ctx context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error) {
	d.called("run " + string(kind) + " " + key)
	return d.run(ctx, kind, key)
}

func (d *desk) EnsureCleanup(_ context.Context, reservationID string) (bool, error) {
	d.called("ensure " + reservationID)
	return d.ensure(reservationID)
}

func (d *desk) Reservation(_ context.Context, id string) (reservation.Reservation, bool, error) {
	return reservation.Reservation{ID: id, Status: reservation.Active}, id == "live", nil
}

func (d *desk) StoreDeadLetter(_ context.Context, letter postgres.DeadLetter) (int64, error) {
	d.mu.Lock()
	take := d.letter
	d.mu.Unlock()
	return take(letter)
}

func (d *desk) Drain(context.Context) (int, error) {
	d.called("announce")
	return 0, d.drain()
}

func (d *desk) Share(_ context.Context, subject string) (int, error) {
	d.called(strings.TrimSpace("share " + subject))
	return 0, d.drain()
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{
		sweep: func(_ context.Context, trigger string, request event.SweepRequest) (sweep.Result, error) {
			return sweep.Result{Trigger: trigger, DryRun: request.DryRun, Outcome: sweep.Completed}, nil
		},
		run: func(_ context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error) {
			return followup.Report{Kind: kind, Key: key, State: followup.StateDone, Outcome: "sent", About: "r1"}, nil
		},
		ensure:  func(string) (bool, error) { return false, nil },
		letter:  func(postgres.DeadLetter) (int64, error) { return 7, nil },
		due:     func() error { return nil },
		drain:   func() error { return nil },
		isReady: func() error { return nil },
	}
	d.handler = newHandlerOf(d)
	server := httptest.NewServer(d.routes())
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func newHandlerOf(d *desk) *handler {
	return &handler{
		sweeper: d, followUps: d, store: d, announcer: d,
		sendDue:   func(context.Context) error { d.called("send"); return d.due() },
		ready:     func(context.Context) error { return d.isReady() },
		telemetry: telemetry.Disabled(), log: quiet, slots: newSlots(), readWithin: bodyWithin,
	}
}

// post sends a request as a broker might; headers are given as "Name: value" lines.
func (d *desk) post(t *testing.T, path, headers, body string) *http.Response {
	t.Helper()
	return d.send(t, http.MethodPost, path, headers, strings.NewReader(body))
}

func (d *desk) send(t *testing.T, method, path, headers string, body io.Reader) *http.Response {
	t.Helper()
	response, err := d.try(t, method, path, headers, body)
	require.NoError(t, err)
	return response
}

// try is send where there may be no answer.
func (d *desk) try(t *testing.T, method, path, headers string, body io.Reader) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, d.url+path, body)
	require.NoError(t, err)
	for line := range strings.Lines(headers) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "" {
			request.Header[name] = append(request.Header[name], strings.TrimSpace(value))
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response, nil
}

// client keeps no connection: whoever closes a test server closes those that idle, also under a request of another test's
// that is just being sent.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func text(t *testing.T, response *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

// binary returns the headers of an event in binary mode.
func binary(eventType string, more ...string) string {
	return strings.Join(append([]string{
		"Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: //test", "Ce-Type: " + eventType, "Content-Type: application/json",
	}, more...), "\n")
}

const structured = "Content-Type: application/cloudevents+json"
