package kube_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/kube"
)

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://api.example.org:6443"}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

func TestKubeconfigIsReadWhereItIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(path, []byte(kubeconfig), 0o600))
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none")+string(os.PathListSeparator)+path)
	config, err := kube.Kubeconfig(t.Context())
	require.NoError(t, err)
	require.Equal(t, "https://api.example.org:6443", config.Host)
	require.Equal(t, "secret", config.BearerToken)

	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = kube.Kubeconfig(t.Context())
	require.ErrorContains(t, err, "read KUBECONFIG: ")
}

func TestOutsideOfAClusterThereIsNoAccount(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err := kube.InCluster(t.Context())
	require.ErrorIs(t, err, rest.ErrNotInCluster)
}
