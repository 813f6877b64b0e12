package stacktest_test

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
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	authenticationv1 "k8s.io/api/authentication/v1"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestExecDeliversStdinItsEndAndTheExitCodeOverBothProtocols(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	cluster.CreatePod("dev")
	content := make([]byte, 1<<20)
	_, err := rand.Read(content)
	require.NoError(t, err)

	for name, connect := range map[string]func(*rest.Config, string) (remotecommand.Executor, error){
		"websocket": func(c *rest.Config, url string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(c, "GET", url)
		},
		"spdy": func(c *rest.Config, url string) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(c, "POST", mustParse(t, url))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := func(stdin io.Reader, command ...string) (string, error) {
				executor, err := connect(cluster.Config, execURL(cluster, "dev", stdin != nil, command))
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var out, errOut bytes.Buffer
				err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
				return out.String() + errOut.String(), err
			}
			_, err := run(bytes.NewReader(content), "sh", "-c", "cat > /home/dev/"+name)
			require.NoError(t, err)
			read, err := run(nil, "cat", "/home/dev/"+name)
			require.NoError(t, err)
			require.Equal(t, string(content), read)

			said, err := run(nil, "sh", "-c", "echo no >&2; exit 7")
			var exit utilexec.CodeExitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 7, exit.Code)
			require.Equal(t, "no\n", said)
		})
	}
}

func TestEachPodHasAHomeOfItsOwnAndAClaimOutlivesIts(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	createClaim(t, cluster, "disk")
	withDisk := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"},
		}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
	}
	cluster.CreatePod("a", withDisk)
	cluster.CreatePod("b")
	_, err := cluster.Exec("a", strings.NewReader("kept"), "sh", "-c", "cat > /home/dev/file && touch /etc/only-in-a")
	require.NoError(t, err)
	require.Empty(t, cluster.Files("b"))
	_, err = cluster.Exec("b", nil, "test", "-e", "/etc/only-in-a")
	require.Error(t, err)
	require.NoFileExists(t, "/etc/only-in-a")

	deleteAndWait(t, cluster, "a", metav1.DeleteOptions{})
	cluster.CreatePod("a", withDisk)
	require.Equal(t, "kept", cluster.ReadFile("a", "file"))
	_, err = cluster.Exec("a", nil, "test", "-e", "/etc/only-in-a")
	require.Error(t, err)
}

func TestAPodTakesItsTimeToStopButNotMoreThanItsGrace(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	for name, c := range map[string]struct {
		stopAfter    string
		grace        int64
		atLeast, max time.Duration
	}{
		"at-once": {"", 30, 0, time.Second},
		"slow":    {"1s", 30, time.Second - 10*time.Millisecond, 3 * time.Second},
		"killed":  {"20s", 1, time.Second - 10*time.Millisecond, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster.CreatePod(name, func(p *corev1.Pod) { p.Annotations = map[string]string{stacktest.StopAfter: c.stopAfter} })
			// The API server counts in whole seconds: what it calls the moment of deletion may be almost one earlier.
			asked := time.Now().Truncate(time.Second)
			deleteAndWait(t, cluster, name, metav1.DeleteOptions{GracePeriodSeconds: &c.grace})
			require.GreaterOrEqual(t, time.Since(asked), c.atLeast)
			require.Less(t, time.Since(asked), c.max+time.Second)
		})
	}
}

