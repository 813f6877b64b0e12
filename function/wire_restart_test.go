package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// ownServer is a PostgreSQL server of one test's own, which goes away and comes back. It is made of the programs of the
// stack's, as the same user and in a directory beside that one's, with which it goes. Unlike that one it keeps through a
// crash what was committed.
type ownServer struct {
	t        *testing.T
	address  string // host and port
	database string // its URL
	program  string
	args     []string
	user     *syscall.SysProcAttr
	ended    chan struct{}

	mu      sync.Mutex
	process *os.Process
	over    bool          // it is not to come back
	back    chan struct{} // closed: it is there
	log     bytes.Buffer
	asked   []int          // statements in each of its lives
	at      int            // the statement of this one at which it goes away; 0: at none
	how     syscall.Signal // that asks for it
}

func newOwnServer(t *testing.T) *ownServer {
	t.Helper()
	programs, beside, user := ofTheStack(t)
	home, err := os.MkdirTemp(beside, "restarted-") //nolint:usetesting // in memory, where the stack found room, and goes with that
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if user.Credential != nil {
		require.NoError(t, os.Chown(home, int(user.Credential.Uid), int(user.Credential.Gid)))
	}
	owner, password := stacktest.Env(t, "POSTGRES_USER"), stacktest.Env(t, "POSTGRES_PASSWORD")
	require.NoError(t, os.WriteFile(home+"/password", []byte(password), 0o644)) // home is closed to others
	initdb := exec.CommandContext(t.Context(), programs+"/initdb", "-D", home+"/data", "--no-sync", "-U", owner, "-A", "md5",
		"--pwfile", home+"/password", "-E", "UTF8", "--locale=C.UTF-8")
	initdb.Dir, initdb.SysProcAttr = home, user
	said, err := initdb.CombinedOutput()
	require.NoError(t, err, "%s", said)

	port := strconv.Itoa(freePort(t))
	s := &ownServer{
		t: t, address: "127.0.0.1:" + port, program: programs + "/postgres", user: user, ended: make(chan struct{}), back: make(chan struct{}),
		args: []string{"-D", home + "/data", "-F", "-c", "listen_addresses=127.0.0.1", "-c", "port=" + port, "-c", "unix_socket_directories=",
			"-c", "timezone=UTC", "-c", "log_line_prefix=", "-c", "log_statement=all", "-c", "log_parameter_max_length=0"},
	}
	s.database = (&url.URL{Scheme: "postgres", User: url.UserPassword(owner, password), Host: s.address, Path: "postgres", RawQuery: "sslmode=disable"}).String()
	go s.run()
	t.Cleanup(s.end)
	s.wait()
	require.NoError(t, postgres.MigratePlatformTables(t.Context(), s.database))
	require.NoError(t, postgres.Migrate(t.Context(), s.database))
	return s
}

// ofTheStack returns where the stack's server has its programs and its data, and as whom it runs.
func ofTheStack(t *testing.T) (programs, home string, user *syscall.SysProcAttr) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), stacktest.Env(t, "STACK_POSTGRES_URL"))
	require.NoError(t, err)
	var data string
	err = conn.QueryRow(t.Context(), "select setting, current_setting('data_directory') from pg_config where name = 'BINDIR'").Scan(&programs, &data)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	info, err := os.Stat(data)
	require.NoError(t, err)
	user = &syscall.SysProcAttr{}
	if owned, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		user.Credential = &syscall.Credential{Uid: owned.Uid, Gid: owned.Gid}
	}
	return programs, filepath.Dir(data), user
}

// run has the server come, and come again when it has gone, until it is not to come back.
func (s *ownServer) run() {
	defer close(s.ended)
	for came := true; came; {
		cmd, log := s.start()
		if cmd == nil {
			return
		}
		came = false
		for lines := bufio.NewScanner(log); lines.Scan(); {
			came = s.hear(lines.Text()) || came
		}
		_ = cmd.Wait()
	}
}

