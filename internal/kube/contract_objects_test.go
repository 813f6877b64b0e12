package kube_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

func requireKind(t *testing.T, want fault.Kind, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want.String(), fault.KindOf(err).String(), err)
}

func TestContractListPodsIsWholeBeyondAPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const many = 1_001 // three pages
	want := make([]string, many)
	var creating errgroup.Group
	creating.SetLimit(32)
	for i := range want {
		want[i] = fmt.Sprintf("gpu-dev-%08x", i)
		creating.Go(func() error {
			_, err := w.admin.Pods(w.namespace).Create(t.Context(), pendingPod(want[i]), metav1.CreateOptions{})
			return err
		})
	}
	require.NoError(t, creating.Wait())
	pods, err := w.ListPods(t.Context(), w.namespace)
	require.NoError(t, err)
	var got []string
	for _, p := range pods {
		got = append(got, p.Name)
		require.Equal(t, "alice", p.UserID)
		require.Equal(t, pod.Pending, p.Phase)
		require.NotEmpty(t, p.UID)
		require.WithinDuration(t, time.Now(), p.Created, time.Minute)
	}
	require.Equal(t, want, got)
}

func TestContractAnEmptyNamespaceAndAMissingOneListNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, namespace := range []string{w.namespace, "no-such-namespace"} {
		pods, err := w.ListPods(t.Context(), namespace)
		require.NoError(t, err)
		require.Empty(t, pods)
		services, err := w.ListServices(t.Context(), namespace)
		require.NoError(t, err)
		require.Empty(t, services)
	}
}

func TestContractWhatIsNotThereIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"get pod":                        func() error { _, err := w.GetPod(ctx, w.namespace, "none"); return err },
		"get pod in a missing namespace": func() error { _, err := w.GetPod(ctx, "no-such-namespace", "none"); return err },
		"get service":                    func() error { _, err := w.GetService(ctx, w.namespace, "none"); return err },
		"get claim":                      func() error { _, err := w.GetClaim(ctx, w.namespace, "none"); return err },
		"get volume":                     func() error { _, err := w.GetVolume(ctx, "none"); return err },
		"retain volume":                  func() error { _, err := w.RetainVolume(ctx, "none", "u"); return err },
		"get node":                       func() error { _, err := w.GetNode(ctx, "none"); return err },
		"delete pod":                     func() error { return w.DeletePod(ctx, w.namespace, "none", "u", time.Minute) },
		"force pod":                      func() error { return w.ForceDeletePod(ctx, w.namespace, "none", "u") },
		"delete service":                 func() error { return w.DeleteService(ctx, w.namespace, "none", "u") },
		"delete claim":                   func() error { return w.DeleteClaim(ctx, w.namespace, "none", "u") },
		"delete volume":                  func() error { return w.DeleteVolume(ctx, "none", "u") },
		"write a file": func() error {
			return w.WriteFile(ctx, w.namespace, "none", "gpu-dev", pod.File{Dir: "/home/dev", Name: "x"})
		},
		"list the disk": func() error { _, err := w.RunListing(ctx, w.namespace, "none", "gpu-dev", "/home/dev"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireKind(t, fault.Gone, call())
		})
	}
}

func TestContractWithoutPermissionIsPermanentAndWithoutLoginTransient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stranger := rest.CopyConfig(w.stack.Config)
	stranger.Impersonate.UserName = "nobody-in-particular"
	_, err := loggedIn(stranger).GetPod(t.Context(), w.namespace, "none")
	requireKind(t, fault.Permanent, err)
	_, err = loggedIn(stranger).ListPods(t.Context(), w.namespace)
	requireKind(t, fault.Permanent, err)
	err = loggedIn(stranger).WriteFile(t.Context(), w.namespace, "none", "gpu-dev", pod.File{Dir: "/home/dev", Name: "x"})
	requireKind(t, fault.Permanent, err)

	loggedOut := rest.AnonymousClientConfig(w.stack.Config)
	loggedOut.BearerToken = "expired"
	_, err = loggedIn(loggedOut).GetPod(t.Context(), w.namespace, "none")
	requireKind(t, fault.Transient, err)
}

func TestContractAPodIsDeletedByItsUIDOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	made := w.stack.CreatePod("gpu-dev-1")
	requireKind(t, fault.Conflict, w.DeletePod(ctx, w.namespace, "gpu-dev-1", "another", 30*time.Second))
	requireKind(t, fault.Conflict, w.ForceDeletePod(ctx, w.namespace, "gpu-dev-1", "another"))
	p, err := w.GetPod(ctx, w.namespace, "gpu-dev-1")
	require.NoError(t, err)
	require.Zero(t, p.Deleting)
	require.Equal(t, pod.Running, p.Phase)
	main, ok := p.Main()
	require.True(t, ok && main.Running)

	require.NoError(t, w.DeletePod(ctx, w.namespace, "gpu-dev-1", string(made.UID), 30*time.Second))
	eventually(t, func(c *assert.CollectT) {
		_, err := w.GetPod(ctx, w.namespace, "gpu-dev-1")
		require.Equal(c, fault.Gone, fault.KindOf(err))
	})
}

func TestContractAForcedPodIsGoneAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.stack.CreatePod("gpu-dev-1", func(p *corev1.Pod) { p.Spec.NodeName = "a-node-that-is-lost" })
	require.NoError(t, w.DeletePod(t.Context(), w.namespace, "gpu-dev-1", string(made.UID), 30*time.Second))
	p, err := w.GetPod(t.Context(), w.namespace, "gpu-dev-1")
	require.NoError(t, err, "nobody is there to stop it")
	require.WithinDuration(t, time.Now().Add(30*time.Second), p.Deleting, 15*time.Second)
	require.NoError(t, w.ForceDeletePod(t.Context(), w.namespace, "gpu-dev-1", string(made.UID)))
	_, err = w.GetPod(t.Context(), w.namespace, "gpu-dev-1")
	requireKind(t, fault.Gone, err)
}

func TestContractStatusesComeThrough(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	at := metav1.NewTime(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	set := func(name string, change func(*corev1.PodStatus)) pod.Pod {
		w.pending(t, name)
		w.stack.SetStatus(name, change)
		v, err := w.GetPod(ctx, w.namespace, name)
		require.NoError(t, err)
		return v
	}
	evicted := set("evicted", func(s *corev1.PodStatus) {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory"
	})
	dead, reason := pod.Dead(evicted)
	require.True(t, dead)
	require.Equal(t, "Evicted: The node was low on resource: memory", reason)

	killed := set("oom", func(s *corev1.PodStatus) {
		s.Phase = corev1.PodRunning
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "gpu-dev", RestartCount: 1, ContainerID: "containerd://b", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://a", Reason: "OOMKilled", ExitCode: 137, FinishedAt: at}}}}
	})
	dead, _ = pod.Dead(killed)
	require.False(t, dead)
	require.Equal(t, []pod.OOM{{Key: "containerd://a@2026-03-01T12:00:00Z", ContainerID: "containerd://a", Container: "gpu-dev", Kind: pod.App, At: at.Time}}, pod.OOMs(killed))

	disrupted := set("disrupted", func(s *corev1.PodStatus) {
		s.Phase = corev1.PodRunning
		s.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "TerminationByKubelet", Message: "node shutdown"}}
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "gpu-dev", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 143, FinishedAt: at}}}}
	})
	dead, reason = pod.Dead(disrupted)
	require.True(t, dead)
	require.Equal(t, "TerminationByKubelet: node shutdown", reason)
}

func TestContractServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"gpu-dev-1", "gpu-dev-2"} {
		w.pending(t, name)
		_, err := w.admin.Services(w.namespace).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name + "-ssh"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"pod": name}, Ports: []corev1.ServicePort{{Port: 22}}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	pods, err := w.ListPods(ctx, w.namespace)
	require.NoError(t, err)
	services, err := w.ListServices(ctx, w.namespace)
	require.NoError(t, err)
	require.Len(t, services, 2)
	mine := pod.ServicesOf(pods[0], pods, services)
	require.Len(t, mine, 1)
	require.Equal(t, "gpu-dev-1-ssh", mine[0].Name)
	require.WithinDuration(t, time.Now(), mine[0].Created, time.Minute)

	got, err := w.GetService(ctx, w.namespace, "gpu-dev-1-ssh")
	require.NoError(t, err)
	require.Equal(t, mine[0], got)
	requireKind(t, fault.Conflict, w.DeleteService(ctx, w.namespace, "gpu-dev-1-ssh", "another"))
	require.NoError(t, w.DeleteService(ctx, w.namespace, "gpu-dev-1-ssh", mine[0].UID))
	_, err = w.GetService(ctx, w.namespace, "gpu-dev-1-ssh")
	requireKind(t, fault.Gone, err)
	_, err = w.GetService(ctx, w.namespace, "gpu-dev-2-ssh")
	require.NoError(t, err)
}

func TestContractStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	core := w.admin
	name := "pv-" + w.namespace
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	none := ""
	claim, err := core.PersistentVolumeClaims(w.namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "disk"},
		Spec:       corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: name, StorageClassName: &none, Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	made, err := core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{Namespace: w.namespace, Name: "disk", UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.aws.com", VolumeHandle: "vol-0123456789abcdef0"}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = core.PersistentVolumes().Delete(context.WithoutCancel(ctx), name, metav1.DeleteOptions{}) })
	setPhase := func(phase corev1.PersistentVolumePhase) { // as the binder would, which this cluster does without
		_, err := core.PersistentVolumes().Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"status":{"phase":%q}}`, phase), metav1.PatchOptions{}, "status")
		require.NoError(t, err)
	}
	setPhase(corev1.VolumeBound)
	w.stack.CreatePod("gpu-dev-1", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"}}}}
	})

	got, err := w.GetClaim(ctx, w.namespace, "disk")
	require.NoError(t, err)
	require.Equal(t, name, got.VolumeName)
	require.Equal(t, string(claim.UID), got.UID)

	v, err := w.GetVolume(ctx, name)
	require.NoError(t, err)
	require.False(t, v.Retained())
	require.Equal(t, "ebs.csi.aws.com", v.Driver)
	require.Equal(t, "vol-0123456789abcdef0", v.VolumeID)
	require.Equal(t, string(claim.UID), v.ClaimUID)

	_, err = w.RetainVolume(ctx, name, "another")
	requireKind(t, fault.Conflict, err)
	for range 2 {
		v, err = w.RetainVolume(ctx, name, string(made.UID))
		require.NoError(t, err)
		require.True(t, v.Retained())
	}
	stored, err := core.PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.PersistentVolumeReclaimRetain, stored.Spec.PersistentVolumeReclaimPolicy)

	requireKind(t, fault.Conflict, w.DeleteClaim(ctx, w.namespace, "disk", "another"))
	require.NoError(t, w.DeleteClaim(ctx, w.namespace, "disk", string(claim.UID)))
	got, err = w.GetClaim(ctx, w.namespace, "disk")
	require.NoError(t, err, "it stays for as long as the pod uses it")
	require.NotZero(t, got.Deleting)
	requireKind(t, fault.Conflict, w.DeleteVolume(ctx, name, "another"))
	require.NoError(t, w.DeleteVolume(ctx, name, v.UID))
	v, err = w.GetVolume(ctx, name)
	require.NoError(t, err, "it stays for as long as the claim is bound to it")
	require.NotZero(t, v.Deleting)

	p, err := w.GetPod(ctx, w.namespace, "gpu-dev-1")
	require.NoError(t, err)
	require.Equal(t, []string{"disk"}, p.Claims)
	require.NoError(t, w.ForceDeletePod(ctx, w.namespace, p.Name, p.UID))
	eventually(t, func(c *assert.CollectT) {
		_, err := w.GetClaim(ctx, w.namespace, "disk")
		require.Equal(c, fault.Gone, fault.KindOf(err))
	})
	setPhase(corev1.VolumeReleased)
	eventually(t, func(c *assert.CollectT) {
		_, err = w.GetVolume(ctx, name)
		require.Equal(c, fault.Gone, fault.KindOf(err))
	})
}

func TestContractNodesAndTheClusterItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	name := "node-" + w.namespace
	made, err := w.admin.Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: "aws:///us-east-1a/i-0123456789abcdef0"},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.admin.Nodes().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{}) })
	n, err := w.GetNode(ctx, name)
	require.NoError(t, err)
	require.Equal(t, pod.Node{Name: name, UID: string(made.UID), InstanceID: "i-0123456789abcdef0"}, n, "nobody says that it is ready")

	made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	_, err = w.admin.Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
	require.NoError(t, err)
	n, err = w.GetNode(ctx, name)
	require.NoError(t, err)
	require.True(t, n.Ready)

	uid, err := w.ClusterUID(ctx)
	require.NoError(t, err)
	again, err := w.ClusterUID(ctx)
	require.NoError(t, err)
	require.Equal(t, uid, again)
	system, err := w.admin.Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, string(system.UID), uid)
}
