//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os/exec"
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

	"gpudev.internal/reservation-expiry/internal/event"
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
	root     string // the container's file system
	instance *process
	made     int
}

const (
	serviceName = "reservation-expiry.reservation-expiry"
	service     = "http://" + serviceName + ".svc.cluster.local"
)

// playServing reports the Knative Service's address, as Serving does before an instance runs.
func playServing(t *testing.T, w *world) *function {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.network.serve(l)
	w.patch(t, w.knativeService(t), map[string]any{"status": map[string]any{
		"observedGeneration": 1, "url": service, "address": map[string]any{"url": service},
		"conditions": []any{map[string]any{"type": "Ready", "status": "True", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}},
	}}, "status")
	return &function{world: w, t: t, proxy: "http://" + l.Addr().String(), root: unpackImage(t, w)}
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
	api, err := url.Parse(f.config.Host)
	require.NoError(f.t, err)
	return environList(f.containerEnviron(f.t, f.template()), append(f.world.environ(f.t),
		"KUBERNETES_SERVICE_HOST="+api.Hostname(), "KUBERNETES_SERVICE_PORT="+api.Port(), "PORT="+strconv.Itoa(port),
		"K_SERVICE=reservation-expiry", "K_REVISION=reservation-expiry-00001", "HTTP_PROXY="+f.proxy, "HTTPS_PROXY="+f.proxy)...)
}

// template is the pods'.
func (f *function) template() map[string]any {
	f.t.Helper()
	template, ok, err := unstructured.NestedMap(f.knativeService(f.t).Object, "spec", "template")
	require.NoError(f.t, err)
	require.True(f.t, ok)
	return template
}

// up starts an instance, waits until it is ready, and puts it behind the Service.
func (f *function) up() {
	f.t.Helper()
	f.made++
	port, began := freePort(f.t), time.Now()
	f.mount()
	f.instance = newProcess(f.t, fmt.Sprintf("function-%d", f.made), f.environ(port), entrypoint)
	confine(f.instance.cmd, f.root)
	f.instance.run(f.t, onStarter)
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

// down ends the instance as a kubelet does.
func (f *function) down() {
	f.t.Helper()
	f.instance.stop(30 * time.Second)
	f.network.remove(serviceName)
}

// run runs another of the binary's commands in the instance's container.
func (f *function) run(args ...string) string {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), entrypoint, args...)
	cmd.Env = f.environ(8080)
	confine(cmd, f.root)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	require.NoError(f.t, err, "%s: %s", args, &complaint)
	return string(out)
}

// post asks for a sweep by hand, as curl does, and returns the answer's status.
func (f *function) post(to, id, data, token string) int {
	f.t.Helper()
	request, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, to, strings.NewReader(data))
	require.NoError(f.t, err)
	for name, value := range map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": id, "Ce-Source": "//people/operator", "Ce-Type": event.SweepRequested, "Content-Type": "application/json",
	} {
		request.Header.Set(name, value)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	proxy, err := url.Parse(f.proxy)
	require.NoError(f.t, err)
	response, err := (&http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}).Do(request)
	require.NoError(f.t, err)
	require.NoError(f.t, response.Body.Close())
	return response.StatusCode
}