// start starts it, unless it is not to come back.
func (s *ownServer) start() (cmd *exec.Cmd, log io.Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, nil
	}
	cmd = exec.CommandContext(context.WithoutCancel(s.t.Context()), s.program, s.args...)
	cmd.Dir, cmd.SysProcAttr = "/", s.user
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Errorf("start PostgreSQL: %v", err)
		return nil, nil
	}
	s.process = cmd.Process
	return cmd, log
}

// restart has it go away at once, in the way that a signal asks for, and come back.
func (s *ownServer) restart(how syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goAway(how)
}

// restartAfter has it do so once it has been asked so many more statements.
func (s *ownServer) restartAfter(statements int, how syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.how = s.asked[len(s.asked)-1]+statements, how
}

func (s *ownServer) goAway(how syscall.Signal) {
	s.back = make(chan struct{})
	if err := s.process.Signal(how); err != nil {
		s.t.Errorf("stop PostgreSQL: %v", err)
	}
}

// hear is told each line of its log, and reports whether that says that it has come.
func (s *ownServer) hear(line string) (came bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(&s.log, line)
	switch {
	case strings.HasSuffix(line, "database system is ready to accept connections"):
		s.asked = append(s.asked, 0)
		select {
		case <-s.back:
		default:
			close(s.back)
		}
		return true
	case strings.HasPrefix(line, "LOG:  execute "), strings.HasPrefix(line, "LOG:  statement: "):
		now := len(s.asked) - 1
		s.asked[now]++
		if s.asked[now] == s.at {
			s.at = 0
			s.goAway(s.how)
		}
	}
	return false
}

// wait waits until it is there.
func (s *ownServer) wait() {
	s.mu.Lock()
	back := s.back
	s.mu.Unlock()
	select {
	case <-back:
	case <-s.ended:
		s.t.Errorf("PostgreSQL does not come:\n%s", s.said())
	}
}

// lives are how many statements it was asked in each.
func (s *ownServer) lives() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// said is what it has logged.
func (s *ownServer) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (s *ownServer) end() {
	s.mu.Lock()
	s.over = true
	if s.process != nil {
		_ = s.process.Signal(syscall.SIGQUIT)
	}
	s.mu.Unlock()
	<-s.ended
}

// PostgreSQL goes away and comes back in the middle of a sweep, which then goes on, and at a statement of the next, which goes
// on at once: connections break with what the server says, then nobody listens, or one that turns them away.
func TestRestartsOfPostgreSQLOnTheWireEndNothingAndAreMadeGood(t *testing.T) {
	t.Parallel()
	for i, at := range []int{30, 3, 10, 20, 40, 50, 70, 100, 130, 160} {
		if i > 0 && os.Getenv(wireFaultsAll) == "" {
			break
		}
		t.Run(fmt.Sprintf("at statement %d", at), func(t *testing.T) {
			t.Parallel()
			crash, shutdown := syscall.SIGQUIT, syscall.SIGINT // PostgreSQL's immediate and fast shutdown
			if i%2 == 1 {
				crash, shutdown = shutdown, crash
			}
			server := newOwnServer(t)
			f := newFaultyOn(t, newBaseOn(t, server.database), server)
			before := f.evidence()

			var once sync.Once
			f.spoil(func(call string, _ http.ResponseWriter, _ *http.Request) bool {
				if call == "kubernetes GET pods" { // the list is answered when it is back
					once.Do(func() { server.restart(crash) })
					server.wait()
				}
				return false
			})
			noticed := f.faultyTick("SWEEP_TIMEOUT=1m")
			f.rows.Reset()
			require.Equal(t, "true", f.text("select (count(*) = 1 and min(finished_at) is not null)::text from expiry.sweeps"), "it began before and ended after")
			f.later()

			server.restartAfter(at, shutdown)
			noticed += f.faultyTick() // none, where all that failed was tried again and done
			server.wait()
			require.Eventually(t, func() bool { return len(server.lives()) == 3 }, 20*time.Second, 10*time.Millisecond, "it has gone twice")
			require.Contains(t, server.said(), "automatic recovery in progress")
			f.rows.Reset()
			f.mend()
			f.held(wireFault{service: "postgres"}, before)
			t.Logf("statements in its three lives: %v; %d failures told", server.lives(), noticed)
		})
	}
}
