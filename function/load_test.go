package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

func TestFullOfFollowUpsItStillTakesTicks(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	inside, gate := make(chan struct{}), make(chan struct{})
	d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) {
		inside <- struct{}{}
		<-gate
		return followup.Report{State: followup.StateDone}, nil
	}
	followUp := func() *http.Response {
		return d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`)
	}
	var wg sync.WaitGroup
	for range followUpsAtOnce {
		wg.Go(func() {
			if status := followUp().StatusCode; status != http.StatusAccepted {
				t.Error(status)
			}
		})
		<-inside
	}
	full := followUp()
	require.Equal(t, http.StatusServiceUnavailable, full.StatusCode)
	require.Equal(t, "5", full.Header.Get("Retry-After"))
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.Ping), "").StatusCode)
	close(gate)
	wg.Wait()
	go func() { <-inside }()
	require.Equal(t, http.StatusAccepted, followUp().StatusCode, "there is room again")
}

func TestAsManyFollowUpsAreTakenAsKnativeLetsIn(t *testing.T) {
	t.Parallel()
	service, err := os.ReadFile("../knative/base/service.yaml")
	require.NoError(t, err)
	found := regexp.MustCompile(`containerConcurrency: (\d+)`).FindSubmatch(service)
	require.NotNil(t, found)
	letIn, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	require.LessOrEqual(t, letIn, followUpsAtOnce)
	require.LessOrEqual(t, letIn, deadLettersAtOnce)
}

func TestATickTooManyIsSkippedAndFollowUpsAreStillTaken(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	metrics := &pushed{}
	d.telemetry = metrics.telemetry(t)
	inside, gate := make(chan struct{}), make(chan struct{})
	d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) {
		inside <- struct{}{}
		<-gate
		return sweep.Result{}, nil
	}
	var wg sync.WaitGroup
	for range ticksAtOnce {
		wg.Go(func() { d.post(t, "/", binary(event.Ping), "") })
		<-inside
	}
	tick := d.post(t, "/", binary(event.Ping), "")
	require.Equal(t, http.StatusAccepted, tick.StatusCode)
	require.Empty(t, text(t, tick))
	require.EqualValues(t, 1, metrics.count("sweep.skipped", "reason", "too many ticks"))
	tick = d.post(t, "/", binary(event.SweepRequested, "Accept: application/json"), `{"dryRun":true}`)
	require.JSONEq(t, `{"trigger":"`+event.SweepRequested+`","outcome":"skipped","dryRun":true,"counts":{},"durationsMs":{}}`, text(t, tick))
	require.Equal(t, http.StatusBadRequest, d.post(t, "/", binary(event.SweepRequested), `{"dryrun":true}`).StatusCode, "wrong all the same")
	require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`).StatusCode)
	close(gate)
	wg.Wait()
}

func TestASlotIsFreedByAPanic(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.run = func(context.Context, postgres.FollowUpKind, string) (followup.Report, error) { panic("oops") }
	for range 2*followUpsAtOnce + 1 {
		response := d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r1"}`)
		require.NotContains(t, text(t, response), errFull.reason)
	}
}

func TestADeliveryThatWasToldToEndNoMoreSaysSo(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	require.Equal(t, http.StatusOK, d.send(t, http.MethodGet, "/readyz", "", nil).StatusCode)
	<-d.door.close()
	response := d.post(t, "/", binary(event.Ping), "")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.True(t, response.Close, "the next try had better find another instance")
	requireRefusal(t, response, text(t, response), "shutting down")
	require.Equal(t, http.StatusServiceUnavailable, d.send(t, http.MethodGet, "/readyz", "", nil).StatusCode)
	require.Equal(t, http.StatusOK, d.send(t, http.MethodGet, "/healthz", "", nil).StatusCode, "it is alive until the end")
	require.Empty(t, d.calls)
}

func TestTheDoorTellsWhenTheLastHasLeft(t *testing.T) {
	t.Parallel()
	var d door
	require.True(t, d.enter())
	require.True(t, d.enter())
	d.leave()
	empty := d.close()
	require.False(t, d.enter())
	select {
	case <-empty:
		t.Fatal("somebody is inside")
	default:
	}
	d.leave()
	<-empty
}

func TestReadyzSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		says string
	}{
		"schema":   {postgres.ErrSchema, "reservation-expiry migrate"},
		"database": {errors.New("dial tcp: hunter2"), "database cannot be reached"},
		"sink":     {&unavailable{reason: "K_SERVICE is set and K_SINK is not"}, "K_SINK"},
	} {
		d := newDesk(t)
		d.isReady = func() error { return c.err }
		response := d.send(t, http.MethodGet, "/readyz", "", nil)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode, name)
		body := text(t, response)
		requireRefusal(t, response, body, c.says)
		require.NotContains(t, body, "hunter2")
	}
}

