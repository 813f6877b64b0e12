//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// deployment plays the Deployment controller, the kubelet and the endpoints controller for the service: it keeps as many
// processes as the Deployment says, gives them what its template says, puts those that are ready behind the Service, and
// ends one with SIGTERM, and SIGKILL after its grace period.
type deployment struct {
	*world
	t     *testing.T
	proxy string // the network's address

	mu        sync.Mutex
	instances []*instance
	made      int
	past      []*instance
	replicas  int32 // as last seen
}

// instance is what would be a pod.
type instance struct {
	*process
	began, ready time.Time
	address      string
	ending       bool
	exit         chan struct{} // closed when it is gone
}

func playDeployment(t *testing.T, w *world) *deployment {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.network.serve(l)
	d := &deployment{world: w, t: t, proxy: "http://" + l.Addr().String(), replicas: -1}
	w.network.put(serviceName, d.dial)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.control(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended })
	return d
}

// dial chooses one of those that are ready, as kube-proxy does.
func (d *deployment) dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	var ready []string
	for _, i := range d.instances {
		if !i.ready.IsZero() && !i.ending {
			ready = append(ready, i.address)
		}
	}
	d.mu.Unlock()
	if len(ready) == 0 {
		return nil, errors.New("no instance is ready")
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", ready[rand.IntN(len(ready))])
}

func (d *deployment) control(ctx context.Context) {
	for ctx.Err() == nil {
		object, err := d.AppsV1().Deployments(namespace).Get(ctx, "reservation-expiry", metav1.GetOptions{})
		if err == nil {
			d.reconcile(object)
			d.report(ctx, object)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *deployment) reconcile(object *appsv1.Deployment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := *object.Spec.Replicas
	if wanted != d.replicas {
		say(d.t, "the Deployment: %d replicas", wanted)
		d.replicas = wanted
	}
	var staying []*instance
	for _, i := range d.instances {
		select {
		case <-i.exit:
			d.past = append(d.past, i)
			continue
		default:
		}
		staying = append(staying, i)
	}
	d.instances = staying
	alive := int32(0)
	for _, i := range d.instances {
		if !i.ending {
			alive++
		}
	}
	for ; alive < wanted; alive++ {
		d.start(object)
	}
	for n := len(d.instances) - 1; alive > wanted && n >= 0; n-- {
		if i := d.instances[n]; !i.ending {
			i.ending = true
			alive--
			go func() {
				i.stop(time.Duration(*object.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second)
				close(i.exit)
			}()
		}
	}
}

// start is called under the lock.
func (d *deployment) start(object *appsv1.Deployment) {
	template, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&object.Spec.Template)
	require.NoError(d.t, err)
	port := freePort(d.t)
	environ := environList(d.containerEnviron(d.t, template), append(d.environ(d.t),
		"KUBECONFIG="+d.login(d.t, namespace, account), "PORT="+strconv.Itoa(port), "HTTP_PROXY="+d.proxy)...)
	d.made++
	i := &instance{address: local(port), exit: make(chan struct{}), began: time.Now()}
	i.process = start(d.t, fmt.Sprintf("scaled-%d", d.made), environ, binary)
	d.instances = append(d.instances, i)
	go d.probe(i)
}

// probe asks as the startup probe does, from the first moment on and often.
func (d *deployment) probe(i *instance) {
	for {
		response, err := http.Get("http://" + i.address + "/readyz")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-i.ended:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
	d.mu.Lock()
	i.ready = time.Now()
	d.mu.Unlock()
}

// report is what the Deployment's status would be.
func (d *deployment) report(ctx context.Context, object *appsv1.Deployment) {
	d.mu.Lock()
	status := appsv1.DeploymentStatus{ObservedGeneration: object.Generation}
	for _, i := range d.instances {
		if i.ending {
			continue
		}
		status.Replicas++
		if !i.ready.IsZero() {
			status.ReadyReplicas++
			status.AvailableReplicas++
		}
	}
	d.mu.Unlock()
	status.UpdatedReplicas = status.Replicas
	if object.Status.Replicas != status.Replicas || object.Status.ReadyReplicas != status.ReadyReplicas || object.Status.ObservedGeneration != status.ObservedGeneration {
		object.Status = status
		_, _ = d.AppsV1().Deployments(namespace).UpdateStatus(ctx, object, metav1.UpdateOptions{}) // else the next time
	}
}

// await waits until the Deployment has so many replicas.
func (d *deployment) await(replicas int32, within time.Duration) {
	d.t.Helper()
	eventually(d.t, within, fmt.Sprintf("the Deployment has %d replicas", replicas), func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.replicas != replicas {
			return fmt.Errorf("it has %d, and %d processes", d.replicas, len(d.instances))
		}
		return nil
	})
}

// gone waits until no process is left, and looks how those ended that were asked to.
func (d *deployment) gone() {
	d.t.Helper()
	eventually(d.t, time.Minute, "the last process has ended", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.instances) > 0 {
			return fmt.Errorf("%d are left", len(d.instances))
		}
		return nil
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, i := range d.past {
		if i.ending {
			require.Equal(d.t, 0, exitCode(i.cmd), "%s was told to end, and did so by itself", i.name)
		}
	}
}

func exitCode(cmd *exec.Cmd) int { return cmd.ProcessState.ExitCode() }

// startToReady is how long the newest instance took.
func (d *deployment) startToReady() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	newest := d.instances[len(d.instances)-1]
	return newest.ready.Sub(newest.began)
}

// live returns those instances that are ready and not told to end.
func (d *deployment) live() (live []*instance) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, i := range d.instances {
		if !i.ready.IsZero() && !i.ending {
			live = append(live, i)
		}
	}
	return live
}

// crash is a machine that fails: kill -9. The controller finds one missing and starts another.
func (d *deployment) crash(i *instance) {
	i.kill()
	close(i.exit)
}

// evict has one in particular go, as scale-in does, and another come.
func (d *deployment) evict(i *instance) {
	d.mu.Lock()
	i.ending = true
	d.mu.Unlock()
	go func() {
		i.stop(30 * time.Second)
		close(i.exit)
	}()
}

// autoscale does as the horizontal autoscaler does above zero, by the number that KEDA reads, until ctx ends. It returns
// how many replicas there were at most.
func (d *deployment) autoscale(ctx context.Context, most int32, each int64) (highest int) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return highest
		case <-ticker.C:
		}
		var work int64
		scale, err := d.AppsV1().Deployments(namespace).GetScale(ctx, "reservation-expiry", metav1.GetOptions{})
		if err != nil || d.SQL.QueryRow(ctx, "select work from expiry.due_work").Scan(&work) != nil {
			continue
		}
		highest = max(highest, int(scale.Spec.Replicas))
		wanted := min(most, int32((work+each-1)/each))
		if scale.Spec.Replicas == 0 || wanted <= scale.Spec.Replicas {
			continue // KEDA's to wake and to end; the test does not last as long as the way down is stabilised
		}
		scale.Spec.Replicas = wanted
		_, _ = d.AppsV1().Deployments(namespace).UpdateScale(ctx, "reservation-expiry", scale, metav1.UpdateOptions{}) // else the next time
	}
}
