package simulation

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// wire is a connection that waits for its answers without telling the runtime, which would look for other work and find
// none: all that happens in a world happens on one goroutine at a time.
type wire struct {
	*net.UnixConn
	fd int
	// mu is held for a read, and by who reads an answer to what he has written himself: pgx reads ahead where a write takes
	// long, and goes on with that until something comes.
	mu sync.Mutex
}

func newWire(conn *net.UnixConn) (net.Conn, error) {
	defer conn.Close()
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fd, err := syscall.Dup(int(file.Fd()))
	if err == nil {
		err = errors.Join(syscall.SetNonblock(fd, false),
			syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 5000}))
	}
	return &wire{UnixConn: conn, fd: fd}, err
}

func (c *wire) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		n, err := c.read(b)
		c.mu.Unlock()
		if n > 0 || err != nil {
			return n, err
		}
		runtime.Gosched() // nothing has been asked yet
	}
}

// read returns what there is, after 5 ms nothing.
func (c *wire) read(b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	switch {
	case errno == syscall.EINTR, errno == syscall.EAGAIN:
		return 0, nil
	case errno != 0:
		return 0, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

func (c *wire) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done))
		if errno != 0 && errno != syscall.EINTR {
			return done, fmt.Errorf("write: %w", errno)
		}
		if errno == 0 {
			done += int(n)
		}
	}
	return done, nil
}

func (c *wire) Close() error { return syscall.Close(c.fd) }

func (c *wire) SetDeadline(time.Time) error      { return nil }
func (c *wire) SetReadDeadline(time.Time) error  { return nil }
func (c *wire) SetWriteDeadline(time.Time) error { return nil }

// pgx begins to read where a write takes over 15 ms, and goes on after it.
func TestWhoReadsAheadTakesNoAnswerOfACommitThatWasHeldBack(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", name)
	require.NoError(t, err)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", name)
	require.NoError(t, err)
	server, err := listener.Accept()
	require.NoError(t, err)
	local, ok := conn.(*net.UnixConn)
	require.True(t, ok)
	w, err := newWire(local)
	require.NoError(t, err)
	go func() {
		for request := make([]byte, 4096); ; {
			if _, err := server.Read(request); err != nil {
				return
			}
			_, _ = server.Write(committed)
		}
	}()
	l := &line{Conn: w, d: &database{}}
	reading := make(chan error, 1)
	go func() {
		_, err := l.Read(make([]byte, 4096))
		reading <- err
	}()
	for ahead := false; !ahead; runtime.Gosched() {
		l.mu.Lock()
		ahead = l.reading
		l.mu.Unlock()
	}
	for range 20 {
		l.ended, l.d.open = true, l
		require.NoError(t, l.flush())
	}
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-reading, io.EOF)
	require.NoError(t, errors.Join(w.Close(), listener.Close()))
}
