package manifests

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const account = "reservation-expiry"

// roles returns the ClusterRoles as shipped, and for each whether it is bound for the whole cluster.
func roles(t *testing.T) (shipped []rbacv1.ClusterRole, everywhere map[string]bool) {
	t.Helper()
	all := objects(t, build(t, "knative/account"))
	everywhere = map[string]bool{}
	for _, o := range ofKind(all, "ClusterRoleBinding") {
		var b rbacv1.ClusterRoleBinding
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &b))
		everywhere[b.RoleRef.Name] = true
	}
	for _, o := range ofKind(all, "ClusterRole") {
		var r rbacv1.ClusterRole
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &r))
		shipped = append(shipped, r)
	}
	return shipped, everywhere
}

func TestRightsHoldWhereReservationsLiveAndNowhereElse(t *testing.T) {
	t.Parallel()
	_, everywhere := roles(t)
	require.Equal(t, map[string]bool{"reservation-expiry-cluster": true}, everywhere)
	var namespaces []string
	for _, o := range ofKind(objects(t, build(t, "knative/account")), "RoleBinding") {
		namespaces = append(namespaces, o.GetNamespace())
	}
	require.ElementsMatch(t, pod.Namespaces(""), namespaces)
}

// asShipped logs in as a ServiceAccount of the test's namespace that has the rights of the manifests there.
func asShipped(t *testing.T, c *stacktest.Cluster) *rest.Config {
	t.Helper()
	ctx := t.Context()
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: c.Namespace}}
	_, err := c.Client.CoreV1().ServiceAccounts(c.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	require.NoError(t, err)
	shipped, everywhere := roles(t)
	for _, role := range shipped {
		name := c.Namespace + "-" + role.Name
		bind := everywhere[role.Name]
		role.ObjectMeta = metav1.ObjectMeta{Name: name}
		_, err := c.Client.RbacV1().ClusterRoles().Create(ctx, &role, metav1.CreateOptions{})
		require.NoError(t, err)
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
		meta := metav1.ObjectMeta{Name: name}
		if bind {
			_, err = c.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subject}, metav1.CreateOptions{})
		} else {
			_, err = c.Client.RbacV1().RoleBindings(c.Namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subject}, metav1.CreateOptions{})
		}
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = c.Client.RbacV1().ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
			_ = c.Client.RbacV1().ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
		})
	}
	token, err := c.Client.CoreV1().ServiceAccounts(c.Namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	config := rest.AnonymousClientConfig(c.Config)
	config.BearerToken = token.Status.Token
	return config
}

func TestEveryCallIsAllowedAndEveryRightIsUsed(t *testing.T) {
	t.Parallel()
	c := stacktest.Kubernetes(t)
	config := asShipped(t, c)
	cluster := kube.New(func(context.Context) (*rest.Config, error) { return config, nil }, kube.Options{})
	callEverything(t, c, cluster, config)

	user := "system:serviceaccount:" + c.Namespace + ":" + account
	var granted []string
	shipped, _ := roles(t)
	for _, role := range shipped {
		for _, rule := range role.Rules {
			for _, kind := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted = append(granted, verb+" "+kind)
				}
			}
		}
	}
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		used, forbidden := audited(t, user)
		require.Empty(ct, forbidden)
		require.ElementsMatch(ct, granted, slices.Collect(maps.Keys(used)))
	}, 20*time.Second, 100*time.Millisecond)
}

// callEverything calls each method that the service's adapter has, in a world in which each has something to do.
func callEverything(t *testing.T, c *stacktest.Cluster, cluster *kube.Cluster, config *rest.Config) {
	t.Helper()
	ctx := t.Context()
	p := c.CreatePod("gpu-dev-12345678")
	_, err := cluster.ClusterUID(ctx)
	require.NoError(t, err)
	_, err = cluster.GetNode(ctx, p.Spec.NodeName)
	require.NoError(t, err)
	_, err = cluster.ListPods(ctx, c.Namespace)
	require.NoError(t, err)
	_, err = cluster.GetPod(ctx, c.Namespace, p.Name)
	require.NoError(t, err)

	echo := kube.Command{Namespace: c.Namespace, Pod: p.Name, Container: "gpu-dev", Argv: []string{"echo", "hello"}, Limit: 100}
	output, err := cluster.Exec(ctx, echo)
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(output.Stdout))
	overSPDY(t, config, c.Namespace, p.Name)

	core := c.Client.CoreV1()
	service, err := core.Services(c.Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name + "-ssh"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 22}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = cluster.ListServices(ctx, c.Namespace)
	require.NoError(t, err)
	_, err = cluster.GetService(ctx, c.Namespace, service.Name)
	require.NoError(t, err)
	require.NoError(t, cluster.DeleteService(ctx, c.Namespace, service.Name, string(service.UID)))

	ten := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	volume, err := core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: c.Namespace}, Spec: corev1.PersistentVolumeSpec{
			Capacity: ten, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.aws.com", VolumeHandle: "vol-0123456789abcdef0"},
			},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = core.PersistentVolumes().Delete(context.Background(), volume.Name, metav1.DeleteOptions{})
	})
	claim, err := core.PersistentVolumeClaims(c.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: volume.Name,
			Resources: corev1.VolumeResourceRequirements{Requests: ten},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = cluster.GetClaim(ctx, c.Namespace, claim.Name)
	require.NoError(t, err)
	_, err = cluster.RetainVolume(ctx, volume.Name, string(volume.UID))
	require.NoError(t, err)
	require.NoError(t, cluster.DeleteClaim(ctx, c.Namespace, claim.Name, string(claim.UID)))
	require.NoError(t, cluster.DeleteVolume(ctx, volume.Name, string(volume.UID)))
	require.NoError(t, cluster.DeletePod(ctx, c.Namespace, p.Name, string(p.UID), time.Second))
}

// overSPDY runs a command as the service does where no WebSocket gets through.
func overSPDY(t *testing.T, config *rest.Config, namespace, podName string) {
	t.Helper()
	exec := fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s/exec?container=gpu-dev&stdout=true&command=echo&command=hello", config.Host, namespace, podName)
	address, err := url.Parse(exec)
	require.NoError(t, err)
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", address)
	require.NoError(t, err)
	var said strings.Builder
	require.NoError(t, executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &said}))
	require.Equal(t, "hello\n", said.String())
}

// audited returns what a user did by the server's own account ("get pods/exec"), and what was refused.
func audited(t *testing.T, user string) (used map[string]bool, forbidden []string) {
	t.Helper()
	used = map[string]bool{}
	logs, err := filepath.Glob(filepath.Join(stacktest.Env(t, "STACK_DIR"), "logs", "kubernetes-audit*.log"))
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	for _, path := range logs {
		file, err := os.Open(path)
		require.NoError(t, err)
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if !strings.Contains(lines.Text(), user) {
				continue
			}
			var e struct {
				Verb      string
				User      struct{ Username string }
				ObjectRef struct{ Resource, Subresource string }
				Status    struct{ Code int } `json:"responseStatus"`
			}
			if json.Unmarshal(lines.Bytes(), &e) != nil || e.User.Username != user {
				continue // the last line may be half written
			}
			what := strings.TrimSuffix(e.Verb+" "+e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")
			used[what] = true
			if e.Status.Code == 403 {
				forbidden = append(forbidden, what)
			}
		}
		require.NoError(t, lines.Err())
		require.NoError(t, file.Close())
	}
	return used, forbidden
}
