//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// TestServing has Knative Serving and Eventing run as they are shipped, as pods of a genuine node, and the service as they
// want it: at zero, until a tick wakes it.
func TestServing(t *testing.T) {
	n, err := prepareNode(t)
	if err != nil {
		say(t, "LEFT OUT: this machine does not allow a genuine node, so that nothing is said of Knative Serving: %v", err)
		return
	}
	say(t, "the node: making images, the service's with ko")
	n.up(t, append(knativeImages(t),
		image(t, "registry.local/pause:e2e", "", []string{"/bin/tail", "-f", "/dev/null"}, busybox(t, n.debian)),
		image(t, "registry.local/gpu-dev:e2e", "", nil, busybox(t, n.debian)),
		shipped(t, "registry.local/reservation-expiry", "e2e"))...)
	serveDNS(t, n)
	ingress := serveIngress(t, n.cluster)
	installKnative(t, n)
	w := newWorldOn(t, n)
	deployOn(t, w)
	tickAt(t, w, "0 0 1 1 *") // not now: each tick keeps an instance for minutes
	awaitPods(t, w, 5*time.Minute, 0)
	say(t, "the service has been ready once, as Serving wants it, and is at zero instances")
	wokenByATick(t, w, ingress)
}

// knativeImages makes an image of each of Knative's programs.
func knativeImages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, part := range []string{"eventing", "serving"} {
		programs, err := os.ReadDir(stacktest.Env(t, "STACK_"+strings.ToUpper(part)+"_BIN"))
		require.NoError(t, err)
		for _, program := range programs {
			all = append(all, image(t, fmt.Sprintf("registry.local/%s-%s:e2e", part, program.Name()), "65532", []string{"/ko-app"},
				map[string]string{"ko-app": filepath.Join(stacktest.Env(t, "STACK_"+strings.ToUpper(part)+"_BIN"), program.Name())}))
		}
	}
	return all
}

// installKnative applies what Knative ships, and waits until all of it runs.
func installKnative(t *testing.T, n *node) {
	t.Helper()
	began := time.Now()
	say(t, "Knative Serving v0.42.2 and Eventing v0.47.0: applying their own manifests")
	eventing := filepath.Join(module(t, "eventing", "knative.dev/eventing"), "config")
	serving := filepath.Join(module(t, "serving", "knative.dev/serving"), "config", "core")
	networking := filepath.Join(module(t, "serving", "knative.dev/networking"), "config")
	caching := filepath.Join(module(t, "serving", "knative.dev/caching"), "config")
	all := manifests(t, caching, networking, serving+"/300-resources", serving, serving+"/200-roles", serving+"/configmaps", serving+"/deployments",
		serving+"/webhooks", eventing+"/core/resources", eventing+"/core", eventing+"/core/roles", eventing+"/core/configmaps",
		eventing+"/core/deployments", eventing+"/core/webhooks",
		eventing+"/brokers/mt-channel-broker/roles", eventing+"/brokers/mt-channel-broker/deployments",
		eventing+"/channels/in-memory-channel/resources", eventing+"/channels/in-memory-channel", eventing+"/channels/in-memory-channel/roles",
		eventing+"/channels/in-memory-channel/configmaps", eventing+"/channels/in-memory-channel/deployments", eventing+"/channels/in-memory-channel/webhooks")
	slices.SortStableFunc(all, func(a, b *unstructured.Unstructured) int { return turn(a) - turn(b) })
	for _, o := range all {
		if unwanted(o) {
			continue
		}
		adapt(t, o)
		n.apply(t, []*unstructured.Unstructured{o}, metav1.FieldValidationIgnore)
	}
	say(t, "Knative: waiting until its Deployments are available")
	for _, system := range []string{"knative-serving", "knative-eventing"} {
		eventually(t, 4*time.Minute, "all of "+system+" is available", func() error {
			deployments, err := n.AppsV1().Deployments(system).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, d := range deployments.Items {
				if *d.Spec.Replicas > 0 && d.Status.AvailableReplicas == 0 {
					return fmt.Errorf("%s is not", d.Name)
				}
			}
			return nil
		})
	}
	say(t, "Knative Serving and Eventing are available, %d s after they were applied", int(time.Since(began).Seconds()))
}

// turn says what is applied before what.
func turn(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "CustomResourceDefinition":
		return 0
	case "Namespace":
		return 1
	case "Deployment":
		return 3
	case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
		return 4
	}
	return 2
}

