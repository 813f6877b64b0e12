//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// process is a program that a test has started. It ends with the test, and at once if the test is killed.
type process struct {
	name   string
	log    string // file
	cmd    *exec.Cmd
	mu     sync.Mutex
	wanted bool // that it ends
	ended  chan struct{}
}

// starter starts processes from one thread that stays: the kernel kills a child when the thread that made it ends.
var starter = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// onStarter runs start on the thread that stays.
func onStarter(start func() error) error {
	result := make(chan error, 1)
	starter() <- func() { result <- start() }
	return <-result
}

// start starts a program with nothing but this environment. If it ends before it is told to, the test fails.
func start(t *testing.T, name string, environ []string, program string, args ...string) *process {
	t.Helper()
	p := newProcess(t, name, environ, program, args...)
	p.run(t, onStarter)
	return p
}

func newProcess(t *testing.T, name string, environ []string, program string, args ...string) *process {
	t.Helper()
	p := &process{name: name, log: filepath.Join(logDir(t), name+".log"), cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, environ...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p
}

// run starts the process on whatever thread on does things.
func (p *process) run(t *testing.T, on func(func() error) error) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	require.NoError(t, on(p.cmd.Start), p.name)
	go func() {
		err := p.cmd.Wait()
		_ = log.Close()
		p.mu.Lock()
		if !p.wanted {
			t.Errorf("%s has ended by itself: %v\n%s", p.name, err, p.tail())
		}
		p.mu.Unlock()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said: %s", p.name, p.log)
		}
	})
}

// kill is kill -9, and waits until the process is gone.
func (p *process) kill() { p.signal(syscall.SIGKILL, 0) }

// stop is what a kubelet does: SIGTERM, and SIGKILL after the grace period.
func (p *process) stop(grace time.Duration) { p.signal(syscall.SIGTERM, grace) }

func (p *process) signal(s syscall.Signal, grace time.Duration) {
	p.mu.Lock()
	p.wanted = true
	p.mu.Unlock()
	if err := p.cmd.Process.Signal(s); !errors.Is(err, os.ErrProcessDone) && grace > 0 {
		select {
		case <-p.ended:
		case <-time.After(grace):
			_ = p.cmd.Process.Kill()
		}
	}
	<-p.ended
}

// tail returns the last lines of the log.
func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	lines = lines[max(0, len(lines)-8):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 400)]
	}
	return "  " + strings.Join(lines, "\n  ")
}

// logDir is where the processes' logs are; they go with the stack.
func logDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(stacktest.Env(t, "STACK_DIR"), "logs")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}

// freePort finds a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
