//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// binary is what goes into the image.
const binary = root + "/bin/reservation-expiry"

// containerEnviron returns the environment that a pod template gives its first container, looked up in the cluster.
func (c *cluster) containerEnviron(t *testing.T, template map[string]any) map[string]string {
	t.Helper()
	var pod corev1.PodTemplateSpec
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(template, &pod))
	environ := map[string]string{}
	for _, from := range pod.Spec.Containers[0].EnvFrom {
		settings, err := c.CoreV1().ConfigMaps(namespace).Get(t.Context(), from.ConfigMapRef.Name, metav1.GetOptions{})
		require.NoError(t, err)
		maps.Copy(environ, settings.Data)
	}
	for _, v := range pod.Spec.Containers[0].Env {
		environ[v.Name] = v.Value
		if v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil {
			secret, err := c.CoreV1().Secrets(namespace).Get(t.Context(), v.ValueFrom.SecretKeyRef.Name, metav1.GetOptions{})
			require.NoError(t, err)
			environ[v.Name] = string(secret.Data[v.ValueFrom.SecretKeyRef.Key])
		}
	}
	return environ
}

// environList has later ones win, as in a shell.
func environList(environ map[string]string, more ...string) []string {
	all := maps.Clone(environ)
	for _, entry := range more {
		name, value, _ := strings.Cut(entry, "=")
		all[name] = value
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, name+"="+all[name])
	}
	return list
}

// function plays Knative Serving for the service, on one instance: what the Knative Service in the cluster says, the
// process gets; whether there is one is the test's to say.
type function struct {
	*world
	t        *testing.T
	proxy    string // the network's address
	instance *process
	made     int
}

const serviceName = "reservation-expiry.reservation-expiry"

// playServing reports the Knative Service's address, as Serving does before an instance runs.
func playServing(t *testing.T, w *world) *function {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.network.serve(l)
	address := "http://" + serviceName + ".svc.cluster.local"
	w.patch(t, w.knativeService(t), map[string]any{"status": map[string]any{
		"observedGeneration": 1, "url": address, "address": map[string]any{"url": address},
		"conditions": []any{map[string]any{"type": "Ready", "status": "True", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}},
	}}, "status")
	return &function{world: w, t: t, proxy: "http://" + l.Addr().String()}
}

func (w *world) knativeService(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	o, err := w.get(t, "serving.knative.dev/v1", "Service", namespace, "reservation-expiry")
	require.NoError(t, err)
	return o
}

// environ is the instance's.
func (f *function) environ(port int) []string {
	f.t.Helper()
	template, ok, err := unstructured.NestedMap(f.knativeService(f.t).Object, "spec", "template")
	require.NoError(f.t, err)
	require.True(f.t, ok)
	return environList(f.containerEnviron(f.t, template), append(f.world.environ(f.t),
		"PORT="+strconv.Itoa(port), "K_SERVICE=reservation-expiry", "K_REVISION=reservation-expiry-00001", "HTTP_PROXY="+f.proxy)...)
}

// up starts an instance, waits until it is ready, and puts it behind the Service.
func (f *function) up() {
	f.t.Helper()
	f.made++
	port, began := freePort(f.t), time.Now()
	f.instance = start(f.t, fmt.Sprintf("function-%d", f.made), f.environ(port), binary)
	eventually(f.t, 30*time.Second, "the function is ready", func() error {
		response, err := http.Get("http://" + local(port) + "/readyz")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode != http.StatusOK {
				err = fmt.Errorf("/readyz: %s", response.Status)
			}
		}
		return err
	})
	f.network.put(serviceName, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", local(port))
	})
	say(f.t, "the function: instance %d is ready, %d ms after its start", f.made, time.Since(began).Milliseconds())
}

// kill is kill -9.
func (f *function) kill() {
	f.t.Helper()
	f.instance.kill()
	f.network.remove(serviceName)
}

// run runs another of the binary's commands in the instance's environment.
func (f *function) run(args ...string) string {
	f.t.Helper()
	program, err := filepath.Abs(binary)
	require.NoError(f.t, err)
	return string(output(f.t, "/", "env", append(append(append([]string{"-i"}, f.environ(8080)...), program), args...)...))
}
