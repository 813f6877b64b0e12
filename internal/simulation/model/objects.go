package model

import (
	"context"
	"maps"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// copied is a pod as the API shows it: what is changed later does not show in it.
func copied(p *Pod) pod.Pod {
	out := p.Pod
	out.Containers, out.Labels = slices.Clone(p.Containers), maps.Clone(p.Labels)
	return out
}

// ListPods is as kube.Cluster's.
func (c *Cluster) ListPods(_ context.Context, namespace string) ([]pod.Pod, error) {
	var pods []pod.Pod
	for _, p := range c.Pods() {
		if p.Namespace == namespace {
			pods = append(pods, copied(p))
		}
	}
	return pods, nil
}

// GetPod is as kube.Cluster's.
func (c *Cluster) GetPod(_ context.Context, namespace, name string) (pod.Pod, error) {
	p := c.Pod(namespace, name)
	if p == nil {
		return pod.Pod{}, fault.Errorf(fault.Gone, "get pods %s/%s: not found", namespace, name)
	}
	return copied(p), nil
}

func (c *Cluster) podWith(verb, namespace, name, uid string) (*Pod, error) {
	p := c.Pod(namespace, name)
	switch {
	case p == nil:
		return nil, fault.Errorf(fault.Gone, "%s pods %s/%s: not found", verb, namespace, name)
	case p.UID != uid:
		return nil, fault.Errorf(fault.Conflict, "%s pods %s/%s: its UID is %s, not %s", verb, namespace, name, p.UID, uid)
	}
	return p, nil
}

// DeletePod is as kube.Cluster's.
func (c *Cluster) DeletePod(_ context.Context, namespace, name, uid string, grace time.Duration) error {
	p, err := c.podWith("delete", namespace, name, uid)
	if err != nil {
		return err
	}
	c.w.watch(Effect{What: "delete pod", Name: name, Owner: p.Owner, Pod: p})
	c.Delete(p, grace)
	return nil
}

// ForceDeletePod is as kube.Cluster's: the processes run on where their node does.
func (c *Cluster) ForceDeletePod(_ context.Context, namespace, name, uid string) error {
	p, err := c.podWith("delete", namespace, name, uid)
	if err != nil {
		return err
	}
	c.w.watch(Effect{What: "force pod", Name: name, Owner: p.Owner, Pod: p})
	if n := c.nodes[p.Node]; n != nil && !n.CutOff {
		c.Kill(p, "", pod.Running)
	}
	c.remove(p)
	return nil
}

// WriteFile is as kube.Cluster's.
func (c *Cluster) WriteFile(_ context.Context, namespace, name, _ string, f pod.File) error {
	p := c.Pod(namespace, name)
	switch {
	case p == nil:
		return fault.Errorf(fault.Gone, "exec in pods %s/%s: not found", namespace, name)
	case !p.Runs() || c.nodes[p.Node] != nil && c.nodes[p.Node].CutOff:
		return fault.Errorf(fault.Transient, "exec in pods %s/%s: the container is not to be reached", namespace, name)
	}
	c.w.watch(Effect{What: "write file", Name: f.Name, Owner: p.Owner, Pod: p, File: &f})
	c.lines(p, f.Replaces)
	p.Files[f.Name] = f.Content
	return nil
}

// RunListing is as kube.Cluster's.
func (c *Cluster) RunListing(_ context.Context, namespace, name, _, _ string) (pod.Listing, error) {
	p := c.Pod(namespace, name)
	if p == nil {
		return pod.Listing{}, fault.Errorf(fault.Gone, "exec in pods %s/%s: not found", namespace, name)
	}
	if !p.Runs() || c.nodes[p.Node] != nil && c.nodes[p.Node].CutOff {
		return pod.Listing{}, fault.Errorf(fault.Transient, "exec in pods %s/%s: the container is not to be reached", namespace, name)
	}
	return pod.Listing{Size: "1.2G", Tree: "work\n"}, nil
}

// ListServices is as kube.Cluster's.
func (c *Cluster) ListServices(_ context.Context, namespace string) ([]pod.Service, error) {
	var services []pod.Service
	for _, s := range c.Services() {
		if s.Namespace == namespace {
			services = append(services, s.Service)
		}
	}
	return services, nil
}

// GetService is as kube.Cluster's.
func (c *Cluster) GetService(_ context.Context, namespace, name string) (pod.Service, error) {
	s := c.Service(namespace, name)
	if s == nil {
		return pod.Service{}, fault.Errorf(fault.Gone, "get services %s/%s: not found", namespace, name)
	}
	return s.Service, nil
}

// DeleteService is as kube.Cluster's.
func (c *Cluster) DeleteService(_ context.Context, namespace, name, uid string) error {
	s := c.services[namespace+"/"+name]
	switch {
	case s == nil:
		return fault.Errorf(fault.Gone, "delete services %s/%s: not found", namespace, name)
	case s.UID != uid:
		return fault.Errorf(fault.Conflict, "delete services %s/%s: its UID is %s", namespace, name, s.UID)
	}
	c.w.watch(Effect{What: "delete service", Name: name, Owner: s.Owner})
	delete(c.services, namespace+"/"+name)
	return nil
}

// GetClaim is as kube.Cluster's.
func (c *Cluster) GetClaim(_ context.Context, namespace, name string) (pod.Claim, error) {
	claim, ok := c.claims[namespace+"/"+name]
	if !ok {
		return pod.Claim{}, fault.Errorf(fault.Gone, "get persistentvolumeclaims %s/%s: not found", namespace, name)
	}
	return *claim, nil
}

// GetVolume is as kube.Cluster's.
func (c *Cluster) GetVolume(_ context.Context, name string) (pod.PersistentVolume, error) {
	v, ok := c.volumes[name]
	if !ok {
		return pod.PersistentVolume{}, fault.Errorf(fault.Gone, "get persistentvolumes %s: not found", name)
	}
	return *v, nil
}

// RetainVolume is as kube.Cluster's.
func (c *Cluster) RetainVolume(_ context.Context, name, uid string) (pod.PersistentVolume, error) {
	v, ok := c.volumes[name]
	switch {
	case !ok:
		return pod.PersistentVolume{}, fault.Errorf(fault.Gone, "get persistentvolumes %s: not found", name)
	case v.UID != uid:
		return pod.PersistentVolume{}, fault.Errorf(fault.Conflict, "retain persistentvolumes %s: its UID is %s", name, v.UID)
	}
	v.ReclaimPolicy = pod.RetainPolicy
	return *v, nil
}

// DeleteClaim is as kube.Cluster's. With the claim goes a PersistentVolume that is not retained, and the EBS volume.
func (c *Cluster) DeleteClaim(_ context.Context, namespace, name, uid string) error {
	claim, ok := c.claims[namespace+"/"+name]
	switch {
	case !ok:
		return fault.Errorf(fault.Gone, "delete persistentvolumeclaims %s/%s: not found", namespace, name)
	case claim.UID != uid:
		return fault.Errorf(fault.Conflict, "delete persistentvolumeclaims %s/%s: its UID is %s", namespace, name, claim.UID)
	}
	v := c.volumes[claim.VolumeName]
	delete(c.claims, namespace+"/"+name)
	if v != nil && !v.Retained() {
		delete(c.volumes, v.Name)
		c.w.EC2.reclaim(v.VolumeID)
	}
	return nil
}

// DeleteVolume is as kube.Cluster's.
func (c *Cluster) DeleteVolume(_ context.Context, name, uid string) error {
	v, ok := c.volumes[name]
	switch {
	case !ok:
		return fault.Errorf(fault.Gone, "delete persistentvolumes %s: not found", name)
	case v.UID != uid:
		return fault.Errorf(fault.Conflict, "delete persistentvolumes %s: its UID is %s", name, v.UID)
	}
	delete(c.volumes, name)
	return nil
}
