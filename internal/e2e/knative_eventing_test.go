//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	system    = "knative-eventing"
	proxyPort = 3128
)

// eventing is Knative Eventing: its own manifests are applied, and each of its Deployments that is needed runs as one
// process, under its own ServiceAccount, with the environment and the ports that its manifest says. What no kubelet and
// no kube-proxy does here, the test does: it reports that a Deployment is available, and brings requests to Services.
type eventing struct {
	*cluster
	*network
	bin  string
	pods map[string]*process // by Deployment
}

// component is a Deployment of Knative's and what stands behind its Service.
type component struct {
	deployment string
	service    string // "": none
	port       int    // on which it serves
	webhook    bool   // the API server calls it
}

func installEventing(t *testing.T, c *cluster, n *network) *eventing {
	t.Helper()
	k := &eventing{cluster: c, network: n, bin: stacktest.Env(t, "STACK_EVENTING_BIN"), pods: map[string]*process{}}
	config := filepath.Join(module(t, "eventing", "knative.dev/eventing"), "config")
	say(t, "Knative Eventing v0.47.0: applying its own definitions, roles and settings")
	for _, part := range [][]string{
		{"core", "core/resources", "core/roles", "core/configmaps", "core/deployments", "core/webhooks"},
		{"brokers/mt-channel-broker/roles", "brokers/mt-channel-broker/deployments"},
		{"channels/in-memory-channel", "channels/in-memory-channel/resources", "channels/in-memory-channel/roles",
			"channels/in-memory-channel/configmaps", "channels/in-memory-channel/deployments", "channels/in-memory-channel/webhooks"},
	} {
		for _, dir := range part {
			for _, o := range manifests(t, filepath.Join(config, filepath.FromSlash(dir))) {
				if o.GetKind() == "CustomResourceDefinition" { // the one version that anybody sends needs no conversion
					unstructured.RemoveNestedField(o.Object, "spec", "conversion")
				}
				c.apply(t, []*unstructured.Unstructured{o}, metav1.FieldValidationIgnore) // upstream's, older than the server
			}
		}
	}
	serving := filepath.Join(module(t, "serving", "knative.dev/serving"), "config", "core") // its kinds, and what others may do with them
	c.apply(t, manifests(t, filepath.Join(serving, "300-resources")), metav1.FieldValidationIgnore)
	c.apply(t, slices.DeleteFunc(manifests(t, filepath.Join(serving, "200-roles")),
		func(o *unstructured.Unstructured) bool { return o.GetKind() != "ClusterRole" }), metav1.FieldValidationStrict)
	c.aggregate(t)
	leases := c.CoordinationV1().Leases(system) // of leaders that were killed: nobody waits for them to lapse
	require.NoError(t, leases.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	say(t, "Knative Eventing: starting webhook, controllers, channel dispatcher, broker ingress and filter")
	for _, one := range []component{
		{deployment: "eventing-webhook", service: "eventing-webhook", port: 8443, webhook: true},
		{deployment: "imc-controller", service: "inmemorychannel-webhook", port: 8443, webhook: true},
		{deployment: "eventing-controller"},
		{deployment: "mt-broker-controller"},
		{deployment: "imc-dispatcher", service: "imc-dispatcher", port: 8080},
		{deployment: "mt-broker-ingress", service: "broker-ingress", port: 8080},
		{deployment: "mt-broker-filter", service: "broker-filter", port: 8080},
	} {
		k.run(t, one)
	}
	return k
}

// run starts a component and reports what a kubelet and the endpoints controller would.
func (k *eventing) run(t *testing.T, c component) {
	t.Helper()
	deployment, err := k.AppsV1().Deployments(system).Get(t.Context(), c.deployment, metav1.GetOptions{})
	require.NoError(t, err)
	pod := newSandbox(t)
	container := deployment.Spec.Template.Spec.Containers[0]
	environ := append(k.environ(t, deployment, container), "KUBECONFIG="+k.login(t, system, deployment.Spec.Template.Spec.ServiceAccountName),
		fmt.Sprintf("HTTP_PROXY=http://127.0.0.1:%d", proxyPort), fmt.Sprintf("HTTPS_PROXY=http://127.0.0.1:%d", proxyPort),
		"NO_PROXY=") // the loopback is never proxied
	api, err := url.Parse(k.config.Host)
	require.NoError(t, err)
	pod.letOut(t, api.Port())
	k.serve(pod.listen(t, proxyPort))
	p := newProcess(t, c.deployment, environ, filepath.Join(k.bin, path.Base(container.Image))) // ko://knative.dev/eventing/cmd/…
	p.run(t, pod.do)
	k.pods[c.deployment] = p
	if c.port != 0 {
		to := func(ctx context.Context) (net.Conn, error) { return pod.dial(ctx, c.port) }
		eventually(t, time.Minute, c.deployment+" listens", func() error {
			conn, err := to(t.Context())
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		k.put(c.service+"."+system, to)
		if c.webhook {
			k.leadAPIServerTo(t, c.service, pod.letIn(t, c.port))
		} else {
			k.reportEndpoints(t, c.service, c.port)
		}
	}
	k.reportAvailable(t, c.deployment)
}

// environ returns what the manifest says.
func (k *eventing) environ(t *testing.T, d *appsv1.Deployment, container corev1.Container) []string {
	t.Helper()
	var environ []string
	for _, v := range container.Env {
		value := v.Value
		switch from := v.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.namespace":
			value = d.Namespace
		case from.FieldRef != nil:
			value = d.Name + "-0"
		case from.ConfigMapKeyRef != nil:
			settings, err := k.CoreV1().ConfigMaps(d.Namespace).Get(t.Context(), from.ConfigMapKeyRef.Name, metav1.GetOptions{})
			if err != nil { // images of sources that nobody uses here
				continue
			}
			value = settings.Data[from.ConfigMapKeyRef.Key]
		}
		environ = append(environ, v.Name+"="+value)
	}
	return environ
}

// leadAPIServerTo has the API server find a webhook at a port of this machine.
func (k *eventing) leadAPIServerTo(t *testing.T, service string, port int) {
	t.Helper()
	o, err := k.get(t, "v1", "Service", system, service)
	require.NoError(t, err)
	k.patch(t, o, map[string]any{"spec": map[string]any{"type": "ExternalName", "externalName": "localhost", "selector": nil}})
	for _, kind := range []string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} {
		list := &unstructured.Unstructured{}
		list.SetAPIVersion("admissionregistration.k8s.io/v1")
		list.SetKind(kind)
		resource, err := k.resource(list)
		require.NoError(t, err)
		found, err := resource.List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for _, hooks := range found.Items {
			eventually(t, 10*time.Second, hooks.GetName()+" is led to its port", func() error {
				o, err := resource.Get(t.Context(), hooks.GetName(), metav1.GetOptions{})
				if err != nil {
					return err
				}
				all, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
				changed := false
				for _, one := range all {
					hook := one.(map[string]any)
					if name, _, _ := unstructured.NestedString(hook, "clientConfig", "service", "name"); name == service {
						changed = true
						if err := unstructured.SetNestedField(hook, int64(port), "clientConfig", "service", "port"); err != nil {
							return err
						}
					}
				}
				if !changed {
					return nil
				}
				if err := unstructured.SetNestedSlice(o.Object, all, "webhooks"); err != nil {
					return err
				}
				_, err = resource.Update(t.Context(), o, metav1.UpdateOptions{}) // its own controller updates it, too
				return err
			})
		}
	}
}

// reportEndpoints says that somebody stands behind a Service. The address is never dialled: the network knows the way.
func (k *eventing) reportEndpoints(t *testing.T, service string, port int) {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Endpoints", "metadata": map[string]any{"name": service, "namespace": system},
		"subsets": []any{map[string]any{
			"addresses": []any{map[string]any{"ip": "192.0.2.1"}}, "ports": []any{map[string]any{"name": "http", "port": int64(port)}},
		}},
	}}
	k.apply(t, []*unstructured.Unstructured{o}, metav1.FieldValidationStrict)
}

func (k *eventing) reportAvailable(t *testing.T, deployment string) {
	t.Helper()
	o, err := k.get(t, "apps/v1", "Deployment", system, deployment)
	require.NoError(t, err)
	now := time.Now().UTC().Format(time.RFC3339)
	k.patch(t, o, map[string]any{"status": map[string]any{
		"observedGeneration": o.GetGeneration(), "replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1,
		"conditions": []any{map[string]any{
			"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "lastUpdateTime": now, "lastTransitionTime": now,
		}},
	}}, "status")
}

// runPingSources starts what sends ticks, once the controller wants it: it scales its Deployment up for the first
// PingSource, and writes into it how it is to run.
func (k *eventing) runPingSources(t *testing.T) {
	t.Helper()
	const adapter = "pingsource-mt-adapter"
	eventually(t, time.Minute, "the controller wants the PingSource adapter", func() error {
		d, err := k.AppsV1().Deployments(system).Get(t.Context(), adapter, metav1.GetOptions{})
		if err == nil && (d.Spec.Replicas == nil || *d.Spec.Replicas == 0) {
			err = fmt.Errorf("it is scaled to zero")
		}
		return err
	})
	k.run(t, component{deployment: adapter})
}
