package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// ListPods returns every pod of the namespace, of one consistent and current snapshot, or an error: never a part of
// them. An empty list says only that the API server knows none; absence is for GetPod to prove.
func (c *Cluster) ListPods(ctx context.Context, namespace string) ([]pod.Pod, error) {
	fresh := func() *corev1.PodList { return new(corev1.PodList) }
	return listAll(ctx, c, target{resource: "pods", namespace: namespace}, fresh,
		func(page *corev1.PodList, pods []pod.Pod) []pod.Pod {
			for i := range page.Items {
				pods = append(pods, podValue(&page.Items[i]))
			}
			return pods
		})
}

// GetPod returns the pod; Gone is the proof that it does not exist.
func (c *Cluster) GetPod(ctx context.Context, namespace, name string) (pod.Pod, error) {
	var p corev1.Pod
	if err := c.get(ctx, target{"pods", namespace, name}, &p); err != nil {
		return pod.Pod{}, err
	}
	return podValue(&p), nil
}

// DeletePod asks for the pod's end, its processes having the grace period to stop: at least a second. It is accepted
// long before the pod is gone. Conflict means that the name has another pod by now.
func (c *Cluster) DeletePod(ctx context.Context, namespace, name, uid string, grace time.Duration) error {
	t := target{"pods", namespace, name}
	if grace < time.Second {
		return fault.Errorf(fault.Permanent, "delete %s: a grace period of %s would force it", t, grace)
	}
	return c.delete(ctx, t, uid, int64(grace/time.Second))
}

// ForceDeletePod takes the pod out of the API without waiting for its processes, which may run on if their node does.
func (c *Cluster) ForceDeletePod(ctx context.Context, namespace, name, uid string) error {
	return c.delete(ctx, target{"pods", namespace, name}, uid, 0)
}
