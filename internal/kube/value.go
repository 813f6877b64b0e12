package kube

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/pod"
)

// podValue keeps of a pod what decisions need: of 10,000 pods the rest is by far the larger part.
func podValue(p *corev1.Pod) pod.Pod {
	v := pod.Pod{
		Namespace:  p.Namespace,
		Name:       p.Name,
		UID:        string(p.UID),
		UserID:     p.Labels[pod.UserLabel],
		Labels:     p.Labels,
		Created:    p.CreationTimestamp.UTC(),
		Deleting:   deletion(p),
		Phase:      pod.Phase(p.Status.Phase),
		Reason:     p.Status.Reason,
		Message:    p.Status.Message,
		Node:       p.Spec.NodeName,
		Containers: containers(p),
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			v.Disruption = &pod.Disruption{Reason: c.Reason, Message: c.Message}
		}
	}
	home := homeMount(p)
	for _, volume := range p.Spec.Volumes {
		claims, ids := len(v.Claims), len(v.VolumeIDs)
		v.Claims, v.VolumeIDs = mounts(p.Name, volume, v.Claims, v.VolumeIDs)
		switch {
		case volume.Name != home:
		case len(v.Claims) > claims:
			v.HomeClaim = v.Claims[claims]
		case len(v.VolumeIDs) == ids+1:
			v.HomeVolumeID = v.VolumeIDs[ids]
		}
	}
	return v
}

// homeMount names the volume on which the main container has the user's home.
func homeMount(p *corev1.Pod) string {
	var mounts []pod.Mount
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == pod.MainContainer {
			for _, m := range p.Spec.Containers[i].VolumeMounts {
				mounts = append(mounts, pod.Mount{Volume: m.Name, Path: m.MountPath})
			}
		}
	}
	return pod.HomeMount(mounts)
}

// mounts adds what one of the pod's volumes names: a claim, one made for the pod alone, or an EBS volume itself.
func mounts(podName string, v corev1.Volume, claims, ids []string) ([]string, []string) {
	before := len(ids)
	switch {
	case v.PersistentVolumeClaim != nil:
		claims = append(claims, v.PersistentVolumeClaim.ClaimName)
	case v.Ephemeral != nil:
		claims = append(claims, podName+"-"+v.Name)
	case v.AWSElasticBlockStore != nil:
		if id := volumeID(v.AWSElasticBlockStore.VolumeID); id != "" {
			ids = append(ids, id)
		}
	case v.CSI != nil:
		// An inline CSI volume has no handle; a driver that takes an existing volume is told which by an attribute.
		for _, attribute := range v.CSI.VolumeAttributes {
			if id := volumeID(attribute); id != "" {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids[before:])
	}
	return claims, ids
}

func containers(p *corev1.Pod) []pod.Container {
	status := &p.Status
	all := make([]pod.Container, 0, len(status.InitContainerStatuses)+len(status.ContainerStatuses)+len(status.EphemeralContainerStatuses))
	for i := range status.InitContainerStatuses {
		s := &status.InitContainerStatuses[i]
		kind := pod.Init
		if isSidecar(p, s.Name) {
			kind = pod.Sidecar
		}
		all = append(all, container(s, kind))
	}
	for i := range status.ContainerStatuses {
		all = append(all, container(&status.ContainerStatuses[i], pod.App))
	}
	for i := range status.EphemeralContainerStatuses {
		all = append(all, container(&status.EphemeralContainerStatuses[i], pod.Ephemeral))
	}
	return all
}

func isSidecar(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

func container(s *corev1.ContainerStatus, kind pod.Kind) pod.Container {
	c := pod.Container{
		Name:     s.Name,
		Kind:     kind,
		ID:       s.ContainerID,
		Restarts: int(s.RestartCount),
		Running:  s.State.Running != nil,
		Current:  termination(s.State.Terminated),
		Last:     termination(s.LastTerminationState.Terminated),
	}
	if w := s.State.Waiting; w != nil {
		c.Waiting = cmp.Or(w.Reason, "Waiting")
	}
	return c
}

func termination(t *corev1.ContainerStateTerminated) *pod.Termination {
	if t == nil {
		return nil
	}
	v := &pod.Termination{ContainerID: t.ContainerID, Reason: t.Reason, ExitCode: int(t.ExitCode), Message: t.Message}
	if !t.FinishedAt.IsZero() {
		v.FinishedAt = t.FinishedAt.UTC()
	}
	return v
}

func deletion(o metav1.Object) time.Time {
	if at := o.GetDeletionTimestamp(); at != nil {
		return at.UTC()
	}
	return time.Time{}
}