func TestADeadNodeLeavesItsPodsUntilTheyAreForced(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	node := cluster.CreateNode()
	cluster.CreatePod("dev", func(p *corev1.Pod) { p.Spec.NodeName = node.Name })
	cluster.SetNodeReady(node.Name, corev1.ConditionUnknown)
	_, err := cluster.Exec("dev", nil, "true")
	require.Error(t, err)

	pods := cluster.Client.CoreV1().Pods(cluster.Namespace)
	require.NoError(t, pods.Delete(t.Context(), "dev", *metav1.NewDeleteOptions(1)))
	pod, err := pods.Get(t.Context(), "dev", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotNil(t, pod.DeletionTimestamp)
	deleteAndWait(t, cluster, "dev", *metav1.NewDeleteOptions(0))
}

func TestAStatusSetByHandStaysAndAContainerThatDoesNotRunTakesNoExec(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	cluster.CreatePod("dev")
	killed := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}
	cluster.SetStatus("dev", func(s *corev1.PodStatus) {
		s.Phase, s.ContainerStatuses[0].State = corev1.PodFailed, killed
	})
	_, err := cluster.Exec("dev", nil, "true")
	require.ErrorContains(t, err, `container not found ("gpu-dev")`)
	pod, err := cluster.Client.CoreV1().Pods(cluster.Namespace).Get(t.Context(), "dev", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.PodFailed, pod.Status.Phase)
	require.Equal(t, killed, pod.Status.ContainerStatuses[0].State)
}

func TestAnExecThatHangsEndsWithItsClient(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	cluster.CreatePod("dev", func(p *corev1.Pod) { p.Annotations = map[string]string{stacktest.Exec: "hang"} })
	executor, err := remotecommand.NewWebSocketExecutor(cluster.Config, "GET", execURL(cluster, "dev", false, []string{"true"}))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestAServiceAccountTokenMayDoWhatItsRoleSays(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	cluster.CreatePod("dev")
	_, err := cluster.Client.CoreV1().ServiceAccounts(cluster.Namespace).Create(t.Context(),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	token, err := cluster.Client.CoreV1().ServiceAccounts(cluster.Namespace).CreateToken(t.Context(), "reader",
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	config := rest.AnonymousClientConfig(cluster.Config)
	config.BearerToken = token.Status.Token
	as, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)

	_, err = as.CoreV1().Pods(cluster.Namespace).Get(t.Context(), "dev", metav1.GetOptions{})
	require.True(t, errors.IsForbidden(err), "%v", err)
	grantPodReading(t, cluster, "reader")
	require.Eventually(t, func() bool {
		_, err := as.CoreV1().Pods(cluster.Namespace).Get(t.Context(), "dev", metav1.GetOptions{})
		return err == nil
	}, 5*time.Second, 10*time.Millisecond)
}

func TestADeletedClaimAndVolumeGoOnceNoPodUsesThem(t *testing.T) {
	t.Parallel()
	cluster := stacktest.Kubernetes(t)
	createClaim(t, cluster, "disk")
	cluster.CreatePod("dev", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"},
		}}}
	})
	claims := cluster.Client.CoreV1().PersistentVolumeClaims(cluster.Namespace)
	require.NoError(t, claims.Delete(t.Context(), "disk", metav1.DeleteOptions{}))
	claim, err := claims.Get(t.Context(), "disk", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotNil(t, claim.DeletionTimestamp)
	deleteAndWait(t, cluster, "dev", metav1.DeleteOptions{})
	require.Eventually(t, func() bool {
		_, err := claims.Get(t.Context(), "disk", metav1.GetOptions{})
		return errors.IsNotFound(err)
	}, 10*time.Second, 20*time.Millisecond)
}

func createClaim(t *testing.T, cluster *stacktest.Cluster, name string) {
	t.Helper()
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	_, err := cluster.Client.CoreV1().PersistentVolumeClaims(cluster.Namespace).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: cluster.Namespace,
			Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func deleteAndWait(t *testing.T, cluster *stacktest.Cluster, pod string, options metav1.DeleteOptions) {
	t.Helper()
	pods := cluster.Client.CoreV1().Pods(cluster.Namespace)
	require.NoError(t, pods.Delete(t.Context(), pod, options))
	require.Eventually(t, func() bool {
		_, err := pods.Get(t.Context(), pod, metav1.GetOptions{})
		return errors.IsNotFound(err)
	}, 10*time.Second, 10*time.Millisecond)
}

func execURL(cluster *stacktest.Cluster, pod string, stdin bool, command []string) string {
	return cluster.Client.CoreV1().RESTClient().Post().Namespace(cluster.Namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: "gpu-dev", Command: command, Stdin: stdin, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL().String()
}
