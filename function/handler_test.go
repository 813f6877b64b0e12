package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	const cleanup = `{"reservationId":"r1"}`
	large := `{"reservationId":"` + strings.Repeat("x", maxEvent) + `"}`
	for name, c := range map[string]struct {
		headers, body string
		status        int
		says          string // of the refusal
	}{
		"a ping":                              {binary(event.Ping), `{}`, 202, ""},
		"a ping with data that is none":       {binary(event.Ping), `{"date":`, 202, ""},
		"a ping without data":                 {binary(event.Ping), ``, 202, ""},
		"a sweep asked for":                   {binary(event.SweepRequested), `{"dryRun":true}`, 202, ""},
		"a sweep asked for without data":      {binary(event.SweepRequested), ``, 202, ""},
		"a structured sweep":                  {structured, `{"specversion":"1.0","id":"1","source":"//t","type":"` + event.SweepRequested + `","data":{"dryRun":true}}`, 202, ""},
		"a structured sweep with a charset":   {structured + "; charset=utf-8", `{"specversion":"1.0","id":"1","source":"//t","type":"` + event.SweepRequested + `"}`, 202, ""},
		"a structured sweep in base64":        {structured, `{"specversion":"1.0","id":"1","source":"//t","type":"` + event.SweepRequested + `","data_base64":"e30="}`, 202, ""},
		"a follow-up":                         {binary(event.CleanupRequested), cleanup, 202, ""},
		"a follow-up without data to give":    {binary(event.AvailabilityUpdateRequested), ``, 202, ""},
		"unknown extensions":                  {binary(event.Ping, "Ce-Knativearrivaltime: 2026-01-01T00:00:00Z", "Ce-Brokerid: 7"), `{}`, 202, ""},
		"a fact of our own":                   {binary(event.SweepCompleted), `{}`, 202, ""},
		"a trace that is malformed":           {binary(event.Ping, "Ce-Traceparent: nonsense"), `{}`, 202, ""},
		"a subject that is no ASCII":          {binary(event.Ping, "Ce-Subject: \xe4"), `{}`, 202, ""},
		"an unknown type":                     {binary("dev.example.tea.v1"), `{}`, 400, "dev.example.tea.v1"},
		"a batch":                             {"Content-Type: application/cloudevents-batch+json", `[]`, 400, "batch"},
		"no id":                               {"Ce-Specversion: 1.0\nCe-Source: //t\nCe-Type: " + event.Ping, ``, 400, "id"},
		"no source":                           {"Ce-Specversion: 1.0\nCe-Id: 1\nCe-Type: " + event.Ping, ``, 400, "source"},
		"no type":                             {"Ce-Specversion: 1.0\nCe-Id: 1\nCe-Source: //t", ``, 400, "type"},
		"a time that is none":                 {binary(event.Ping, "Ce-Time: yesterday"), `{}`, 400, "yesterday"},
		"an older specversion":                {"Ce-Specversion: 0.3\nCe-Id: 1\nCe-Source: //t\nCe-Type: " + event.Ping, ``, 400, "0.3"},
		"a specversion yet to come":           {"Ce-Specversion: 9.9\nCe-Id: 1\nCe-Source: //t\nCe-Type: " + event.Ping, ``, 400, "9.9"},
		"an extension without a name":         {binary(event.Ping, "Ce-: x"), `{}`, 400, "malformed"},
		"an extension with a bad name":        {binary(event.Ping, "Ce-A-B: x"), `{}`, 400, "attribute names"},
		"structured, and no JSON":             {structured, `{"specversion":`, 400, "malformed"},
		"structured, and no object":           {structured, `[]`, 400, "malformed"},
		"structured, and empty":               {structured, ``, 400, "malformed"},
		"structured, without a specversion":   {structured, `{"id":"1","source":"//t","type":"t"}`, 400, "malformed"},
		"structured, with a numeric id":       {structured, `{"specversion":"1.0","id":1,"source":"//t","type":"` + event.Ping + `"}`, 400, "malformed"},
		"structured 0.3 with a bad encoding":  {structured, `{"specversion":"0.3","id":"1","source":"//t","type":"t","datacontentencoding":1}`, 400, "malformed"},
		"structured, nested beyond reason":    {structured, `{"specversion":"1.0","id":"1","source":"//t","type":"` + event.Ping + `","data":` + strings.Repeat("[", 20_000) + `}`, 400, "malformed"},
		"sweep data that is no JSON":          {binary(event.SweepRequested), `{"dryRun":`, 400, "not JSON"},
		"sweep data with a misspelt word":     {binary(event.SweepRequested), `{"dryrun":true}`, 400, "dryrun"},
		"sweep data of another kind":          {binary(event.SweepRequested), `null`, 400, "object"},
		"sweep data that is no JSON by name":  {strings.ReplaceAll(binary(event.SweepRequested), "application/json", "text/xml"), `<a/>`, 400, "text/xml"},
		"follow-up data without an id":        {binary(event.CleanupRequested), `{}`, 400, "reservationId"},
		"follow-up data with a NUL":           {binary(event.CleanupRequested), `{"reservationId":"a\u0000"}`, 400, "reservationId"},
		"a level that is no whole number":     {binary(event.WarningRequested), `{"reservationId":"r","deadline":"2026-01-01T00:00:00Z","levelMinutes":1e400}`, 400, "levelMinutes"},
		"a deadline that Go cannot read":      {binary(event.WarningRequested), `{"reservationId":"r","deadline":"2016-12-31T23:59:60Z","levelMinutes":5}`, 400, "59:60"},
		"an event as large as it may be":      {binary(event.Ping), large[:maxEvent], 202, ""},
		"an event that is too large":          {binary(event.CleanupRequested), large, 413, "than 64 KiB"},
		"a plain POST":                        {"Content-Type: application/json", `{}`, 415, "not a CloudEvent"},
		"a POST of nothing":                   {"", ``, 415, "not a CloudEvent"},
		"a form":                              {"Content-Type: application/x-www-form-urlencoded", `a=b`, 415, "not a CloudEvent"},
		"an event format other than JSON":     {"Content-Type: application/cloudevents+xml", `<event/>`, 415, "JSON"},
		"an event format that may come later": {"Content-Type: application/cloudevents-batch+protobuf", ``, 415, "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			response := newDesk(t).post(t, "/", c.headers, c.body)
			body := text(t, response)
			require.Equal(t, c.status, response.StatusCode, body)
			require.Empty(t, response.Header.Get("Retry-After"))
			if c.status == http.StatusAccepted {
				require.Empty(t, body, "a broker takes anything else for an event")
				require.Empty(t, response.Header.Get("Content-Type"))
				return
			}
			requireRefusal(t, response, body, c.says)
		})
	}
}

