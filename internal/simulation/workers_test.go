package simulation

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// seedWithin is how long a worker may take over one seed, which it does in less than a second, or over its end.
const seedWithin = 2 * time.Minute

// employ has a worker, a process of its own, run a test's seeds as they come. It stays on one core together with the
// processes that serve its database: to wake one on another core costs more than most statements do.
func employ(test string, n int, seeds <-chan uint64, done func(report)) error {
	runtime.LockOSThread() // for good: a child begins on its parent's core, and the thread ends with this goroutine
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("look which cores there are: %w", err)
	}
	one.Set(nth(&all, n%all.Count()))
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("stay on one core: %w", err)
	}
	out, reports, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = out.Close() }()
	var said bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=0", "-worker")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, os.Stderr, []*os.File{reports}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is for the parent alone
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err = errors.Join(err, reports.Close()); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	answers := json.NewDecoder(out)
	for seed := range seeds {
		var r report
		_, err = fmt.Fprintln(in, seed)
		if err == nil {
			err = out.SetReadDeadline(time.Now().Add(seedWithin))
		}
		if err == nil {
			err = answers.Decode(&r)
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("seed %d: %w", seed, err), cmd.Process.Kill())
			break
		}
		done(r)
	}
	_ = in.Close() // that is how a worker hears that there is no more to do
	late := time.AfterFunc(seedWithin, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if ended := cmd.Wait(); ended != nil {
		return errors.Join(err, fmt.Errorf("%w: %s", ended, &said))
	}
	return err
}

// nth is one of a set of cores.
func nth(set *unix.CPUSet, n int) int {
	core := -1
	for found := -1; found < n; {
		if core++; set.IsSet(core) {
			found++
		}
	}
	return core
}

// work runs each seed that comes in, and answers with its report.
func work(t *testing.T, in io.Reader, out io.Writer, run func(d *database, seed uint64) report) {
	debug.SetGCPercent(1600)
	d := newDatabase(t)
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		seed, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err == nil {
			err = answers.Encode(run(d, seed))
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// stayTogether has the process that serves a connection stay on the core of this one, if it has one only. Where it is
// not to be found, the server being elsewhere, it stays where it is.
func stayTogether(_ context.Context, conn *pgconn.PgConn) error {
	var core unix.CPUSet
	err := unix.SchedGetaffinity(0, &core)
	if err != nil || core.Count() != 1 || conn.Conn().RemoteAddr().Network() != "unix" {
		return err
	}
	name, unknown := os.ReadFile(fmt.Sprintf("/proc/%d/comm", conn.PID()))
	if unknown == nil && string(name) == "postgres\n" {
		_ = unix.SchedSetaffinity(int(conn.PID()), &core)
	}
	return nil
}
