//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// entrypoint is where the image has the binary.
const entrypoint = "/reservation-expiry"

// unpackImage makes the file system of the service's container, and returns where it is: there is the binary and, where
// every pod has them, the token of its ServiceAccount and the cluster's certificate.
func unpackImage(t *testing.T, w *world) (root string) {
	t.Helper()
	root = t.TempDir()
	program, err := os.ReadFile(binary)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, entrypoint), program, 0o700))
	write(t, filepath.Join(root, "var/run/secrets/kubernetes.io/serviceaccount"), map[string][]byte{
		"token": []byte(w.token(t, namespace, account, 24*time.Hour)), "ca.crt": w.config.CAData, "namespace": []byte(namespace),
	})
	return root
}

// confine has a command see nothing but a container's file system.
func confine(cmd *exec.Cmd, root string) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Chroot, cmd.Dir = root, "/"
}

// mount brings the container's Secrets into it as they are now. A kubelet does so again whenever one has changed.
func (f *function) mount() {
	f.t.Helper()
	var pod corev1.PodTemplateSpec
	require.NoError(f.t, runtime.DefaultUnstructuredConverter.FromUnstructured(f.template(), &pod))
	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		for _, volume := range pod.Spec.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			for _, source := range volume.Projected.Sources {
				secret, err := f.CoreV1().Secrets(namespace).Get(f.t.Context(), source.Secret.Name, metav1.GetOptions{})
				require.NoError(f.t, err)
				write(f.t, filepath.Join(f.root, mount.MountPath), secret.Data)
			}
		}
	}
}

// write puts files into a folder, each whole or not at all.
func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for name, content := range files {
		half := filepath.Join(dir, "."+name)
		require.NoError(t, os.WriteFile(half, content, 0o600))
		require.NoError(t, os.Rename(half, filepath.Join(dir, name)))
	}
}