// requireRefusal checks that a body is one line of JSON that says what was wrong.
func requireRefusal(t *testing.T, response *http.Response, body, says string) {
	t.Helper()
	require.Equal(t, "application/json", response.Header.Get("Content-Type"))
	require.Equal(t, 1, strings.Count(body, "\n"))
	var refusal map[string]string
	require.NoError(t, json.Unmarshal([]byte(body), &refusal), body)
	require.Len(t, refusal, 1)
	require.Contains(t, refusal["error"], says)
}

func TestAnEndlessBodyIsCutOff(t *testing.T) {
	t.Parallel()
	response := newDesk(t).send(t, http.MethodPost, "/", binary(event.Ping), endless{}) // chunked: no length is told
	require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestOtherMethodsAndPathsAreRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		for _, path := range []string{"/", "/dead-letter"} {
			response := d.send(t, method, path, "", nil)
			require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)
			require.Equal(t, http.MethodPost, response.Header.Get("Allow"))
			requireRefusal(t, response, text(t, response), "POST")
		}
	}
	response := d.post(t, "/elsewhere", binary(event.Ping), "")
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	requireRefusal(t, response, text(t, response), "nothing here")
}

func TestPeopleWhoAskForJSONGetTheResult(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.run = func(_ context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error) {
		return followup.Report{Kind: kind, Key: key, State: followup.StateFailed, Error: "no route", Next: 15 * time.Second}, nil
	}
	response := d.post(t, "/", binary(event.SweepRequested, "Accept: application/json"), `{"dryRun":true}`)
	require.Equal(t, http.StatusOK, response.StatusCode)
	var result sweep.Result
	require.NoError(t, json.Unmarshal([]byte(text(t, response)), &result))
	require.True(t, result.DryRun)
	require.Equal(t, sweep.Completed, result.Outcome)

	response = d.post(t, "/", binary(event.CleanupRequested, "Accept: text/html, application/json;q=0.9"), `{"reservationId":"r1"}`)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.JSONEq(t, `{"kind":"cleanup","key":"r1","state":"failed","error":"no route","again":"15s"}`, text(t, response))

	d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
		return followup.Report{State: followup.StateDone, Outcome: "settled"}, nil
	}
	response = d.post(t, "/", binary(event.CleanupRequested, "Accept: application/json"), `{"reservationId":"r1"}`)
	require.NotContains(t, text(t, response), "again")

	response = d.post(t, "/", binary(event.Ping, "Accept: */*"), ``)
	require.Equal(t, http.StatusAccepted, response.StatusCode, "that anything will do is what brokers and curl say")
}

func TestTheSweepIsToldWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	var got []event.SweepRequest
	d.sweep = func(_ context.Context, _ string, request event.SweepRequest) (sweep.Result, error) {
		got = append(got, request)
		return sweep.Result{}, nil
	}
	d.post(t, "/", binary(event.SweepRequested), `{"dryRun":true,"reservationIds":["a"]}`)
	d.post(t, "/", binary(event.Ping), `{"dryRun":true,"reservationIds":["a"]}`)
	require.Equal(t, []event.SweepRequest{{DryRun: true, ReservationIDs: []string{"a"}}, {}}, got)
	require.Equal(t, []string{
		"sweep " + event.SweepRequested, // a dry run sends nothing
		"sweep " + event.Ping, "send", "announce",
	}, d.calls)
}

func TestATickThatFindsTheSweepTakenIsAcknowledgedAndDoesNothing(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) {
		return sweep.Result{Outcome: sweep.Skipped}, nil
	}
	d.due = func() error { return errors.New("no sink") } // which whoever sweeps has to do with
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode)
	require.Equal(t, []string{"sweep " + event.Ping}, d.calls)
}

func TestAFollowUpIsKnownByItsDataAlone(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.post(t, "/", binary(event.WarningRequested, "Ce-Subject: somebody-else"),
		`{"reservationId":"r1","deadline":"2026-03-01T12:30:00Z","levelMinutes":15}`)
	require.Equal(t, []string{"run warning r1/1772368200/15", "share r1", "send"}, d.calls)
}

func TestACleanupThatNobodyAskedForIsMadeOfTheRows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wanted bool
		calls  []string
	}{
		"an ended reservation":  {true, []string{"run cleanup r1", "ensure r1", "run cleanup r1", "share", "send"}},
		"a forged one":          {false, []string{"run cleanup r1", "ensure r1", "share", "send"}},
		"never for other kinds": {true, []string{"run snapshot.purge snap-1", "share", "send"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.run = func(_ context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error) {
				return followup.Report{Kind: kind, Key: key, State: followup.StateAbsent}, nil
			}
			d.ensure = func(string) (bool, error) { return c.wanted, nil }
			headers, body := binary(event.CleanupRequested), `{"reservationId":"r1"}`
			if strings.Contains(c.calls[0], "purge") {
				headers, body = binary(event.SnapshotPurgeRequested), `{"snapshotId":"snap-1"}`
			}
			require.Equal(t, http.StatusAccepted, d.post(t, "/", headers, body).StatusCode)
			require.Equal(t, c.calls, d.calls)
		})
	}
}