// unwanted are parts that nothing here uses, and whose programs are not built.
func unwanted(o *unstructured.Unstructured) bool {
	for _, part := range []string{"job-sink", "request-reply", "jobsink", "requestreply"} {
		if strings.Contains(o.GetName(), part) && o.GetKind() != "CustomResourceDefinition" && !strings.Contains(o.GetKind(), "Role") {
			return true
		}
	}
	kind := o.GetKind()
	return kind == "HorizontalPodAutoscaler" || kind == "PodDisruptionBudget" || kind == "Image" ||
		kind == "Certificate" && o.GroupVersionKind().Group == "networking.internal.knative.dev"
}

// adapt has a Deployment take its images from here.
func adapt(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	ours := func(text string) string {
		from, ok := strings.CutPrefix(text, "ko://knative.dev/")
		if !ok {
			return text
		}
		part, _, _ := strings.Cut(from, "/")
		return "registry.local/" + part + "-" + path.Base(from) + ":e2e"
	}
	switch {
	case o.GetKind() == "Deployment" || o.GetKind() == "StatefulSet":
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		require.NoError(t, err)
		for _, one := range containers {
			container := one.(map[string]any)
			container["image"] = ours(container["image"].(string))
			variables, _ := container["env"].([]any)
			for _, v := range variables { // images of sources that nobody uses here
				from, _, _ := unstructured.NestedMap(v.(map[string]any), "valueFrom", "configMapKeyRef")
				if from != nil {
					from["optional"] = true
					require.NoError(t, unstructured.SetNestedMap(v.(map[string]any), from, "valueFrom", "configMapKeyRef"))
				}
			}
		}
		require.NoError(t, unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers"))
	case o.GetKind() == "ConfigMap" && o.GetName() == "config-deployment":
		require.NoError(t, unstructured.SetNestedField(o.Object, "registry.local/serving-queue:e2e", "data", "queue-sidecar-image"))
		require.NoError(t, unstructured.SetNestedField(o.Object, "registry.local", "data", "registries-skipping-tag-resolving"))
	case o.GetKind() == "ConfigMap" && o.GetName() == "config-network":
		require.NoError(t, unstructured.SetNestedField(o.Object, "e2e.ingress.networking.knative.dev", "data", "ingress-class"))
	}
}

// newWorldOn is newWorld on a genuine node.
func newWorldOn(t *testing.T, n *node) *world {
	t.Helper()
	database := stacktest.Database(t)
	login, err := url.Parse(stacktest.AsService(t, database))
	require.NoError(t, err)
	p, err := platform.Connect(t.Context(), database, filepath.Join(n.dir, "kubeconfig"), stacktest.Env(t, "AWS_ENDPOINT_URL"), stacktest.Env(t, "AWS_REGION"))
	require.NoError(t, err)
	t.Cleanup(p.SQL.Close)
	label := []byte(`{"metadata":{"labels":{"` + stacktest.SimulatedNode + `":"true"}}}`) // it is not; the platform wants to see one
	_, err = n.CoreV1().Nodes().Patch(t.Context(), nodeName, types.MergePatchType, label, metav1.PatchOptions{})
	require.NoError(t, err)
	require.NoError(t, p.Found(t.Context()))
	return &world{cluster: n.cluster, Platform: p, aws: record(t, p.Endpoint), database: login, began: time.Now()}
}

// reachable opens a port to pods that leads to one of this machine's loopback.
func reachable(t *testing.T, address string) (host, port string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(hostIP, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go forward(l, func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) })
	host, port, err = net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return host, port
}

