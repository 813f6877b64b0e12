package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// Command is what to run in a container.
type Command struct {
	Namespace string
	Pod       string
	Container string
	// Argv is run as it is, with no shell.
	Argv []string
	// Stdin is the command's input; nil for none. It must not block: it is read until the command or the timeout ends.
	Stdin io.Reader
	// Limit is how many bytes of each of stdout and stderr are kept, at least one; the rest is read and dropped.
	Limit int
	// Timeout bounds it from dialling to the exit code; at most MaxTimeout, which is also the default. The command itself
	// may run on in the container: nothing can end it from here.
	Timeout time.Duration
}

// Output is what a command wrote, as far as it was kept.
type Output struct {
	Stdout []byte
	Stderr []byte
	// Truncated is true if stdout was longer.
	Truncated bool
}

// ExitError is the error of a command that ran and ended with a code other than zero.
type ExitError struct {
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return fmt.Sprintf("exit code %d: %s", e.Code, e.Stderr)
}

// errCut is the error of a command that has not written all that it writes before it succeeds.
var errCut = errors.New("the stream ended early")

// Exec runs a command in a running container and returns what it wrote; the output is set even with an error. A command
// that failed is an *ExitError. No error is no proof that it succeeded, or wrote no more: client-go takes a stream that
// ends without a word for success, as it does when a proxy or the API server closes it early. What matters must be in
// the output. Which pod has that name is for the caller to look at first: the API knows no UID here.
//
// The stream is a WebSocket, or SPDY where the way to the API server or its rules refuse that.
func (c *Cluster) Exec(ctx context.Context, command Command) (Output, error) {
	t := target{"pods", command.Namespace, command.Pod}
	if err := t.check("exec in"); err != nil {
		return Output{}, err
	}
	timeout := command.Timeout
	if timeout <= 0 || timeout > MaxTimeout {
		timeout = MaxTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	stdout, stderr := newKept(command.Limit), newKept(command.Limit)
	// The stream's own log would go to this process's stderr as text; what matters comes back as the error.
	quiet := klog.NewContext(ctx, logr.Discard())
	done := make(chan error, 1)
	go func() {
		done <- c.stream(quiet, t, command, remotecommand.StreamOptions{Stdin: command.Stdin, Stdout: stdout, Stderr: stderr})
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done(): // a stream may hang where it looks at no context
		err = ctx.Err()
	}
	output := Output{Stdout: stdout.bytes(), Stderr: stderr.bytes(), Truncated: stdout.truncated()}
	if failed, ok := errors.AsType[exec.CodeExitError](err); ok {
		err = &ExitError{Code: failed.Code, Stderr: strings.TrimSpace(strings.ToValidUTF8(string(output.Stderr), "\uFFFD"))}
	}
	return output, classify(err, "exec in", t)
}

func (c *Cluster) stream(ctx context.Context, t target, command Command, streams remotecommand.StreamOptions) error {
	client, config, err := c.connect(ctx)
	if err != nil {
		return err
	}
	r := client.Post().Resource(t.resource).Namespace(t.namespace).Name(t.name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: command.Container,
			Command:   command.Argv,
			Stdin:     streams.Stdin != nil,
			Stdout:    true,
			Stderr:    true,
		}, parameters)
	if err := r.Error(); err != nil {
		return fault.Errorf(fault.Permanent, "%w", err)
	}
	websocket, err := remotecommand.NewWebSocketExecutor(config, "GET", r.URL().String())
	if err != nil {
		return fmt.Errorf("prepare a WebSocket: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", r.URL())
	if err != nil {
		return fmt.Errorf("prepare SPDY: %w", err)
	}
	err = websocket.StreamWithContext(ctx, streams)
	if err == nil {
		return nil
	}
	if !refused(err) {
		return fmt.Errorf("by WebSocket: %w", err)
	}
	// Refused before the command began: nothing runs twice, and stdin is unread.
	again := spdy.StreamWithContext(ctx, streams)
	if again == nil {
		return nil
	}
	if !strings.Contains(again.Error(), "unable to upgrade connection") {
		return fmt.Errorf("by SPDY: %w", again)
	}
	// SPDY's refusal is a mere text; the WebSocket's holds what the API server said, if it was the one.
	if upgrade, ok := errors.AsType[*httpstream.UpgradeFailureError](err); ok {
		err = upgrade.Cause
	}
	return fmt.Errorf("by WebSocket: %w; by SPDY: %w", err, again)
}

// refused reports whether the stream could not be opened as a WebSocket at all: a 403 from something on the way, an API
// server or proxy that does not know it, or an HTTPS proxy, which the WebSocket library does not.
func refused(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}
