package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// beCommand makes this test binary be the command itself, so that tests can start it as a process and kill it.
const beCommand = "TEST_BINARY_IS_RESERVATION_EXPIRY"

// asCommand is the environment of such a process: of this one's it has only the race detector's settings.
func asCommand(environ ...string) []string {
	return append([]string{beCommand + "=1", "PATH=" + os.Getenv("PATH"), "GORACE=" + os.Getenv("GORACE")}, environ...)
}

func TestMain(m *testing.M) {
	if os.Getenv(beCommand) != "" {
		commandOfTest()
	}
	// The one idle connection to the stack's API server, which client-go keeps per server.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*clientConnReadLoop).run"))
}

// process is the command, serving in a process of its own.
type process struct {
	*desk // for post

	cmd    *exec.Cmd
	log    *output
	exited chan error
}

// output is what a process has said so far. It may be read while the process goes on.
type output struct {
	mu   sync.Mutex
	said bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said.Write(p)
}

// String implements fmt.Stringer.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said.String()
}

// startProcess starts it with the rights on the database that the service has in production.
func startProcess(t *testing.T, database string, more ...string) *process {
	t.Helper()
	p := launchProcess(t, append(login(t, stacktest.AsService(t, database)), more...)...)
	require.Eventually(t, func() bool { return p.get(t, "/readyz") == http.StatusOK }, 20*time.Second, 20*time.Millisecond)
	return p
}

// launchProcess starts it and does not wait until it is ready.
func launchProcess(t *testing.T, environ ...string) *process {
	t.Helper()
	port := freePort(t)
	p := &process{log: &output{}, exited: make(chan error, 1), desk: &desk{url: "http://127.0.0.1:" + strconv.Itoa(port)}}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	p.cmd.Env = append(asCommand("PORT="+strconv.Itoa(port), "AWS_REGION=us-east-1", "EKS_CLUSTER_NAME=none"), environ...)
	p.cmd.Stderr, p.cmd.Stdout = p.log, p.log
	require.NoError(t, p.cmd.Start())
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited //nolint:errcheck // killed: it says so
		if t.Failed() {
			t.Log(p.log.String())
		}
	})
	return p
}

// freePort finds a port that nobody listens on, among those that the kernel gives to no outgoing connection: one of them
// would take it before the process does.
func freePort(t *testing.T) int {
	t.Helper()
	for {
		port := 10_000 + rand.IntN(20_000)
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":"+strconv.Itoa(port))
		if err == nil {
			require.NoError(t, listener.Close())
			return port
		}
		require.ErrorIs(t, err, syscall.EADDRINUSE)
	}
}

// get returns the status of a GET, 0 where nobody answers.
func (p *process) get(t *testing.T, path string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+path, nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func TestSIGTERMLetsATickFinishAndTakesNoMore(t *testing.T) {
	t.Parallel()
	database := stacktest.Database(t)
	p := startProcess(t, database)

	// The tick waits for this lock.
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	lock, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), "select from expiry.sweep_lease for update")
	require.NoError(t, err)

	answered := make(chan int, 1)
	go func() { answered <- p.post(t, "/", binary(event.Ping), "").StatusCode }() //nolint:testifylint // a failure is seen below: nothing is answered
	require.Eventually(t, func() bool {
		var waiting bool
		err := conn.QueryRow(t.Context(), `
			select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')`).Scan(&waiting)
		return err == nil && waiting
	}, 10*time.Second, 5*time.Millisecond)

	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool { return p.get(t, "/readyz") == http.StatusServiceUnavailable }, 5*time.Second, 5*time.Millisecond)
	late := p.post(t, "/", binary("com.example.late"), "")
	require.Equal(t, http.StatusBadRequest, late.StatusCode, "what was on its way is looked at")
	require.True(t, late.Close)
	require.Eventually(t, func() bool {
		return p.post(t, "/", binary("com.example.late"), "").StatusCode == http.StatusServiceUnavailable
	}, 2*comeWithin, 20*time.Millisecond)
	require.NoError(t, lock.Rollback(t.Context()))
	require.Equal(t, http.StatusAccepted, <-answered)
	select {
	case err := <-p.exited:
		p.exited <- nil
		require.NoError(t, err)
	case <-time.After(2 * comeWithin):
		t.Fatal("it does not end")
	}
	var outcome string
	require.NoError(t, conn.QueryRow(t.Context(), "select outcome from expiry.sweeps").Scan(&outcome))
	require.NotEqual(t, "running", outcome)
	require.NotContains(t, p.log.String(), stacktest.Env(t, "POSTGRES_PASSWORD"))
}

func TestAnIdleProcessEndsSoon(t *testing.T) {
	t.Parallel()
	p := startProcess(t, stacktest.Database(t))
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.exited:
		p.exited <- nil
		require.NoError(t, err)
	case <-time.After(2 * comeWithin):
		t.Fatal("it does not end")
	}
}
