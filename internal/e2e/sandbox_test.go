//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sandbox is what a pod is to the network: a loopback of its own. Knative's programs listen on fixed ports, several on
// the same, so each has one. Nothing leads out of it but the sockets that are opened in it from here.
type sandbox struct {
	jobs chan func()
	gone chan struct{} // closed when the test ends; somebody may still dial then
}

// newSandbox makes one; it needs root, if only over a user namespace (unshare --user --map-root-user).
func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	s := &sandbox{jobs: make(chan func()), gone: make(chan struct{})}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, since it is of no use outside
		made <- isolate()
		for {
			select {
			case job := <-s.jobs:
				job()
			case <-s.gone:
				return
			}
		}
	}()
	require.NoError(t, <-made, "make a network namespace: run as root, or through unshare --user --map-root-user")
	t.Cleanup(func() { close(s.gone) })
	return s
}

// isolate gives the present thread a network of its own, with a loopback that is up.
func isolate() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	var request struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = unix.IFF_UP | unix.IFF_RUNNING
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("set the loopback up: %w", errno)
	}
	return nil
}

// do does something inside.
func (s *sandbox) do(job func() error) error {
	result := make(chan error, 1)
	select {
	case s.jobs <- func() { result <- job() }:
		return <-result
	case <-s.gone:
		return errors.New("the sandbox is gone")
	}
}

// listen opens a port inside, to which this process answers.
func (s *sandbox) listen(t *testing.T, port int) net.Listener {
	t.Helper()
	var l net.Listener
	require.NoError(t, s.do(func() (err error) {
		l, err = net.Listen("tcp", local(port))
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// dial connects to a port inside.
func (s *sandbox) dial(ctx context.Context, port int) (net.Conn, error) {
	var conn net.Conn
	err := s.do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", local(port))
		return err
	})
	return conn, err
}

// forward has connections to a listener reach whatever dial connects to.
func forward(l net.Listener, dial func(ctx context.Context) (net.Conn, error)) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go join(near, dial)
	}
}

// join has a connection reach whatever dial connects to, until that side ends it.
func join(near net.Conn, dial func(ctx context.Context) (net.Conn, error)) {
	defer func() { _ = near.Close() }()
	far, err := dial(context.Background())
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(near, far)
}

// letOut has a port inside lead to the same port of this machine's loopback.
func (s *sandbox) letOut(t *testing.T, port string) {
	t.Helper()
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	l := s.listen(t, number)
	go forward(l, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", local(number))
	})
}

// letIn opens a port of this machine's loopback that leads to one inside.
func (s *sandbox) letIn(t *testing.T, inside int) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go forward(l, func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, inside) })
	return l.Addr().(*net.TCPAddr).Port
}
