package platform

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// ExecInPod runs a command in a server, as its user would, and returns what it printed.
func (p *Platform) ExecInPod(ctx context.Context, pod string, command ...string) (string, error) {
	url := p.Cluster.CoreV1().RESTClient().Post().Namespace(Namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "gpu-dev", Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewWebSocketExecutor(p.config, "GET", url.String())
	if err != nil {
		return "", fmt.Errorf("exec into pod %s: %w", pod, err)
	}
	var out, errOut bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}); err != nil {
		return "", fmt.Errorf("exec into pod %s: %w %s", pod, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}
