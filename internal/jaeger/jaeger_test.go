package jaeger_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/jaeger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const traceID = "0b8f3a526c1d4e7f9a20b4c5d6e7f811"

// client asks a server that answers with body, and tells what it was asked.
func client(t *testing.T, status int, body string) (*jaeger.Client, *url.URL) {
	t.Helper()
	asked := &url.URL{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = *r.URL
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := jaeger.New(server.URL+"/jaeger", &http.Client{Transport: transport})
	require.NoError(t, err)
	return c, asked
}

func TestTraceIsReadAsJaegerSendsIt(t *testing.T) {
	t.Parallel()
	saved, err := os.ReadFile("testdata/life.json")
	require.NoError(t, err)
	c, asked := client(t, http.StatusOK, string(saved))
	trace, err := c.Trace(t.Context(), traceID)
	require.NoError(t, err)
	require.Equal(t, "/jaeger/api/traces/"+traceID, asked.Path)
	require.Equal(t, traceID, trace.ID)

	root := trace.Spans[0]
	require.Equal(t, "reservation", root.Name, "spans are in order of their start, the longest first")
	require.Empty(t, root.ParentID)
	require.Equal(t, "reservation-expiry", root.Service)
	require.Equal(t, time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), root.Start)
	require.Equal(t, "ada", root.Attributes["user.id"])
	require.Empty(t, root.Error())

	byName := map[string][]jaeger.Span{}
	for _, s := range trace.Spans {
		byName[s.Name] = append(byName[s.Name], s)
	}
	require.Equal(t, root.ID, byName["active"][0].ParentID)
	require.Len(t, byName["expire"][0].Links, 1)
	require.NotEqual(t, traceID, byName["expire"][0].Links[0].TraceID)
	require.Equal(t, "delete records of ada.dev.example.org: throttled", byName["dns"][0].Error())
	require.Equal(t, "30", byName["warn"][0].Attributes["warning.level"])
}

func TestSearchAsksForAttributesAndTimes(t *testing.T) {
	t.Parallel()
	c, asked := client(t, http.StatusOK, `{"data":[]}`)
	traces, err := c.Search(t.Context(), jaeger.Query{
		Service: "reservation-expiry", Operation: "warn", Attributes: map[string]string{"reservation.outcome": "error", "user.id": "ada"},
		From: time.UnixMicro(1), To: time.UnixMicro(2), Limit: 3,
	})
	require.NoError(t, err)
	require.Empty(t, traces)
	require.Equal(t, url.Values{
		"service": {"reservation-expiry"}, "operation": {"warn"}, "start": {"1"}, "end": {"2"}, "limit": {"3"},
		"tags": {`{"reservation.outcome":"error","user.id":"ada"}`},
	}, asked.Query())
}

func TestWhatJaegerSaysIsClassified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		want   fault.Kind
		says   string
	}{
		"no such trace":             {404, `{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}`, fault.Gone, "not found"},
		"an empty answer":           {200, `{"data":[]}`, fault.Gone, "not found"},
		"a proxy's 404 is not ours": {404, `<html>no route</html>`, fault.Permanent, "404"},
		"a bad question":            {400, `{"errors":[{"code":400,"msg":"malformed trace id"}]}`, fault.Permanent, "malformed trace id"},
		"storage trouble":           {500, `{"errors":[{"code":500,"msg":"badger is closed"}]}`, fault.Transient, "badger is closed"},
		"overloaded":                {429, ``, fault.Transient, "429"},
		"not Jaeger":                {200, `hello`, fault.Permanent, "does not answer as Jaeger does"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, _ := client(t, c.status, c.body)
			_, err := client.Trace(t.Context(), traceID)
			require.ErrorContains(t, err, c.says)
			require.Equal(t, c.want, fault.KindOf(err))
		})
	}
}

func TestUnreachableJaegerIsTransientAndItsPasswordUntold(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	c, err := jaeger.New(strings.Replace(server.URL, "http://", "http://ops:hunter2@", 1), &http.Client{Transport: &http.Transport{}})
	require.NoError(t, err)
	_, err = c.Trace(t.Context(), traceID)
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.NotContains(t, err.Error(), "hunter2")
}

func TestNewRefusesWhatIsNoHTTPAddress(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "jaeger:16686", "localhost", "ftp://jaeger", "http://", "http://[::1"} {
		_, err := jaeger.New(address, http.DefaultClient)
		require.Error(t, err, address)
	}
	c, err := jaeger.New("https://jaeger.internal/ui/", http.DefaultClient)
	require.NoError(t, err)
	require.Equal(t, "https://jaeger.internal/ui/trace/"+traceID, c.Page(traceID))
}
