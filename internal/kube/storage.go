package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// inTreeDriver is what Kubernetes calls the EBS volumes it knew before CSI.
const inTreeDriver = "kubernetes.io/aws-ebs"

// GetClaim returns the PersistentVolumeClaim; Gone is the proof that it does not exist.
func (c *Cluster) GetClaim(ctx context.Context, namespace, name string) (pod.Claim, error) {
	var claim corev1.PersistentVolumeClaim
	if err := c.get(ctx, target{"persistentvolumeclaims", namespace, name}, &claim); err != nil {
		return pod.Claim{}, err
	}
	return pod.Claim{
		Namespace:  claim.Namespace,
		Name:       claim.Name,
		UID:        string(claim.UID),
		Created:    claim.CreationTimestamp.UTC(),
		Deleting:   deletion(&claim),
		VolumeName: claim.Spec.VolumeName,
		Phase:      string(claim.Status.Phase),
	}, nil
}

// GetVolume returns the PersistentVolume; Gone is the proof that it does not exist.
func (c *Cluster) GetVolume(ctx context.Context, name string) (pod.PersistentVolume, error) {
	v, err := c.getVolume(ctx, name)
	if err != nil {
		return pod.PersistentVolume{}, err
	}
	return volumeValue(v), nil
}

// RetainVolume sees to it that the PersistentVolume with that UID, and the EBS volume behind it, outlives its claim,
// and returns it as read back afterwards. Conflict means that it is another volume, or was changed meanwhile.
func (c *Cluster) RetainVolume(ctx context.Context, name, uid string) (pod.PersistentVolume, error) {
	before, err := c.getVolume(ctx, name)
	if err != nil {
		return pod.PersistentVolume{}, err
	}
	t := target{resource: "persistentvolumes", name: name}
	if string(before.UID) != uid {
		return pod.PersistentVolume{}, fault.Errorf(fault.Conflict, "retain %s: its UID is %s, not %q", t, before.UID, uid)
	}
	if v := volumeValue(before); v.Retained() {
		return v, nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": before.UID, "resourceVersion": before.ResourceVersion},
		"spec":     map[string]any{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimRetain},
	})
	if err != nil {
		return pod.PersistentVolume{}, fmt.Errorf("retain %s: %w", t, err)
	}
	build := func(r *rest.Request) { r.SetHeader("Content-Type", string(types.MergePatchType)).Body(patch) }
	if err := c.call(ctx, "patch", t, nil, build); err != nil {
		return pod.PersistentVolume{}, err
	}
	after, err := c.GetVolume(ctx, name)
	switch {
	case err != nil:
		return pod.PersistentVolume{}, err
	case after.UID != uid || !after.Retained():
		return pod.PersistentVolume{}, fault.Errorf(fault.Conflict, "retain %s: read back with UID %s and policy %s", t, after.UID, after.ReclaimPolicy)
	}
	return after, nil
}

// DeleteClaim asks for the claim's deletion if it still has that UID. The API server keeps it for as long as a pod uses
// it (finalizer kubernetes.io/pvc-protection): GetClaim tells when it is gone.
func (c *Cluster) DeleteClaim(ctx context.Context, namespace, name, uid string) error {
	return c.delete(ctx, target{"persistentvolumeclaims", namespace, name}, uid, noGrace)
}

// DeleteVolume asks for the deletion of the PersistentVolume, the object alone if it is retained, if it still has
// that UID. The API server keeps it for as long as a claim is bound to it (finalizer kubernetes.io/pv-protection), and
// a driver's finalizer until the driver has let go: GetVolume tells when it is gone.
func (c *Cluster) DeleteVolume(ctx context.Context, name, uid string) error {
	return c.delete(ctx, target{resource: "persistentvolumes", name: name}, uid, noGrace)
}

func (c *Cluster) getVolume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	v := &corev1.PersistentVolume{}
	return v, c.get(ctx, target{resource: "persistentvolumes", name: name}, v)
}

func volumeValue(v *corev1.PersistentVolume) pod.PersistentVolume {
	value := pod.PersistentVolume{
		Name:          v.Name,
		UID:           string(v.UID),
		Created:       v.CreationTimestamp.UTC(),
		Deleting:      deletion(v),
		ReclaimPolicy: string(v.Spec.PersistentVolumeReclaimPolicy),
		Phase:         string(v.Status.Phase),
	}
	switch {
	case v.Spec.CSI != nil:
		value.Driver = v.Spec.CSI.Driver
		value.VolumeID = volumeID(v.Spec.CSI.VolumeHandle)
	case v.Spec.AWSElasticBlockStore != nil:
		value.Driver = inTreeDriver
		value.VolumeID = volumeID(v.Spec.AWSElasticBlockStore.VolumeID)
	}
	if claim := v.Spec.ClaimRef; claim != nil {
		value.ClaimNamespace, value.ClaimName, value.ClaimUID = claim.Namespace, claim.Name, string(claim.UID)
	}
	return value
}

// volumeID is empty, rather than what was given, where that is no EBS volume's id.
func volumeID(handle string) string {
	if id, ok := disk.ParseVolumeID(handle); ok {
		return id
	}
	return ""
}
