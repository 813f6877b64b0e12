package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

const (
	ourAudience = "reservation-expiry"
	ourSecret   = "hunter2-hunter2-hunter2"
	aTrigger    = "system:serviceaccount:reservation-expiry:tick-oidc-eventing.knative.dev-trigger"
)

// guarded is a desk behind an entry.
func guarded(t *testing.T, c config.Entry, within time.Duration) (*desk, *output) {
	t.Helper()
	said := &output{}
	d := newDesk(t)
	e := newEntry(c, d.telemetry.Metrics, slog.New(slog.NewTextHandler(said, nil)))
	if within != 0 {
		e.within = within
	}
	d.url = serveHTTP(t, e.server(d.routes()))
	return d, said
}

// serveHTTP serves on the loopback.
func serveHTTP(t *testing.T, web *http.Server) (url string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	t.Cleanup(func() { _ = web.Close(); require.ErrorIs(t, <-ended, http.ErrServerClosed) })
	return "http://" + listener.Addr().String()
}

func TestWhoIsNotLetInIsCounted(t *testing.T) {
	t.Parallel()
	metrics := &pushed{}
	d := newDesk(t)
	d.telemetry = metrics.telemetry(t)
	d.url = serveHTTP(t, newEntry(config.Entry{Token: config.NewSecret(ourSecret)}, d.telemetry.Metrics, quiet).server(d.routes()))
	require.Equal(t, 401, d.post(t, "/", binary(event.Ping), "").StatusCode)
	require.Equal(t, 202, d.post(t, "/", binary(event.Ping)+"\nAuthorization: Bearer "+ourSecret, "").StatusCode)
	require.EqualValues(t, 1, metrics.count("events", "cloudevents.event_type", "unknown"))
	require.EqualValues(t, 1, metrics.count("events", "cloudevents.event_type", event.Ping))
}

func TestWhoMayPost(t *testing.T) {
	t.Parallel()
	issuer := stacktest.NewIssuer(t, ourAudience)
	d, said := guarded(t, config.Entry{
		Issuer: issuer.URL, Audience: ourAudience, Subjects: []string{"system:serviceaccount:reservation-expiry:*"}, Token: config.NewSecret(ourSecret),
	}, 0)
	good := issuer.Token(t, aTrigger, nil)
	for name, c := range map[string]struct {
		authorization string
		status        int
		says          string
	}{
		"a token of the issuer for us": {"Bearer " + good, 202, ""},
		"the secret":                   {"Bearer " + ourSecret, 202, ""},
		"nothing":                      {"", 401, "no bearer token"},
		"a password":                   {"Basic YTpodW50ZXIyLWh1bnRlcjItaHVudGVyMg==", 401, "no bearer token"},
		"another secret":               {"Bearer " + strings.ToUpper(ourSecret), 401, "not known"},
		"a token for somebody else":    {"Bearer " + issuer.Token(t, aTrigger, map[string]any{"aud": "facts"}), 401, "audience"},
		"a token that is over":         {"Bearer " + issuer.Token(t, aTrigger, map[string]any{"exp": 1}), 401, "expired"},
		"a token of somebody else":     {"Bearer " + issuer.Token(t, "system:serviceaccount:default:default", nil), 403, "system:serviceaccount:default:default"},
	} {
		headers := ""
		if c.authorization != "" {
			headers = "\nAuthorization: " + c.authorization
		}
		for path, body := range map[string]string{"/": `{"dryRun":true}`, "/dead-letter": `{}`} {
			response := d.post(t, path, binary(event.SweepRequested)+headers, body)
			require.Equal(t, c.status, response.StatusCode, "%s to %s", name, path)
			require.Equal(t, c.status == 401, response.Header.Get("WWW-Authenticate") == "Bearer", name)
			require.Empty(t, response.Header.Get("Retry-After"))
			if c.status != 202 {
				requireRefusal(t, response, text(t, response), c.says)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		require.Equal(t, http.StatusOK, d.send(t, http.MethodGet, path, "", nil).StatusCode, "probes bring nothing")
	}
	require.Equal(t, http.StatusMethodNotAllowed, d.send(t, http.MethodGet, "/", "", nil).StatusCode)
	require.Equal(t, http.StatusUnauthorized, d.post(t, "/elsewhere", "", "").StatusCode)

	issuer.Rotate(t, "two")
	issuer.Down.Store(true)
	response := d.post(t, "/", binary(event.Ping, "Authorization: Bearer "+issuer.Token(t, aTrigger, nil)), "")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode, "it may pass: the issuer does not answer")
	require.NotEmpty(t, response.Header.Get("Retry-After"))
	require.NotContains(t, text(t, response), issuer.URL)
	require.NotContains(t, said.String(), ourSecret)
	require.NotContains(t, said.String(), good)
	require.Contains(t, said.String(), "status=403")
}

func TestAStrangersBodyIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	d, _ := guarded(t, config.Entry{Token: config.NewSecret(ourSecret)}, 300*time.Millisecond)
	for name, path := range map[string]string{"who is refused": "/", "who asks for what is not there": "/elsewhere"} {
		conn := dial(t, strings.TrimPrefix(d.url, "http://"),
			"POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nContent-Type: application/json\r\n\r\nsome of it")
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		require.Equal(t, http.StatusUnauthorized, answer.StatusCode, name)
		_, err = io.Copy(io.Discard, conn)
		if e, ok := err.(net.Error); ok { //nolint:errorlint // not wrapped
			require.False(t, e.Timeout(), "%s: the connection stays open", name)
		}
		_ = answer.Body.Close()
	}
}

