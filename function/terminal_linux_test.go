package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/text"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onTerminal runs this test binary as the command, on a terminal of so many columns, and returns what that showed.
func onTerminal(t *testing.T, columns uint16, environ []string, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	defer func() { _ = master.Close() }()
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: columns}))
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(asCommand("TERM=xterm"), environ...)
	cmd.Stdout, cmd.Stderr = terminal, terminal
	require.NoError(t, cmd.Start())
	require.NoError(t, terminal.Close())
	shown, _ := io.ReadAll(master) // ends with an error when the last process lets go of the terminal
	require.NoError(t, cmd.Wait(), "%s", shown)
	return strings.ReplaceAll(string(shown), "\r\n", "\n")
}

func TestOnATerminalTablesFitAndProgressIsTold(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld()
	overdue := b.reservation(-time.Hour)
	shown := onTerminal(t, 100, b.environ, "sweep")
	require.True(t, strings.HasPrefix(shown, "sweeping …\n"), shown)
	require.Contains(t, pretty.StripEscape(shown), "cleanup "+overdue[:8]+": ", "each follow-up, as it ends")
	require.NotContains(t, shown, `{"time"`, "the log would be in the way")
	for line := range strings.Lines(pretty.StripEscape(shown)) {
		require.LessOrEqual(t, pretty.StringWidth(strings.TrimRight(line, "\n")), 100, line)
	}

	const escape = "\x1b["
	require.Contains(t, onTerminal(t, 60, b.environ, "status"), escape)
	require.NotContains(t, onTerminal(t, 100, append(b.environ, "NO_COLOR=1"), "status"), escape)
	require.NotContains(t, onTerminal(t, 100, append(b.environ, "TERM=dumb"), "status"), escape)
	require.NotContains(t, b.run(0, "status").out, escape, "it is no terminal")
}
