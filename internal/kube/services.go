package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/pod"
)

// ListServices returns every service of the namespace, or an error: never a part of them.
func (c *Cluster) ListServices(ctx context.Context, namespace string) ([]pod.Service, error) {
	fresh := func() *corev1.ServiceList { return new(corev1.ServiceList) }
	return listAll(ctx, c, target{resource: "services", namespace: namespace}, fresh,
		func(page *corev1.ServiceList, services []pod.Service) []pod.Service {
			for i := range page.Items {
				services = append(services, serviceValue(&page.Items[i]))
			}
			return services
		})
}

// GetService returns the service; Gone is the proof that it does not exist.
func (c *Cluster) GetService(ctx context.Context, namespace, name string) (pod.Service, error) {
	var s corev1.Service
	if err := c.get(ctx, target{"services", namespace, name}, &s); err != nil {
		return pod.Service{}, err
	}
	return serviceValue(&s), nil
}

// DeleteService deletes the service if it still has that UID; Conflict means that the name has another by now.
func (c *Cluster) DeleteService(ctx context.Context, namespace, name, uid string) error {
	return c.delete(ctx, target{"services", namespace, name}, uid, noGrace)
}

func serviceValue(s *corev1.Service) pod.Service {
	return pod.Service{
		Namespace: s.Namespace,
		Name:      s.Name,
		UID:       string(s.UID),
		Created:   s.CreationTimestamp.UTC(),
		Deleting:  deletion(s),
		Selector:  s.Spec.Selector,
	}
}
