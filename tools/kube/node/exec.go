package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"github.com/creack/pty"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// Exec is a pod annotation: "hang" makes every exec into the pod take until the pod stops.
const Exec = "devcluster/exec"

// outputTime is how long a background child may keep the output open after its command has exited.
const outputTime = 2 * time.Second

// execution runs one command in a container, for real.
type execution struct {
	sandboxes *Sandboxes
	pod       *corev1.Pod
	container *corev1.Container
}

func (e *execution) ExecInContainer(
	ctx context.Context, _, _, _ string, command []string, in io.Reader, out, errOut io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	if e.pod.Annotations[Exec] == "hang" {
		command = []string{"sleep", "infinity"}
	}
	cmd, err := e.sandboxes.Command(e.pod, e.container, command)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		if cmd.Process != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	})()
	if tty {
		return runInTerminal(cmd, in, out, resize)
	}
	// The typed nil of an absent stream must not get into the interface that exec.Cmd looks at.
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	}
	if in != nil {
		stdin, err := cmd.StdinPipe() // not cmd.Stdin: Wait would wait for a client that keeps its end open
		if err != nil {
			return fmt.Errorf("open stdin: %w", err)
		}
		go func() {
			_, _ = io.Copy(stdin, in)
			_ = stdin.Close()
		}()
	}
	cmd.WaitDelay = outputTime
	return exitCode(cmd.Run())
}

func runInTerminal(cmd *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	terminal, err := pty.Start(cmd)
	if err != nil {
		return fmt.Errorf("start in a terminal: %w", err)
	}
	defer terminal.Close()
	go func() {
		for size := range resize {
			_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
		}
	}()
	if in != nil {
		go func() { _, _ = io.Copy(terminal, in) }()
	}
	_, _ = io.Copy(out, terminal) // ends with an error when the command does
	return exitCode(cmd.Wait())
}

// exitCode turns the result into what the client gets to see: 128 + n where signal n ended the command.
func exitCode(err error) error {
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err
	}
	code := exit.ExitCode()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return utilexec.CodeExitError{Err: err, Code: code}
}
