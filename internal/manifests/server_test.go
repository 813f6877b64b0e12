package manifests

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// server is a real API server that knows Knative's and KEDA's resources.
type server struct {
	*stacktest.Cluster
	dynamic dynamic.Interface
	mapper  meta.RESTMapper
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{Cluster: stacktest.Kubernetes(t)}
	client, err := dynamic.NewForConfig(s.Config)
	require.NoError(t, err)
	s.dynamic = client
	s.define(t)
	groups, err := restmapper.GetAPIGroupResources(discovery.NewDiscoveryClientForConfigOrDie(s.Config))
	require.NoError(t, err)
	s.mapper = restmapper.NewDiscoveryRESTMapper(groups)
	return s
}

// define makes the kinds that the manifests use known to the server, for good: other tests may do the same meanwhile.
func (s *server) define(t *testing.T) {
	t.Helper()
	crds := s.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	known := definitions(t)
	used := map[string]bool{}
	for _, kustomization := range kustomizations {
		for _, o := range objects(t, build(t, kustomization)) {
			used[o.GroupVersionKind().Group+"/"+o.GetKind()] = true
		}
	}
	for kind, crd := range known {
		if !used[kind] {
			continue
		}
		_, err := crds.Apply(t.Context(), crd.GetName(), crd, metav1.ApplyOptions{FieldManager: "manifests-test", Force: true})
		require.NoError(t, err)
		err = wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
			got, err := crds.Get(ctx, crd.GetName(), metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			conditions, _, _ := unstructured.NestedSlice(got.Object, "status", "conditions")
			for _, c := range conditions {
				if condition := c.(map[string]any); condition["type"] == "Established" && condition["status"] == "True" {
					return true, nil
				}
			}
			return false, nil
		})
		require.NoError(t, err, crd.GetName())
	}
}

// dryRun sends an object as `kubectl apply --server-side --dry-run=server --validate=strict` does, into the test's own
// namespace.
func (s *server) dryRun(t *testing.T, o *unstructured.Unstructured) error {
	t.Helper()
	o = o.DeepCopy()
	kind := o.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	require.NoError(t, err)
	resource := dynamic.ResourceInterface(s.dynamic.Resource(mapping.Resource))
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		require.NotEmpty(t, o.GetNamespace(), "%s %s: to whatever namespace is current", kind.Kind, o.GetName())
		o.SetNamespace(s.Namespace)
		resource = s.dynamic.Resource(mapping.Resource).Namespace(s.Namespace)
	}
	text, err := json.Marshal(o)
	require.NoError(t, err)
	force := true
	_, err = resource.Patch(t.Context(), o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{
		DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict, FieldManager: "manifests-test", Force: &force,
	})
	return err
}

func TestEveryManifestIsTakenByARealServer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, kustomization := range kustomizations {
		t.Run(kustomization, func(t *testing.T) {
			t.Parallel()
			all := objects(t, build(t, kustomization))
			require.NotEmpty(t, all)
			for _, o := range all {
				require.NoError(t, s.dryRun(t, o), "%s %s", o.GetKind(), o.GetName())
				misspelt := o.DeepCopy()
				misspelt.Object["speck"] = map[string]any{}
				require.Error(t, s.dryRun(t, misspelt), "%s with a field that it does not have", o.GetKind())
			}
		})
	}
}

func TestEveryPodIsAsRestrictedAsItsNamespaceDemands(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	label := []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`)
	_, err := s.Client.CoreV1().Namespaces().Patch(t.Context(), s.Namespace, types.MergePatchType, label, metav1.PatchOptions{})
	require.NoError(t, err)
	for _, kustomization := range kustomizations {
		t.Run(kustomization, func(t *testing.T) {
			t.Parallel()
			templates := 0
			for _, o := range objects(t, build(t, kustomization)) {
				spec := podSpec(t, o)
				if spec == nil {
					continue
				}
				templates++
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: s.Namespace}, Spec: *spec}
				create := func() error {
					_, err := s.Client.CoreV1().Pods(s.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
					return err
				}
				require.NoError(t, create(), o.GetKind())
				for _, c := range pod.Spec.Containers {
					require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, o.GetKind())
					require.NotEmpty(t, c.Resources.Requests, o.GetKind())
					require.NotEmpty(t, c.Resources.Limits.Memory(), o.GetKind())
				}
				pod.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil
				require.True(t, apierrors.IsForbidden(create()), "that the server looks")
			}
			require.Equal(t, 1, templates)
		})
	}
}

// podSpec returns the pods that an object makes, nil if none.
func podSpec(t *testing.T, o *unstructured.Unstructured) *corev1.PodSpec {
	t.Helper()
	path := []string{"spec", "template", "spec"}
	if o.GetKind() == "CronJob" {
		path = []string{"spec", "jobTemplate", "spec", "template", "spec"}
	}
	found, ok, _ := unstructured.NestedMap(o.Object, path...)
	if !ok {
		return nil
	}
	// What only Knative's has.
	for _, knative := range []string{"containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds"} {
		delete(found, knative)
	}
	spec := &corev1.PodSpec{}
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(found, spec, true))
	if o.GroupVersionKind().Group == "serving.knative.dev" {
		for i := range spec.Containers { // the port, which Knative fills in, is missing
			spec.Containers[i].LivenessProbe, spec.Containers[i].ReadinessProbe = nil, nil
		}
	}
	return spec
}
