package model

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// Cluster is a Kubernetes API server with its nodes.
type Cluster struct {
	w *World
	// UID is the kube-system namespace's.
	UID string

	pods     map[string]*Pod // by namespace/name, as all that has a namespace
	services map[string]*Service
	claims   map[string]*pod.Claim
	volumes  map[string]*pod.PersistentVolume
	nodes    map[string]*Node
	orphans  []*Pod // whose processes may run on
	// Gone is when the last pod of a name, namespace/name, was taken out of the API.
	Gone map[string]time.Time
}

// Pod is a pod with what only its node knows.
type Pod struct {
	pod.Pod
	Owner string // the reservation that it was made for
	// Volume is the EBS volume that its processes write to while they run; empty for none.
	Volume string
	// StopsIn is how long its processes take to stop when asked to; at the end of the grace period they are killed.
	StopsIn time.Duration
	Files   map[string]string
	ended   time.Time // when its processes had all ended; zero while they run
}

// Runs reports whether processes of the pod run, whatever the API shows.
func (p *Pod) Runs() bool { return p.ended.IsZero() }

// Service is a service and the reservation that it was made for.
type Service struct {
	pod.Service
	Owner string
}

// Node is a node. One that is cut off does nothing that the API server asks for, and its pods run on.
type Node struct {
	pod.Node
	CutOff bool
}

func newCluster(w *World) *Cluster {
	return &Cluster{w: w, UID: "cluster-1", pods: map[string]*Pod{}, services: map[string]*Service{}, claims: map[string]*pod.Claim{},
		volumes: map[string]*pod.PersistentVolume{}, nodes: map[string]*Node{}, Gone: map[string]time.Time{}}
}

func (w *World) uid(kind string) string {
	w.count++
	return fmt.Sprintf("%s-%04d", kind, w.count)
}

// MakeNode adds a node that runs on an instance.
func (c *Cluster) MakeNode(name, instance string) {
	c.nodes[name] = &Node{Node: pod.Node{Name: name, UID: c.w.uid("node"), Ready: true, InstanceID: instance}}
}

// Node returns a node, nil where there is none.
func (c *Cluster) Node(name string) *Node { return c.nodes[name] }

// MakePod makes a running pod, whose creation time the API server cuts to the second. It replaces none: false where
// the name is taken.
func (c *Cluster) MakePod(p Pod) (*Pod, bool) {
	key := p.Namespace + "/" + p.Name
	if c.pods[key] != nil {
		return nil, false
	}
	p.UID, p.Created, p.Phase = c.w.uid("pod"), c.w.now.Truncate(time.Second), pod.Running
	p.Files = map[string]string{}
	p.Containers = []pod.Container{{Name: pod.MainContainer, Kind: pod.App, ID: c.w.uid("containerd://"), Running: true}}
	c.pods[key] = &p
	return &p, true
}

// MakeService makes the SSH service of a pod.
func (c *Cluster) MakeService(s Service) {
	s.UID, s.Created = c.w.uid("service"), c.w.now.Truncate(time.Second)
	c.services[s.Namespace+"/"+s.Name] = &s
}

// MakeVolume makes a bound claim, and the PersistentVolume through which it has an EBS volume.
func (c *Cluster) MakeVolume(namespace, claim, name, volumeID, policy string) {
	cl := &pod.Claim{Namespace: namespace, Name: claim, UID: c.w.uid("claim"), Created: c.w.now.Truncate(time.Second), VolumeName: name, Phase: "Bound"}
	c.claims[namespace+"/"+claim] = cl
	c.volumes[name] = &pod.PersistentVolume{Name: name, UID: c.w.uid("pv"), Created: cl.Created, ReclaimPolicy: policy, Phase: "Bound",
		Driver: "ebs.csi.aws.com", VolumeID: volumeID, ClaimNamespace: namespace, ClaimName: claim, ClaimUID: cl.UID}
}

// Pods returns every pod, in order of names.
func (c *Cluster) Pods() []*Pod { return inOrder(c.pods) }

// Services returns every service, in order of names.
func (c *Cluster) Services() []*Service { return inOrder(c.services) }

// Pod returns a pod, nil where there is none.
func (c *Cluster) Pod(namespace, name string) *Pod { return c.pods[namespace+"/"+name] }

func inOrder[V any](all map[string]V) []V {
	var out []V
	for _, key := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[key])
	}
	return out
}

