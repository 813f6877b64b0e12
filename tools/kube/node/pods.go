package node

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// StopAfter is a pod annotation: how long its processes take to exit once asked (a Go duration, or "never"). Without
// it they exit at once. Like a kubelet, the node kills them at the end of the grace period; with "never" not even that
// helps, as with a process stuck in the kernel.
const StopAfter = "devcluster/stop-after"

func (k *kubelet) enqueue(obj any) {
	if name, err := cache.ObjectToName(obj); err == nil {
		k.queue.Add(name)
	}
}

func (k *kubelet) work(ctx context.Context) {
	for {
		name, shutDown := k.queue.Get()
		if shutDown {
			return
		}
		if err := k.sync(ctx, name); err == nil || apierrors.IsNotFound(err) {
			k.queue.Forget(name)
		} else if ctx.Err() == nil {
			klog.V(1).InfoS("Will try again", "pod", name, "err", err)
			k.queue.AddRateLimited(name)
		}
		k.queue.Done(name)
	}
}

func (k *kubelet) sync(ctx context.Context, name cache.ObjectName) error {
	pod, err := k.pods.Pods(name.Namespace).Get(name.Name)
	if err != nil || !k.serves(pod.Spec.NodeName) {
		return err
	}
	switch {
	case pod.DeletionTimestamp != nil:
		return k.stop(ctx, name, pod)
	case pod.Status.Phase == corev1.PodPending && len(pod.Status.ContainerStatuses) == 0:
		return k.run(ctx, pod)
	}
	return nil // it runs already, or somebody has set its status by hand
}

func (k *kubelet) run(ctx context.Context, pod *corev1.Pod) error {
	pod, now, yes := pod.DeepCopy(), metav1.Now(), true
	ip := k.ips.Add(1)
	status := &pod.Status
	status.Phase, status.StartTime = corev1.PodRunning, &now
	status.HostIP, status.HostIPs = "127.0.0.1", []corev1.HostIP{{IP: "127.0.0.1"}}
	status.PodIP = fmt.Sprintf("10.%d.%d.%d", 64+ip>>16&63, ip>>8&255, ip&255)
	status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ContainerID: fmt.Sprintf("devcluster://%s/%s", pod.UID, c.Name), Ready: true, Started: &yes,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	_, err := k.Client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// stop waits for the pod's processes as long as they take, reports its containers terminated, and lets the object go.
func (k *kubelet) stop(ctx context.Context, name cache.ObjectName, pod *corev1.Pod) error {
	grace := time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	needs := pod.Annotations[StopAfter]
	if needs == "never" && grace > 0 {
		return nil
	}
	exitCode, takes := int32(0), time.Duration(0)
	if needs != "" {
		takes, _ = time.ParseDuration(needs)
	}
	if takes > grace {
		exitCode, takes = 137, grace
	}
	asked := pod.DeletionTimestamp.Add(-grace)
	if left := time.Until(asked.Add(takes)); takes > 0 && left > 0 {
		k.queue.AddAfter(name, left)
		return nil
	}
	k.Sandboxes.Stop(pod.UID)
	if grace == 0 {
		return nil // forced: only a finalizer can still hold the object
	}
	pods := k.Client.CoreV1().Pods(pod.Namespace)
	if ended := terminated(pod, exitCode); ended != nil {
		if _, err := pods.UpdateStatus(ctx, ended, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	now := metav1.NewDeleteOptions(0)
	now.Preconditions = &metav1.Preconditions{UID: &pod.UID}
	return pods.Delete(ctx, pod.Name, *now)
}

// terminated is the pod with its running containers ended, nil if none runs.
func terminated(pod *corev1.Pod, exitCode int32) *corev1.Pod {
	pod = pod.DeepCopy()
	found := false
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		if c.State.Running == nil {
			continue
		}
		found = true
		reason := "Completed"
		if exitCode != 0 {
			reason = "Error"
		}
		c.Ready = false
		c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: exitCode, Reason: reason, StartedAt: c.State.Running.StartedAt, FinishedAt: metav1.Now(), ContainerID: c.ContainerID,
		}}
	}
	if !found {
		return nil
	}
	return pod
}