func TestTheRestOfABodyThatIsTooLargeIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	d, _ := guarded(t, config.Entry{}, time.Minute)
	d.readWithin = time.Minute
	for name, body := range map[string]string{
		"that says so":  fmt.Sprintf("Content-Length: %d\r\n\r\n", maxEvent+1),
		"that says not": fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", maxEvent+100, strings.Repeat("x", maxEvent+1)),
	} {
		conn := dial(t, strings.TrimPrefix(d.url, "http://"), "POST / HTTP/1.1\r\nHost: x\r\n"+body)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		require.Equal(t, http.StatusRequestEntityTooLarge, answer.StatusCode, name)
		require.True(t, answer.Close, name)
		_ = answer.Body.Close()
	}
}

func TestAnAnswerThatNobodyTakesIsNotKept(t *testing.T) {
	t.Parallel()
	const takesNothing, takesAll = 0, 1<<31 - 1
	for name, c := range map[string]struct {
		ceType string
		window uint32 // that the client has for the answer over HTTP/2
		reads  bool
	}{
		"an empty one":                             {ceType: event.Ping, window: takesNothing, reads: true},
		"a short refusal":                          {ceType: "tea", window: takesNothing, reads: true},
		"a refusal that does not fit a buffer":     {ceType: strings.Repeat("tea", 3000), window: takesNothing, reads: true},
		"a dry run's, from a stream":               {ceType: event.SweepRequested, window: takesNothing, reads: true},
		"a dry run's, from a stalled connection":   {ceType: event.SweepRequested, window: takesAll},
		"a dry run's, from stalled HTTP/1 clients": {ceType: event.SweepRequested},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, _ := guarded(t, config.Entry{}, 2*time.Second)
			asked := make(chan struct{})
			d.sweep = func(context.Context, string, event.SweepRequest) (sweep.Result, error) {
				close(asked)
				return sweep.Result{Unknown: []string{strings.Repeat("much ", 4<<20)}}, nil // more than a socket's buffers hold
			}
			headers := http.Header{"Accept": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"x"}, "Ce-Type": {c.ceType}}
			address := strings.TrimPrefix(d.url, "http://")
			var conn net.Conn
			if c.window == 0 && !c.reads {
				var raw strings.Builder
				require.NoError(t, headers.Write(&raw))
				conn = dial(t, address, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"+raw.String()+"\r\n")
			} else {
				conn = dialHTTP2(t, address, headers, c.window)
			}
			if c.reads {
				require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
				frames := http2.NewFramer(io.Discard, conn)
				for reset := false; !reset; {
					frame, err := frames.ReadFrame()
					require.NoError(t, err, "the stream stays open")
					_, reset = frame.(*http2.RSTStreamFrame)
				}
			} else {
				<-asked
			}
			select {
			case <-d.door.close():
			case <-time.After(20 * time.Second):
				require.Fail(t, "the request goes on for ever")
			}
		})
	}
}