// deployOn applies overlay dev, with nothing changed but its image and where things are.
func deployOn(t *testing.T, w *world) {
	t.Helper()
	say(t, "applying knative/overlays/dev, strictly and through Knative's webhooks")
	emulator, err := url.Parse(w.aws.url)
	require.NoError(t, err)
	awsHost, awsPort := reachable(t, emulator.Host)
	host, port := reachable(t, w.database.Host)
	password, _ := w.database.User.Password()
	for _, o := range kustomize(t, "knative/overlays/dev") {
		switch {
		case o.GetKind() == "ConfigMap":
			for name, value := range map[string]string{
				"POSTGRES_HOST": host, "POSTGRES_PORT": port, "POSTGRES_DB": w.database.Path[1:], "AWS_ENDPOINT_URL": "http://" + net.JoinHostPort(awsHost, awsPort),
				"AWS_ACCESS_KEY_ID": w.Account, "AWS_SECRET_ACCESS_KEY": "e2e", "AWS_EC2_METADATA_DISABLED": "true",
				"DISK_CONTENTS_BUCKET": w.Bucket, "AVAILABILITY_UPDATER_FUNCTION_NAME": w.Function,
			} {
				require.NoError(t, unstructured.SetNestedField(o.Object, value, "data", name))
			}
		case o.GetKind() == "Secret" && o.GetName() == "reservation-expiry-postgres":
			o.Object["stringData"] = map[string]any{"username": w.database.User.Username(), "password": password}
			delete(o.Object, "data")
		case o.GroupVersionKind().Group == "serving.knative.dev":
			containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
			containers[0].(map[string]any)["image"] = "registry.local/reservation-expiry:e2e"
			require.NoError(t, unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers"))
		}
		w.apply(t, []*unstructured.Unstructured{o}, metav1.FieldValidationStrict)
	}
	for _, o := range kustomize(t, "knative/overlays/dev") {
		switch o.GetKind() {
		case "Broker", "Trigger", "PingSource", "SinkBinding":
			w.awaitReady(t, o.GetAPIVersion(), o.GetKind(), namespace, o.GetName())
		}
	}
	w.awaitReady(t, "serving.knative.dev/v1", "Service", namespace, "reservation-expiry")
	say(t, "Knative Service, Broker, eight Triggers, PingSource and SinkBinding are ready")
}

// awaitPods waits until the service has so many. Only the newest revision counts: the first knew no K_SINK, never became
// ready, and is given ten minutes by Serving.
func awaitPods(t *testing.T, w *world, within time.Duration, want int) {
	t.Helper()
	revision, _, _ := unstructured.NestedString(w.knativeService(t).Object, "status", "latestReadyRevisionName")
	require.NotEmpty(t, revision)
	eventually(t, within, fmt.Sprintf("the service has %d pods", want), func() error {
		pods, err := w.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "serving.knative.dev/revision=" + revision})
		if err == nil && len(pods.Items) != want {
			err = fmt.Errorf("it has %d", len(pods.Items))
		}
		return err
	})
}

// wokenByATick: what follows from a tick at zero instances, until there are none again.
func wokenByATick(t *testing.T, w *world, ingress *knativeIngress) {
	warned := realServer(t, w, platform.Reservation{User: "bob", EndsIn: 25 * time.Minute})
	killed := realServer(t, w, platform.Reservation{User: "finn", EndsIn: 2 * time.Hour})
	ended := realServer(t, w, platform.Reservation{User: "ada", Disk: "home", EndsIn: -3 * time.Minute})
	outOfMemory(t, w, killed)

	tick := time.Now().UTC().Add(5 * time.Second).Truncate(time.Minute).Add(time.Minute)
	again := tick.Add(2 * time.Minute) // for the snapshot, of which the first one's follow-ups only see the beginning
	tickAt(t, w, fmt.Sprintf("%d,%d * * * *", tick.Minute(), again.Minute()))
	say(t, "three reservations are set up; the PingSource is to tick at %s and %s", tick.Format(time.TimeOnly), again.Format(time.TimeOnly))
	w.is(t, 3*time.Minute, ended, status, "expired")
	wakingTime(t, w, ingress, ended)

	w.is(t, time.Minute, warned, warnings, `{"30min_warning_sent": true}`)
	note, err := w.ExecInPod(t.Context(), warned.Pod, "cat", "/home/dev/WARN_EXPIRES_IN_30MIN.txt")
	require.NoError(t, err)
	require.Contains(t, note, "gpu-dev edit")
	say(t, "bob is warned: WARN_EXPIRES_IN_30MIN.txt lies in his container")
	w.is(t, time.Minute, killed, "select oom_count from reservations where reservation_id = $1", "1")
	w.is(t, time.Second, killed, status, "active")
	say(t, "finn's out-of-memory kill is counted, and his reservation goes on")
	w.is(t, 5*time.Minute, ended, outcome, "released")
	w.is(t, time.Second, ended, inUse, "false")
	say(t, "ada's pod is gone, her disk is kept as a snapshot and free")

	began := time.Now()
	awaitPods(t, w, 6*time.Minute, 0)
	say(t, "the service is at zero instances again, %d s later", int(time.Since(began).Seconds()))
	used, forbidden := w.audited(t, "node-audit.log")
	require.Empty(t, forbidden)
	say(t, "its ServiceAccount was refused nothing; it did: %s", strings.Join(slices.Sorted(maps.Keys(used)), ", "))
}