func TestWhateverStateTheRowIsInTheEventIsTaken(t *testing.T) {
	t.Parallel()
	for state, status := range map[followup.State]int{
		followup.StateDone: 202, followup.StatePostponed: 202, followup.StateFailed: 202, followup.StateHeld: 202,
		followup.StateNotDue: 202, followup.StateAbsent: 202, followup.StateAlready: 202, followup.StateHandedBack: 503,
	} {
		d := newDesk(t)
		d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
			return followup.Report{State: state}, nil
		}
		require.Equal(t, status, d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`).StatusCode, state)
		require.Equal(t, state == followup.StateAbsent, slices.Contains(d.calls, "ensure r1"), state)
	}
}

func TestWhatMayPassIsAskedForAgain(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp db.internal:5432: hunter2")
	tick := func(d *desk) *http.Response { return d.post(t, "/", binary(event.Ping), "") }
	followUp := func(d *desk) *http.Response {
		return d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`)
	}
	for name, c := range map[string]struct {
		spoil func(d *desk)
		send  func(d *desk) *http.Response
	}{
		"the sweep cannot begin": {func(d *desk) {
			d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) { return sweep.Result{}, secret }
		}, tick},
		"the sweep panics": {func(d *desk) {
			d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) { panic(secret) }
		}, tick},
		"a fault that is permanent, but ours": {func(d *desk) {
			d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) {
				return sweep.Result{}, fault.Errorf(fault.Permanent, "forbidden: %w", secret)
			}
		}, tick},
		"follow-ups found no taker": {func(d *desk) { d.due = func() error { return secret } }, tick},
		"the row cannot be claimed": {func(d *desk) {
			d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
				return followup.Report{}, secret
			}
		}, followUp},
		"the row cannot be made": {func(d *desk) { d.run = absent; d.ensure = func(string) (bool, error) { return false, secret } }, followUp},
		"the follow-up panics": {func(d *desk) {
			d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) { panic(secret) }
		}, followUp},
		"a dead letter is not stored": {func(d *desk) { d.letter = func(postgres.DeadLetter) (int64, error) { return 0, secret } },
			func(d *desk) *http.Response { return d.post(t, "/dead-letter", binary("any.type"), "") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			c.spoil(d)
			response := c.send(d)
			body := text(t, response)
			require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
			require.NotEmpty(t, response.Header.Get("Retry-After"))
			requireRefusal(t, response, body, "")
			require.NotContains(t, body, "hunter2")
		})
	}
}

func TestTheLogSaysWhatBecameOfADelivery(t *testing.T) {
	t.Parallel()
	away := func() error { return errors.New("no sink") }
	for name, c := range map[string]struct {
		eventType string
		spoil     func(d *desk)
		warning   string // empty: none
	}{
		"a sweep":                     {event.Ping, func(*desk) {}, ""},
		"a follow-up":                 {event.CleanupRequested, func(*desk) {}, ""},
		"an event of an unknown type": {"dev.example.tea.v1", func(*desk) {}, "delivery not taken"},
		"facts that found no taker":   {event.CleanupRequested, func(d *desk) { d.drain = away }, "facts could not be announced"},
		"what it made due found none": {event.CleanupRequested, func(d *desk) { d.due = away }, "follow-ups could not be sent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			var log bytes.Buffer
			d.log = slog.New(slog.NewTextHandler(&log, nil))
			c.spoil(d)
			d.post(t, "/", binary(c.eventType), `{"reservationId":"r1"}`)
			require.Equal(t, c.warning != "", strings.Contains(log.String(), "level=WARN"), log.String())
			require.Contains(t, log.String(), c.warning)
			require.Equal(t, c.warning != "delivery not taken", strings.Contains(log.String(), "delivery taken"))
		})
	}
}

func absent(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
	return followup.Report{State: followup.StateAbsent}, nil
}

