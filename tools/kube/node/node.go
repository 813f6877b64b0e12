// Package node simulates Kubernetes nodes against a real API server: pods bound to one run, stop gracefully, and can
// be exec'd into, each in a file system of its own. A node whose Ready condition is not True keeps silent, as a dead
// machine does; so does one whose Node object is gone.
package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// SimulatedLabel makes a Node object one of ours, whoever created it.
const SimulatedLabel = "devcluster/simulated"

const (
	workers   = 32
	readyTime = 10 * time.Second // for a new node to be seen and reported
)

// Options are what the nodes need.
type Options struct {
	Client         kubernetes.Interface
	Sandboxes      *Sandboxes
	Nodes          int            // how many to create: node-0, node-1, …
	KubeletClients *x509.CertPool // who may use the kubelet API
}

type kubelet struct {
	Options
	port  int32 // one server answers for all nodes
	nodes corelisters.NodeLister
	pods  corelisters.PodLister
	queue workqueue.TypedRateLimitingInterface[cache.ObjectName]
	ips   atomic.Uint32
}

// Run returns once the nodes are Ready; they live until ctx ends.
func Run(ctx context.Context, o Options) error {
	k := &kubelet{Options: o, queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](5*time.Millisecond, 10*time.Second))}
	if err := k.serve(ctx); err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(o.Client, 0)
	nodes, pods := shared.Core().V1().Nodes(), shared.Core().V1().Pods()
	k.nodes, k.pods = nodes.Lister(), pods.Lister()
	_, nodesErr := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(n any) { k.nodeChanged(ctx, n.(*corev1.Node)) },
		UpdateFunc: func(_, n any) { k.nodeChanged(ctx, n.(*corev1.Node)) },
	})
	_, podsErr := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    k.enqueue,
		UpdateFunc: func(_, p any) { k.enqueue(p) },
		DeleteFunc: func(p any) {
			if unknown, ok := p.(cache.DeletedFinalStateUnknown); ok {
				p = unknown.Obj
			}
			if pod, ok := p.(*corev1.Pod); ok {
				k.Sandboxes.Stop(pod.UID)
			}
		},
	})
	if err := errors.Join(nodesErr, podsErr); err != nil {
		return fmt.Errorf("watch nodes and pods: %w", err)
	}
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	for range workers {
		go k.work(ctx)
	}
	context.AfterFunc(ctx, k.queue.ShutDown)
	for i := range o.Nodes {
		if err := k.create(ctx, fmt.Sprintf("node-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// create makes a node and waits until nodeChanged has seen and reported it.

func (k *kubelet) create(ctx context.Context, name string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		SimulatedLabel: "true", corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
	if _, err := k.Client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create node %s: %w", name, err)
	}
	ready := func(context.Context) (bool, error) { return k.serves(name), nil }
	if err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, readyTime, true, ready); err != nil {
		return fmt.Errorf("wait for node %s: %w", name, err)
	}
	return nil
}

// nodeChanged takes on a new node, and looks at all pods of a known one, which may just have come back.
func (k *kubelet) nodeChanged(ctx context.Context, node *corev1.Node) {
	if node.Labels[SimulatedLabel] == "" {
		return
	}
	if readyCondition(node) == nil {
		if err := k.makeReady(ctx, node); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			klog.ErrorS(err, "A node stays unready", "node", node.Name)
		}
		return
	}
	pods, err := k.pods.List(labels.Everything())
	for _, pod := range pods {
		if err == nil && pod.Spec.NodeName == node.Name {
			k.enqueue(pod)
		}
	}
}

// makeReady reports the node Ready, once: what is set by hand afterwards stays.
func (k *kubelet) makeReady(ctx context.Context, node *corev1.Node) error {
	node = node.DeepCopy()
	now := metav1.Now()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("192"), corev1.ResourceMemory: resource.MustParse("2Ti"),
		corev1.ResourcePods: resource.MustParse("20000"), corev1.ResourceEphemeralStorage: resource.MustParse("8Ti"),
		"nvidia.com/gpu": resource.MustParse("8"),
	}
	node.Status.Capacity, node.Status.Allocatable = room, room
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = k.port
	node.Status.NodeInfo.OperatingSystem, node.Status.NodeInfo.Architecture = "linux", "amd64"
	node.Status.NodeInfo.KubeletVersion = "devcluster"
	if _, err := k.Client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("report node %s ready: %w", node.Name, err)
	}
	return nil
}

// serves says whether there is a node of this name, ours and alive.
func (k *kubelet) serves(name string) bool {
	node, err := k.nodes.Get(name)
	return err == nil && alive(node)
}

func alive(node *corev1.Node) bool {
	ready := readyCondition(node)
	return node.Labels[SimulatedLabel] != "" && ready != nil && ready.Status == corev1.ConditionTrue
}

func readyCondition(node *corev1.Node) *corev1.NodeCondition {
	for i, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}