// tickAt changes when the PingSource ticks.
func tickAt(t *testing.T, w *world, schedule string) {
	t.Helper()
	ping, err := w.get(t, "sources.knative.dev/v1", "PingSource", namespace, "reservation-expiry")
	require.NoError(t, err)
	w.patch(t, ping, map[string]any{"spec": map[string]any{"schedule": schedule}})
}

// realServer sets up a reservation whose pod is one. Its volume is attached to nothing: no driver runs here.
func realServer(t *testing.T, w *world, r platform.Reservation) platform.Server {
	t.Helper()
	s, err := w.Reserve(t.Context(), r)
	require.NoError(t, err)
	pod := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": s.Pod, "namespace": platform.Namespace, "labels": map[string]any{"app": s.Pod, "user-id": s.User}},
		"spec": map[string]any{"containers": []any{map[string]any{
			"name": "gpu-dev", "image": "registry.local/gpu-dev:e2e",
			"command":   []any{"sh", "-c", `trap 'exit 0' TERM; while :; do if [ -e /tmp/eat ]; then exec tail /dev/zero; fi; sleep 0.2; done`},
			"resources": map[string]any{"limits": map[string]any{"memory": "64Mi"}},
		}}},
	}}
	w.apply(t, []*unstructured.Unstructured{pod}, metav1.FieldValidationStrict)
	eventually(t, time.Minute, "pod "+s.Pod+" runs", func() error {
		p, err := w.CoreV1().Pods(platform.Namespace).Get(t.Context(), s.Pod, metav1.GetOptions{})
		if err == nil && p.Status.Phase != "Running" {
			err = fmt.Errorf("it is %s", p.Status.Phase)
		}
		return err
	})
	if r.Disk != "" {
		volume, err := w.CreateVolume(t.Context(), r.User, r.Disk)
		require.NoError(t, err)
		require.NoError(t, w.Exec(t.Context(), "update reservations set ebs_volume_id = $2 where reservation_id = $1", s.ID, volume))
		require.NoError(t, w.Exec(t.Context(), "update disks set ebs_volume_id = $3 where user_id = $1 and disk_name = $2", r.User, r.Disk, volume))
	}
	return s
}

// outOfMemory has a server eat up what it has, and waits until the kernel has killed it and the kubelet started it anew.
func outOfMemory(t *testing.T, w *world, s platform.Server) {
	t.Helper()
	_, err := w.ExecInPod(t.Context(), s.Pod, "touch", "/tmp/eat")
	require.NoError(t, err)
	eventually(t, time.Minute, "finn's container is killed and started anew", func() error {
		p, err := w.CoreV1().Pods(platform.Namespace).Get(t.Context(), s.Pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		c := p.Status.ContainerStatuses[0]
		if c.State.Running == nil || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.Reason != "OOMKilled" {
			return fmt.Errorf("%+v, last %+v", c.State, c.LastTerminationState)
		}
		return nil
	})
	say(t, "finn's container ran out of memory: the kernel has killed it, and the kubelet has started it anew")
}

// wakingTime prints how long it took from the tick to the first decision, from zero instances.
func wakingTime(t *testing.T, w *world, ingress *knativeIngress, s platform.Server) {
	t.Helper()
	var decided time.Time
	require.NoError(t, w.SQL.QueryRow(t.Context(),
		"select occurred_at from expiry.facts where subject = $1 and type = $2", s.ID, event.ReservationExpired).Scan(&decided))
	eventually(t, time.Minute, "the tick is answered", func() error {
		brought := slices.DeleteFunc(ingress.seen(event.Ping), func(h hop) bool { return h.At.After(decided) || h.Done.Before(decided) })
		if len(brought) == 0 {
			return fmt.Errorf("no tick was under way at %s", decided)
		}
		sent, err := time.Parse(time.RFC3339Nano, brought[0].Time)
		require.NoError(t, err)
		say(t, "tick → first decision from zero instances: %d ms (through the Broker %d ms, waking and deciding %d ms)",
			decided.Sub(sent).Milliseconds(), brought[0].At.Sub(sent).Milliseconds(), decided.Sub(brought[0].At).Milliseconds())
		return nil
	})
}