func TestAClientThatGoesAwayCancelsItsDeliveryAndNoOther(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	inside, ended := make(chan struct{}), make(chan error, 1)
	d.run = func(ctx context.Context, _ postgres.FollowUpKind, key string) (followup.Report, error) {
		if key == "r1" {
			close(inside)
			<-ctx.Done()
			ended <- ctx.Err()
		}
		return followup.Report{State: followup.StateDone}, nil
	}
	ctx, hangUp := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, strings.NewReader(
		`{"specversion":"1.0","id":"1","source":"//t","type":"`+event.CleanupRequested+`","data":{"reservationId":"r1"}}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/cloudevents+json")
	gone := make(chan error, 1)
	go func() {
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		gone <- err
	}()
	<-inside
	hangUp()
	require.ErrorIs(t, <-gone, context.Canceled)
	require.ErrorIs(t, <-ended, context.Canceled)
	for range 20 { // the SDK's own receiver stalls for good after this
		require.Equal(t, http.StatusAccepted, d.post(t, "/", binary(event.CleanupRequested), `{"reservationId":"r2"}`).StatusCode)
	}
}

// dial sends raw bytes to a server and returns the connection.
func dial(t *testing.T, address, raw string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, raw)
	require.NoError(t, err)
	return conn
}

func TestABodyThatDoesNotComeIsNotWaitedForAndTimeForReadingIsNoTimeForWorking(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.readWithin = 100 * time.Millisecond
	head := "POST / HTTP/1.1\r\nHost: x\r\nCe-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: //t\r\nCe-Type: " + event.Ping + "\r\n"
	address := strings.TrimPrefix(d.url, "http://")

	slow := dial(t, address, head+"Content-Length: 100\r\n\r\n{")
	response, err := http.ReadResponse(bufio.NewReader(slow), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestTimeout, response.StatusCode)
	_ = response.Body.Close()
	require.Empty(t, d.calls)

	// The work may take longer than the body might have.
	d.sweep = func(ctx context.Context, _ string, _ event.SweepRequest) (sweep.Result, error) {
		select {
		case <-ctx.Done():
			return sweep.Result{}, ctx.Err()
		case <-time.After(5 * d.readWithin):
			return sweep.Result{}, nil
		}
	}
	for _, body := range []string{"Content-Length: 2\r\n\r\n{}", "Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"} {
		response, err = http.ReadResponse(bufio.NewReader(dial(t, address, head+body)), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, response.StatusCode)
		_ = response.Body.Close()
	}
}

func TestDeadLettersAreStoredWhateverIsWrongWithThem(t *testing.T) {
	t.Parallel()
	broker := []string{"Ce-Knativeerrorcode: 400", "Ce-Knativeerrordest: http://expiry/", "Ce-Knativeerrordata: eyJlcnJvciI6Im5vIn0="}
	failed := postgres.DeadLetter{EventID: "1", EventSource: "//test", EventType: event.CleanupRequested, ErrorCode: "400", ErrorData: `{"error":"no"}`, ErrorDest: "http://expiry/"}
	of := func(change func(*postgres.DeadLetter)) postgres.DeadLetter {
		letter := failed
		change(&letter)
		return letter
	}
	for name, c := range map[string]struct {
		headers, body string
		want          postgres.DeadLetter
	}{
		"as it was sent": {binary(event.CleanupRequested, broker...), `{"reservationId":"r1"}`, of(func(d *postgres.DeadLetter) {
			d.Event = `{"specversion":"1.0","id":"1","source":"//test","type":"` + event.CleanupRequested + `","datacontenttype":"application/json","data":{"reservationId":"r1"}}`
		})},
		"malformed data": {binary(event.CleanupRequested, broker...), `{`, of(func(d *postgres.DeadLetter) {
			d.Event = `{"specversion":"1.0","id":"1","source":"//test","type":"` + event.CleanupRequested + `","datacontenttype":"application/json","data_base64":"ew=="}`
		})},
		"an unknown type, structured": {structured, `{"specversion":"1.0","id":"9","source":"//x","type":"dev.example.tea","subject":"s","knativeerrorcode":"400","data":1}`,
			postgres.DeadLetter{EventID: "9", EventSource: "//x", EventType: "dev.example.tea", EventSubject: "s", ErrorCode: "400",
				Event: `{"specversion":"1.0","id":"9","source":"//x","type":"dev.example.tea","subject":"s","data":1}`}},
		"no attributes at all": {"Ce-Specversion: 1.0", ``, postgres.DeadLetter{Event: `{"specversion":"1.0","id":"","source":"","type":""}`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			var got postgres.DeadLetter
			d.letter = func(letter postgres.DeadLetter) (int64, error) { got = letter; return 7, nil }
			response := d.post(t, "/dead-letter", c.headers, c.body)
			require.Equal(t, http.StatusAccepted, response.StatusCode)
			require.Empty(t, text(t, response))
			require.Equal(t, c.want, got)
		})
	}
	d := newDesk(t)
	large := `"` + strings.Repeat("x", 2*maxEvent) + `"`
	require.Equal(t, http.StatusAccepted, d.post(t, "/dead-letter", binary(event.Ping), large).StatusCode, "what was refused for its size ends here")
	require.Equal(t, http.StatusUnsupportedMediaType, d.post(t, "/dead-letter", "", "{}").StatusCode)
	response := d.post(t, "/dead-letter", binary(event.Ping, "Accept: application/json"), "")
	require.JSONEq(t, `{"deadLetter":7}`, text(t, response))
}

func TestTheMetricsKnowOnlyTypesThatWeKnow(t *testing.T) {
	t.Parallel()
	for _, eventType := range []string{event.Ping, event.SweepRequested, event.CleanupRequested, event.SweepCompleted} {
		require.Equal(t, eventType, knownType(eventType))
	}
	require.Equal(t, "unknown", knownType("dev.example."+fmt.Sprint(time.Now())))
}
