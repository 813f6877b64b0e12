package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// How long a start from zero may take. Only where none of several series keeps to that, and a bare HTTP server took longer
// than bareStart all the while, the machine is too slow or busy to tell, and the service may take longer in proportion.
const (
	toReady  = 100 * time.Millisecond
	toAnswer = 300 * time.Millisecond

	bareStart = 8 * time.Millisecond
	starts    = 11
	series    = 3
)

// TestAStartFromZeroIsFast starts the binary that is shipped and a bare server in turn, as processes.
func TestAStartFromZeroIsFast(t *testing.T) { //nolint:paralleltest // it wants the machine for itself
	service, bare := release(t, ".", "reservation-expiry"), release(t, "./testdata/bare", "bare")
	b := newBase(t)
	cluster := stacktest.Kubernetes(t)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	t.Cleanup(sink.Close)
	b.withWorld("HOME="+t.TempDir(), "K_SINK="+sink.URL, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	for range 3 { // a small world: live servers, of which none is due
		id := b.reservation(5 * time.Hour)
		b.exec("update reservations set namespace = $2, pod_name = $3 where reservation_id = $1", id, cluster.Namespace, "gpu-dev-"+id[:8])
		cluster.CreatePod("gpu-dev-" + id[:8])
	}
	for i := range series {
		var bareReady, ready, answered []time.Duration
		for range starts {
			s := begin(t, bare, nil)
			bareReady = append(bareReady, s.until(t, "/readyz"))
			s.end(t)
			s = begin(t, service, b.environ)
			ready = append(ready, s.until(t, "/readyz"))
			answered = append(answered, s.tick(t))
			s.end(t)
		}
		t.Logf("exec → ready: %s of %s, a bare Go HTTP server %s; exec → the first sweep's answer: %s of %s (medians of %d)",
			median(ready), toReady, median(bareReady), median(answered), toAnswer, starts)
		if median(ready) <= toReady && median(answered) <= toAnswer {
			return
		}
		slower := float64(median(bareReady)) / float64(bareStart)
		require.Greater(t, slower, 1.0, "this machine is fast enough")
		if i == series-1 {
			t.Logf("THE LIMITS ARE NOT KEPT: this machine is too slow or busy for them, and held to %.1f times as much", slower)
			require.LessOrEqual(t, median(ready), time.Duration(slower*float64(toReady)))
			require.LessOrEqual(t, median(answered), time.Duration(slower*float64(toAnswer)))
		}
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2].Round(100 * time.Microsecond)
}

// release builds a program as `make build` does.
func release(t *testing.T, source, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=test", "-o", program, source).CombinedOutput()
	require.NoError(t, err, string(out))
	return program
}

// beginning is a process that was started a moment ago.
type beginning struct {
	cmd    *exec.Cmd
	client *http.Client
	url    string
	log    *output
	at     time.Time
}

func begin(t *testing.T, program string, environ []string) *beginning {
	t.Helper()
	port := strconv.Itoa(freePort(t))
	s := &beginning{
		cmd: exec.CommandContext(context.WithoutCancel(t.Context()), program), url: "http://127.0.0.1:" + port, log: &output{},
		client: &http.Client{Transport: &http.Transport{}},
	}
	s.cmd.Env = append(append([]string{}, environ...), "PORT="+port, "AWS_REGION=us-east-1")
	s.cmd.Stderr = s.log
	s.at = time.Now()
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		if t.Failed() && s.cmd.ProcessState == nil { // it still runs
			t.Log(s.log.String())
		}
		_ = s.cmd.Process.Kill()
		s.client.CloseIdleConnections()
	})
	return s
}

// until returns how long after its start it answers 200 at a path.
func (s *beginning) until(t *testing.T, path string) time.Duration {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if s.status(t, http.MethodGet, path, nil) == http.StatusOK {
			return time.Since(s.at)
		}
		<-time.After(200 * time.Microsecond) // nobody tells when it listens
	}
	require.Fail(t, "it does not get ready", s.log.String())
	return 0
}

func (s *beginning) tick(t *testing.T) time.Duration {
	t.Helper()
	tick := `{"specversion":"1.0","id":"` + uuid.NewString() + `","source":"//test","type":"` + event.Ping + `"}`
	require.Equal(t, http.StatusAccepted, s.status(t, http.MethodPost, "/", strings.NewReader(tick)))
	return time.Since(s.at)
}

// status returns that of the answer, 0 where nobody answers.
func (s *beginning) status(t *testing.T, method, path string, event io.Reader) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.url+path, event)
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/cloudevents+json")
	response, err := s.client.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func (s *beginning) end(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Kill())
	_ = s.cmd.Wait()
}

func TestNothingIsDialledBeforeItIsNeeded(t *testing.T) {
	t.Parallel()
	var dialled atomic.Int32
	nobody, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = nobody.Close() })
	go func() {
		for {
			conn, err := nobody.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			_ = conn.Close()
		}
	}()
	address := nobody.Addr().(*net.TCPAddr)
	p := launchProcess(t, "POSTGRES_HOST=127.0.0.1", "POSTGRES_PORT="+strconv.Itoa(address.Port), "POSTGRES_USER=u", "POSTGRES_PASSWORD=p", "POSTGRES_DB=d",
		"AWS_ENDPOINT_URL=http://"+address.String(), "K_SINK=http://"+address.String(), "EKS_CLUSTER_NAME=some", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=s",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://"+address.String(), "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://"+address.String(), "HTTP_PROXY=http://"+address.String())
	require.Eventually(t, func() bool { return p.get(t, "/healthz") == http.StatusOK }, 20*time.Second, 10*time.Millisecond)
	require.Zero(t, dialled.Load())
	require.Equal(t, http.StatusServiceUnavailable, p.get(t, "/readyz"))
	require.NotZero(t, dialled.Load(), "readiness asks the database")
}

func TestAStartMigratesNothing(t *testing.T) {
	t.Parallel()
	empty := stacktest.EmptyDatabase(t)
	p := launchProcess(t, login(t, empty)...)
	require.Eventually(t, func() bool { return p.get(t, "/readyz") == http.StatusServiceUnavailable }, 20*time.Second, 10*time.Millisecond)
	rows, err := pgx.Connect(t.Context(), empty)
	require.NoError(t, err)
	t.Cleanup(func() { _ = rows.Close(context.Background()) })
	var there bool
	require.NoError(t, rows.QueryRow(t.Context(), "select to_regnamespace('expiry') is not null").Scan(&there))
	require.False(t, there)
}
