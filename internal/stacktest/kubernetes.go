package stacktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
)

const (
	// SimulatedNode is the label that makes a Node object run the pods bound to it.
	SimulatedNode = "devcluster/simulated"
	// StopAfter is the pod annotation for how long its processes take to exit when asked to: a duration, or "never".
	StopAfter = "devcluster/stop-after"
	// Exec is the pod annotation that with the value "hang" lets no exec into the pod come to an end.
	Exec = "devcluster/exec"

	kubernetesTime = 15 * time.Second // for anything that the API server or a node is waited for
	pollEvery      = 10 * time.Millisecond
)

// Cluster is a namespace of a test's own in the stack's cluster.
type Cluster struct {
	Config     *rest.Config // of a cluster administrator
	Client     kubernetes.Interface
	Kubeconfig string // path
	Namespace  string

	t testing.TB
}

// Kubernetes makes a namespace, which goes with everything in it when the test ends.
func Kubernetes(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{Kubeconfig: Env(t, "KUBECONFIG"), Namespace: "test-" + strings.ToLower(rand.Text()[:12]), t: t}
	var err error
	c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	require.NoError(t, err, notUp)
	c.Config.QPS = -1
	c.Client, err = kubernetes.NewForConfig(c.Config)
	require.NoError(t, err)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: c.Namespace, Annotations: map[string]string{"test": t.Name()},
	}}
	_, err = c.Client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{})
	require.NoError(t, err, notUp)
	t.Cleanup(func() {
		// Pods at once, else a stubborn one would keep the namespace.
		ctx, now := context.Background(), *metav1.NewDeleteOptions(0)
		_ = c.Client.CoreV1().Pods(c.Namespace).DeleteCollection(ctx, now, metav1.ListOptions{})
		_ = c.Client.CoreV1().Namespaces().Delete(ctx, c.Namespace, metav1.DeleteOptions{})
	})
	return c
}

// CreatePod creates a dev server pod, by default with the one container gpu-dev on node-0, and waits until it runs.
// A pod that changes direct to a node which is not simulated or not ready stays Pending and is not waited for.
func (c *Cluster) CreatePod(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	c.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.Namespace},
		Spec:       corev1.PodSpec{NodeName: "node-0", Containers: []corev1.Container{{Name: "gpu-dev", Image: "gpu-dev"}}},
	}
	for _, change := range changes {
		change(pod)
	}
	created, err := c.Client.CoreV1().Pods(pod.Namespace).Create(c.t.Context(), pod, metav1.CreateOptions{})
	require.NoError(c.t, err)
	if !c.nodeReady(pod.Spec.NodeName) {
		return created
	}
	c.eventually("pod "+name+" runs", func(ctx context.Context) (bool, error) {
		created, err = c.Client.CoreV1().Pods(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
		return err == nil && created.Status.Phase == corev1.PodRunning, err
	})
	return created
}

// SetStatus changes a pod's status as its node would; the simulated node leaves it so.
func (c *Cluster) SetStatus(name string, change func(*corev1.PodStatus)) *corev1.Pod {
	c.t.Helper()
	pods := c.Client.CoreV1().Pods(c.Namespace)
	pod, err := pods.Get(c.t.Context(), name, metav1.GetOptions{})
	require.NoError(c.t, err)
	change(&pod.Status)
	pod, err = pods.UpdateStatus(c.t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(c.t, err)
	return pod
}

// CreateNode makes a simulated node of the test's own, so that it may be made unready or deleted, and waits until it
// is ready. A node that is not ready or gone does nothing: its pods neither start nor end, and no exec reaches them.
func (c *Cluster) CreateNode(changes ...func(*corev1.Node)) *corev1.Node {
	c.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: c.Namespace + "-" + strings.ToLower(rand.Text()[:6]), Labels: map[string]string{SimulatedNode: "true"},
	}}
	for _, change := range changes {
		change(node)
	}
	nodes := c.Client.CoreV1().Nodes()
	_, err := nodes.Create(c.t.Context(), node, metav1.CreateOptions{})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = nodes.Delete(context.Background(), node.Name, metav1.DeleteOptions{}) })
	c.eventually("node "+node.Name+" is ready", func(context.Context) (bool, error) { return c.nodeReady(node.Name), nil })
	node, err = nodes.Get(c.t.Context(), node.Name, metav1.GetOptions{})
	require.NoError(c.t, err)
	return node
}

// SetNodeReady sets a node's Ready condition: with False or Unknown it is dead, with True it comes back.
func (c *Cluster) SetNodeReady(name string, ready corev1.ConditionStatus) {
	c.t.Helper()
	nodes := c.Client.CoreV1().Nodes()
	node, err := nodes.Get(c.t.Context(), name, metav1.GetOptions{})
	require.NoError(c.t, err)
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == corev1.NodeReady {
			node.Status.Conditions[i].Status = ready
		}
	}
	_, err = nodes.UpdateStatus(c.t.Context(), node, metav1.UpdateOptions{})
	require.NoError(c.t, err)
}

func (c *Cluster) nodeReady(name string) bool {
	node, err := c.Client.CoreV1().Nodes().Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil || node.Labels[SimulatedNode] == "" {
		return false
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// ReadFile returns a file of a pod's container gpu-dev; a relative path is one in /home/dev.
func (c *Cluster) ReadFile(pod, path string) string {
	c.t.Helper()
	text, err := c.Exec(pod, nil, "sh", "-c", `cd /home/dev && cat -- "$1"`, "sh", path)
	require.NoError(c.t, err, "read %s in pod %s", path, pod)
	return text
}

// Files lists /home/dev of a pod's container gpu-dev, hidden files too, in order.
func (c *Cluster) Files(pod string) []string {
	c.t.Helper()
	text, err := c.Exec(pod, nil, "ls", "-A", "/home/dev")
	require.NoError(c.t, err, "list /home/dev in pod %s", pod)
	return strings.Fields(text)
}

// Exec runs a command in a pod's container gpu-dev and returns what it printed (stderr last), with
// the error that client-go gives.
func (c *Cluster) Exec(pod string, stdin io.Reader, command ...string) (output string, err error) {
	c.t.Helper()
	url := c.Client.CoreV1().RESTClient().Post().Namespace(c.Namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: "gpu-dev", Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", url.String())
	require.NoError(c.t, err)
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(c.t.Context(), remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	return out.String() + errOut.String(), err
}

func (c *Cluster) eventually(what string, condition wait.ConditionWithContextFunc) {
	c.t.Helper()
	err := wait.PollUntilContextTimeout(c.t.Context(), pollEvery, kubernetesTime, true, condition)
	require.NoError(c.t, err, "wait until %s", what)
}
