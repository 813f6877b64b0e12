package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// GetNode returns the node; Gone is the proof that it is not part of the cluster any more.
func (c *Cluster) GetNode(ctx context.Context, name string) (pod.Node, error) {
	var n corev1.Node
	if err := c.get(ctx, target{resource: "nodes", name: name}, &n); err != nil {
		return pod.Node{}, err
	}
	v := pod.Node{Name: n.Name, UID: string(n.UID)}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			v.Ready = condition.Status == corev1.ConditionTrue
		}
	}
	if id, ok := disk.ParseInstanceID(n.Spec.ProviderID); ok {
		v.InstanceID = id
	}
	return v, nil
}

// ClusterUID returns the UID of namespace kube-system, which tells this cluster from every other.
func (c *Cluster) ClusterUID(ctx context.Context) (string, error) {
	var n corev1.Namespace
	if err := c.get(ctx, target{resource: "namespaces", name: "kube-system"}, &n); err != nil {
		return "", err
	}
	return string(n.UID), nil
}
