//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// root is the repository, seen from this package.
const root = "../.."

// cluster is the real API server, as its administrator.
type cluster struct {
	kubernetes.Interface
	config  *rest.Config
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return clusterAt(t, stacktest.Env(t, "KUBECONFIG"))
}

func clusterAt(t *testing.T, kubeconfig string) *cluster {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	require.NoError(t, err)
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	dynamic, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClientForConfigOrDie(config)))
	return &cluster{Interface: client, config: config, dynamic: dynamic, mapper: mapper}
}

// resource returns where objects of a kind are kept.
func (c *cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) { // it may have been defined a moment ago
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
	}
	return c.dynamic.Resource(mapping.Resource), nil
}

// apply does as `kubectl apply --server-side --validate=strict`. What is not ready to be applied yet, such as an object
// whose kind was only just defined or whose webhook does not answer yet, is tried again.
func (c *cluster) apply(t *testing.T, all []*unstructured.Unstructured, strict string) {
	t.Helper()
	force := true
	for _, o := range all {
		text, err := json.Marshal(o)
		require.NoError(t, err)
		eventually(t, 30*time.Second, "the server takes "+o.GetKind()+" "+o.GetName(), func() error {
			resource, err := c.resource(o)
			if err != nil {
				return err
			}
			_, err = resource.Patch(t.Context(), o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{
				FieldManager: "kubectl", Force: &force, FieldValidation: strict,
			})
			if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err) {
				require.NoError(t, err, "%s %s", o.GetKind(), o.GetName())
			}
			return err
		})
	}
}

// get reads an object again.
func (c *cluster) get(t *testing.T, apiVersion, kind, namespace, name string) (*unstructured.Unstructured, error) {
	t.Helper()
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	o.SetNamespace(namespace)
	resource, err := c.resource(o)
	if err != nil {
		return nil, err
	}
	return resource.Get(t.Context(), name, metav1.GetOptions{})
}

// patch merges something into an object, or into its status.
func (c *cluster) patch(t *testing.T, o *unstructured.Unstructured, change map[string]any, subresource ...string) {
	t.Helper()
	resource, err := c.resource(o)
	require.NoError(t, err)
	text, err := json.Marshal(change)
	require.NoError(t, err)
	_, err = resource.Patch(t.Context(), o.GetName(), types.MergePatchType, text, metav1.PatchOptions{}, subresource...)
	require.NoError(t, err, "%s %s", o.GetKind(), o.GetName())
}

// aggregate fills in the ClusterRoles that are made of others, as the controller-manager does, which does not run here.
func (c *cluster) aggregate(t *testing.T) {
	t.Helper()
	roles, err := c.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, role := range roles.Items {
		if role.AggregationRule == nil || strings.HasPrefix(role.Name, "system:") {
			continue
		}
		role.Rules = nil
		for _, of := range role.AggregationRule.ClusterRoleSelectors {
			parts, err := c.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&of)})
			require.NoError(t, err)
			for _, part := range parts.Items {
				role.Rules = append(role.Rules, part.Rules...)
			}
		}
		_, err := c.RbacV1().ClusterRoles().Update(t.Context(), &role, metav1.UpdateOptions{})
		require.NoError(t, err, role.Name)
	}
}

// awaitReady waits until an object says of itself that it is ready, and returns it.
func (c *cluster) awaitReady(t *testing.T, apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	var o *unstructured.Unstructured
	eventually(t, 3*time.Minute, kind+" "+name+" is ready", func() (err error) {
		if o, err = c.get(t, apiVersion, kind, namespace, name); err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, one := range conditions {
			if condition := one.(map[string]any); condition["type"] == "Ready" && condition["status"] == "True" {
				return nil
			}
		}
		return fmt.Errorf("%v", conditions)
	})
	return o
}

// login writes a kubeconfig of a ServiceAccount and returns its path.
func (c *cluster) login(t *testing.T, namespace, account string) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	config.AuthInfos[account] = &clientcmdapi.AuthInfo{Token: c.token(t, namespace, account, 24*time.Hour)}
	config.Contexts["cluster"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: account, Namespace: namespace}
	config.CurrentContext = "cluster"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*config, path))
	return path
}

// token does as `kubectl create token`.
func (c *cluster) token(t *testing.T, namespace, account string, lasting time.Duration, audience ...string) string {
	t.Helper()
	seconds := int64(lasting.Seconds())
	token, err := c.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, Audiences: audience}}, metav1.CreateOptions{})
	require.NoError(t, err)
	return token.Status.Token
}

// parse reads a manifest's objects. fields as they are in the files.
func parse(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var document runtime.RawExtension
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		o := &unstructured.Unstructured{}
		if len(document.Raw) == 0 || o.UnmarshalJSON(document.Raw) != nil { // nothing but comments
			continue
		}
		all = append(all, o)
	}
}

// kustomize returns what `kubectl apply -k` of a directory of the repository would send.
func kustomize(t *testing.T, dir string) []*unstructured.Unstructured {
	t.Helper()
	return parse(t, output(t, root, "go", "tool", "-modfile=tools/deploy/go.mod", "kustomize", "build", dir))
}

// module returns the folder of a Go module that a nested module of tools requires, downloaded if need be.
func module(t *testing.T, tools, path string) string {
	t.Helper()
	var got struct{ Dir string }
	require.NoError(t, json.Unmarshal(output(t, filepath.Join(root, "tools", tools), "go", "mod", "download", "-json", path), &got))
	return got.Dir
}

// output runs a program and returns what it printed.
func output(t *testing.T, dir, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s: %s", program, strings.Join(args, " "), complaint.String())
	return out
}

// manifests reads all manifests of some folders, subfolders not included.
func manifests(t *testing.T, dirs ...string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		require.NoError(t, err)
		require.NotEmpty(t, files, dir)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			all = append(all, parse(t, text)...)
		}
	}
	return all
}