func TestWhatOnlyDelaysOthersDoesNotSpoilTheAnswer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.drain = func() error { return errors.New("no sink for facts") }
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode)
	d.due = func() error { return errors.New("no sink") }
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`).StatusCode)
	d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) {
		return sweep.Result{Outcome: sweep.Failed}, postgres.ErrLeaseLost
	}
	d.due = func() error { return nil }
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode, "another sweep has taken over")
}

func FuzzWhatASenderMaySend(f *testing.F) {
	f.Add("application/json", "1.0", event.CleanupRequested, "1", []byte(`{"reservationId":"r1"}`))
	f.Add("application/cloudevents+json", "", "", "", []byte(`{"specversion":"1.0","id":"1","source":"//t","type":"`+event.SweepRequested+`","data":{"dryRun":true}}`))
	f.Add("application/cloudevents+json", "", "", "", []byte(`{"specversion":"0.3","id":"1","datacontentencoding":1,"type":"t"}`))
	f.Add("application/cloudevents-batch+json", "", "", "", []byte(`[]`))
	f.Add("text/plain", "1.0", event.WarningRequested, "", []byte(`{"reservationId":"r","deadline":"2026-03-01T12:30:00Z","levelMinutes":5}`))
	d := &desk{sweep: func(context.Context, string, event.SweepRequest) (sweep.Result, error) { return sweep.Result{}, nil }, run: absent,
		ensure: func(string) (bool, error) { return false, nil }, letter: func(postgres.DeadLetter) (int64, error) { return 1, nil },
		drain: func() error { return nil }, due: func() error { return nil }}
	d.handler = newHandlerOf(d)
	routes := d.routes()
	f.Fuzz(func(t *testing.T, contentType, version, eventType, name string, body []byte) {
		for _, path := range []string{"/", "/dead-letter"} {
			request := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
			for header, value := range map[string]string{
				"Content-Type": contentType, "Ce-Specversion": version, "Ce-Type": eventType, "Ce-Id": name, "Ce-Source": "//t", "Ce-" + name: "x",
			} {
				if value != "" {
					request.Header[header] = []string{value}
				}
			}
			answer := httptest.NewRecorder()
			routes.ServeHTTP(answer, request)
			require.Less(t, answer.Code, 500, answer.Body)
		}
	})
}

func TestEveryLineAboutADeliverySaysOfWhich(t *testing.T) {
	t.Parallel()
	const parent = "Ce-Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, c := range map[string]struct {
		message string
		harm    func(d *desk)
	}{
		"taken": {"delivery taken", func(*desk) {}},
		"not taken": {"delivery not taken", func(d *desk) {
			d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
				return followup.Report{}, errors.New("away")
			}
		}},
		"panicked": {"delivery panicked", func(d *desk) {
			d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) { panic("boom") }
		}},
		"phases": {"phases are not written into their traces", func(d *desk) { d.lives = noLives{} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			var out bytes.Buffer
			d.log = telemetry.NewLogger(&out, "json", slog.LevelInfo)
			c.harm(d)
			d.post(t, "/", binary(event.CleanupRequested, parent), `{"reservationId":"r1"}`)
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, `"`+c.message+`"`) {
					require.Contains(t, line, `"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","reservation_id":"r1"`)
					require.NotRegexp(t, `"took":\d`, line)
					return
				}
			}
			require.Fail(t, "no such line", out.String())
		})
	}
}

type noLives struct{}

func (noLives) Write(context.Context, ...string) (int, error) { return 0, errors.New("no collector") }

func TestAPersonIsToldWhyNothingWasDone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		id    string
		state followup.State
		why   string
	}{
		"live":    {"live", followup.StateAbsent, `"why":"the reservation is active: nothing is to be cleaned up"`},
		"unknown": {"r1", followup.StateAbsent, `"why":"there is no such reservation"`},
		"held":    {"r1", followup.StateHeld, `"why":"another delivery is at it"`},
		"not due": {"r1", followup.StateNotDue, `"why":"it waits for its next try`},
		"already": {"r1", followup.StateAlready, `"state":"already done"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.run = func(_ context.Context, kind postgres.FollowUpKind, key string) (followup.Report, error) {
				return followup.Report{Kind: kind, Key: key, State: c.state}, nil
			}
			response := d.post(t, "/", binary(event.CleanupRequested, "Accept: application/json"), `{"reservationId":"`+c.id+`"}`)
			require.Contains(t, text(t, response), c.why)
		})
	}
}