// dialHTTP2 posts over HTTP/2 and returns the connection: with so large a window for what the server sends.
func dialHTTP2(t *testing.T, address string, headers http.Header, window uint32) net.Conn {
	t.Helper()
	conn := dial(t, address, http2.ClientPreface)
	frames := http2.NewFramer(conn, nil)
	require.NoError(t, frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	if window > 0 {
		require.NoError(t, frames.WriteWindowUpdate(0, window-1<<16))
	}
	var block bytes.Buffer
	fields := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: "x"}} {
		require.NoError(t, fields.WriteField(f))
	}
	for name, values := range headers {
		require.NoError(t, fields.WriteField(hpack.HeaderField{Name: strings.ToLower(name), Value: values[0]}))
	}
	require.NoError(t, frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
	return conn
}

func TestItsOwnSinkBringsItselfTheSecret(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	p := startProcess(t, b.database, "EVENTS_BEARER_TOKEN="+ourSecret, "SELF_SWEEP=true")
	require.Eventually(t, func() bool {
		return b.text("select count(*)::text from expiry.sweeps where outcome <> 'running'") != "0"
	},
		20*time.Second, 20*time.Millisecond, "the sweep that it asks itself for")
	b.exec("insert into expiry.follow_ups (kind, key, subject) values ('availability.update', 'all', 'all')")
	require.Equal(t, http.StatusUnauthorized, p.post(t, "/", binary(event.Ping), "").StatusCode)
	require.Equal(t, http.StatusAccepted, p.post(t, "/", binary(event.Ping, "Authorization: Bearer "+ourSecret), "").StatusCode)
	require.Eventually(t, func() bool { return b.text("select count(*)::text from expiry.follow_ups where state = 'done'") == "1" }, 20*time.Second, 20*time.Millisecond,
		"the follow-up that it sends itself")

	letter := func(authorization string) int {
		return p.post(t, "/dead-letter", binary(event.Ping, authorization), "").StatusCode
	}
	require.Equal(t, http.StatusUnauthorized, letter("Authorization: Bearer x"))
	require.Equal(t, http.StatusAccepted, letter("Authorization: Bearer "+ourSecret))
	replay := func(more ...string) ran {
		return command(t, append(append(login(t, b.database), "SELF_URL="+p.url), more...), "dead-letters", "replay", "1")
	}
	require.Contains(t, replay().err, "401")
	done := replay("EVENTS_BEARER_TOKEN=" + ourSecret)
	require.Zero(t, done.code, done.err)
	require.NotContains(t, p.log.String()+done.out+done.err, ourSecret)
	require.Contains(t, p.log.String(), "events need a token")
}

func TestItSaysWhenItIsOpen(t *testing.T) {
	t.Parallel()
	p := startProcess(t, stacktest.Database(t))
	require.Contains(t, p.log.String(), "open: whoever reaches this service may post events")
	issuer := stacktest.NewIssuer(t, ourAudience)
	p = startProcess(t, stacktest.Database(t), "EVENTS_OIDC_ISSUER="+issuer.URL, "EVENTS_OIDC_AUDIENCE="+ourAudience, "EVENTS_BEARER_TOKEN="+ourSecret)
	require.NotContains(t, p.log.String(), "open:")
	require.Zero(t, issuer.Asked.Load(), "nothing is dialled before it is needed")
	require.Equal(t, http.StatusAccepted, p.post(t, "/", binary(event.Ping, "Authorization: Bearer "+issuer.Token(t, aTrigger, nil)), "").StatusCode)
	require.NotContains(t, fmt.Sprint(p.log), ourSecret)
}