// Kill ends a pod's processes, as the kernel or the kubelet does, and has its status say so.
func (c *Cluster) Kill(p *Pod, reason string, phase pod.Phase) {
	if !p.Runs() {
		return
	}
	c.w.EC2.wrote(p)
	p.ended = c.w.now
	p.Phase, p.Reason = phase, reason
	for i := range p.Containers {
		p.Containers[i].Running = false
		p.Containers[i].Current = &pod.Termination{ContainerID: p.Containers[i].ID, Reason: "Completed", FinishedAt: c.w.now}
	}
}

// OOM kills the main container for want of memory; the kubelet starts it again at once.
func (c *Cluster) OOM(p *Pod) {
	main := &p.Containers[0]
	main.Last = &pod.Termination{ContainerID: main.ID, Reason: "OOMKilled", ExitCode: 137, FinishedAt: c.w.now.Truncate(time.Second)}
	main.ID = c.w.uid("containerd://")
	main.Restarts++
}

// LoseNode takes a node out of the cluster together with its instance: what ran there runs no more, and the pods go.
func (c *Cluster) LoseNode(name string, state string) {
	n := c.nodes[name]
	if n == nil {
		return
	}
	c.w.EC2.Halt(n.InstanceID, state)
	for _, p := range c.Pods() {
		if p.Node == name && p.Runs() {
			c.w.EC2.wrote(p)
			p.ended = c.w.now // its status stays as it was: nobody is there to report
		}
	}
	n.Ready, n.CutOff = false, true
	c.w.After(c.w.between(time.Minute, 6*time.Minute), func() {
		delete(c.nodes, name)
		for _, p := range c.Pods() {
			if p.Node == name {
				c.remove(p)
			}
		}
	})
}

// Delete is what DeletePod does, asked for by anybody.
func (c *Cluster) Delete(p *Pod, grace time.Duration) {
	due := c.w.now.Add(grace)
	if !p.Deleting.IsZero() && !due.Before(p.Deleting) {
		return
	}
	p.Deleting = due
	c.w.After(min(p.StopsIn, grace), func() { c.stop(p) })
}

func (c *Cluster) stop(p *Pod) {
	if c.pods[p.Namespace+"/"+p.Name] != p {
		return
	}
	if n := c.nodes[p.Node]; n != nil && n.CutOff {
		c.w.After(20*time.Second, func() { c.stop(p) }) // the node will hear of it when it is back
		return
	}
	c.Kill(p, "", pod.Running)
	c.w.After(c.w.between(0, 3*time.Second), func() { c.remove(p) })
}

// remove takes the pod out of the API. The driver then takes its volume off the instance, where the processes have ended.
func (c *Cluster) remove(p *Pod) {
	key := p.Namespace + "/" + p.Name
	if c.pods[key] != p {
		return
	}
	delete(c.pods, key)
	c.Gone[key] = c.w.now
	c.w.EC2.letGo(p)
}

// Orphan takes a pod out of the API whose node is not to be reached, as somebody does by force: its processes run on for a
// while, and only they know.
func (c *Cluster) Orphan(p *Pod, d time.Duration) {
	c.remove(p)
	c.orphans = append(c.orphans, p)
	c.w.After(d, func() { c.reap(p) })
}

// ReapOrphans ends what runs on without its pod.
func (c *Cluster) ReapOrphans() {
	for _, p := range c.orphans {
		c.reap(p)
	}
}

func (c *Cluster) reap(p *Pod) {
	if p.Runs() {
		c.Kill(p, "", pod.Running)
		c.w.EC2.letGo(p)
	}
}

func (c *Cluster) lines(p *Pod, replaces string) {
	for name := range p.Files {
		if replaces != "" && strings.HasPrefix(name, replaces) {
			delete(p.Files, name)
		}
	}
}

// ClusterUID is as kube.Cluster's.
func (c *Cluster) ClusterUID(context.Context) (string, error) { return c.UID, nil }

// GetNode is as kube.Cluster's.
func (c *Cluster) GetNode(_ context.Context, name string) (pod.Node, error) {
	n, ok := c.nodes[name]
	if !ok {
		return pod.Node{}, fault.Errorf(fault.Gone, "get nodes %s: not found", name)
	}
	return n.Node, nil
}

// Service returns a service, nil where there is none.
func (c *Cluster) Service(namespace, name string) *Service { return c.services[namespace+"/"+name] }
