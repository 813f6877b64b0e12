package kube_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// world is a namespace of its own on the real API server, seen by the adapter and by somebody who may do anything.
type world struct {
	*kube.Cluster
	stack     *stacktest.Cluster
	admin     typedcorev1.CoreV1Interface
	namespace string
}

func newWorld(t *testing.T) world {
	t.Helper()
	stack := stacktest.Kubernetes(t)
	return world{Cluster: loggedIn(stack.Config), stack: stack, admin: stack.Client.CoreV1(), namespace: stack.Namespace}
}

func loggedIn(config *rest.Config) *kube.Cluster {
	return kube.New(func(context.Context) (*rest.Config, error) { return config, nil }, kube.Options{})
}

func pendingPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"user-id": "alice", "pod": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "gpu-dev", Image: "gpu-dev"}}},
	}
}

// pending makes a pod that no node runs.
func (w world) pending(t *testing.T, name string) {
	t.Helper()
	_, err := w.admin.Pods(w.namespace).Create(t.Context(), pendingPod(name), metav1.CreateOptions{})
	require.NoError(t, err)
}

// eventually polls until the condition's requirements hold.
func eventually(t *testing.T, condition func(c *assert.CollectT)) {
	t.Helper()
	require.EventuallyWithT(t, condition, 20*time.Second, 20*time.Millisecond)
}
