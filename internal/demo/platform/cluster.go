package platform

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// simulated makes a Node object run the pods bound to it.
	simulated = "devcluster/simulated"
	// demoLabel is on everything that the demo makes in the cluster.
	demoLabel = "reservation-expiry-demo"

	runsWithin = 30 * time.Second
	pollEvery  = 50 * time.Millisecond
)

// Node is a simulated GPU node.
type Node struct{ Name, Instance string }

func labelled(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{demoLabel: "true"}}
}

// foundCluster makes the namespace and three nodes. It refuses a cluster that simulates no nodes: that may be a real one.
func (p *Platform) foundCluster(ctx context.Context) error {
	found, err := p.Cluster.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: simulated + "=true"})
	if err != nil {
		return fmt.Errorf("look at the cluster: %w", err)
	}
	if len(found.Items) == 0 {
		return errors.New("the cluster has no simulated node: the demo only works on the cluster of make stack-up")
	}
	_, err = p.Cluster.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: labelled(Namespace)}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", Namespace, err)
	}
	for range 3 {
		node, err := p.AddNode(ctx)
		if err != nil {
			return err
		}
		p.nodes = append(p.nodes, node)
	}
	return nil
}

// AddNode starts an instance and makes it a node of the cluster.
func (p *Platform) AddNode(ctx context.Context) (Node, error) {
	instance, err := p.runInstance(ctx)
	if err != nil {
		return Node{}, err
	}
	meta := labelled("gpu-" + instance[len(instance)-8:])
	meta.Labels[simulated] = "true"
	_, err = p.Cluster.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: meta, Spec: corev1.NodeSpec{ProviderID: "aws:///" + zone + "/" + instance},
	}, metav1.CreateOptions{})
	if err != nil {
		return Node{}, fmt.Errorf("make node %s: %w", meta.Name, err)
	}
	return Node{meta.Name, instance}, nil
}

// node spreads servers over the nodes.
func (p *Platform) node(reservationID string) Node {
	return p.nodes[int(reservationID[0])%len(p.nodes)]
}

// Start starts a reservation's pod, with its disk if it has a volume, and its SSH service, and waits until it runs.
func (p *Platform) Start(ctx context.Context, s *Server) error {
	if s.Node == (Node{}) {
		s.Node = p.node(s.ID)
	}
	pod := corev1.Pod{ObjectMeta: labelled(s.Pod), Spec: corev1.PodSpec{
		NodeName: s.Node.Name, Containers: []corev1.Container{{Name: "gpu-dev", Image: "gpu-dev"}}}}
	pod.Labels["app"], pod.Labels["user-id"] = s.Pod, s.User
	if s.Volume != "" {
		if err := p.bind(ctx, s); err != nil {
			return err
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: s.Claim}}}}
	}
	if err := p.createPod(ctx, s, &pod); err != nil {
		return err
	}
	if s.Volume != "" {
		p.manage(*s)
	}
	return p.Exec(ctx, "update reservations set node_ip = '127.0.0.1', node_port = 30022 where reservation_id = $1", s.ID)
}

// StartPartly makes a pod that no node has taken yet, and its service: a launch that got stuck.
func (p *Platform) StartPartly(ctx context.Context, s *Server) error {
	return p.createPod(ctx, s, &corev1.Pod{ObjectMeta: labelled(s.Pod),
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "gpu-dev", Image: "gpu-dev"}}}})
}

func (p *Platform) createPod(ctx context.Context, s *Server, pod *corev1.Pod) error {
	pods := p.Cluster.CoreV1().Pods(Namespace)
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make pod %s: %w", s.Pod, err)
	}
	s.PodUID = string(made.UID)
	_, err = p.Cluster.CoreV1().Services(Namespace).Create(ctx, &corev1.Service{ObjectMeta: labelled(s.Pod + "-ssh"), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": s.Pod}, Ports: []corev1.ServicePort{{Port: 22}}}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make service %s-ssh: %w", s.Pod, err)
	}
	if pod.Spec.NodeName == "" {
		return nil
	}
	return wait.PollUntilContextTimeout(ctx, pollEvery, runsWithin, true, func(ctx context.Context) (bool, error) {
		now, err := pods.Get(ctx, s.Pod, metav1.GetOptions{})
		return err == nil && now.Status.Phase == corev1.PodRunning, err
	})
}

// bind makes the claim and the volume object through which a pod mounts the EBS volume, with the reclaim policy that
// storage classes have by default.
func (p *Platform) bind(ctx context.Context, s *Server) error {
	core, none := p.Cluster.CoreV1(), ""
	s.Claim = "disk-" + s.ID[:8]
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := core.PersistentVolumeClaims(Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: labelled(s.Claim),
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: s.Claim, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make claim %s: %w", s.Claim, err)
	}
	_, err = core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: labelled(s.Claim),
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{Namespace: Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "ebs.csi.aws.com", VolumeHandle: s.Volume}},
		}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make volume object %s: %w", s.Claim, err)
	}
	return nil
}

// SetPodStatus reports what a kubelet would.
func (p *Platform) SetPodStatus(ctx context.Context, name string, change func(*corev1.PodStatus)) error {
	pods := p.Cluster.CoreV1().Pods(Namespace)
	pod, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		change(&pod.Status)
		_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("report the status of pod %s: %w", name, err)
	}
	return nil
}

// LosePods has all pods of a user vanish from the cluster at once, and nothing else.
func (p *Platform) LosePods(ctx context.Context, user string) error {
	err := p.Cluster.CoreV1().Pods(Namespace).DeleteCollection(ctx, *metav1.NewDeleteOptions(0), metav1.ListOptions{LabelSelector: "user-id=" + user})
	if err != nil {
		return fmt.Errorf("lose the pods of %s: %w", user, err)
	}
	return nil
}

// LoseNode has EC2 take a node's instance back: the node and its pods vanish from the cluster.
func (p *Platform) LoseNode(ctx context.Context, s Server) error {
	if err := p.reclaim(ctx, s.Node.Instance); err != nil {
		return err
	}
	core, now := p.Cluster.CoreV1(), *metav1.NewDeleteOptions(0)
	err := errors.Join(core.Nodes().Delete(ctx, s.Node.Name, now), core.Pods(Namespace).Delete(ctx, s.Pod, now))
	if err != nil {
		return fmt.Errorf("lose node %s: %w", s.Node.Name, err)
	}
	return nil
}

// Clear removes from the cluster everything that the demo has made, for one that outlives it.
func (p *Platform) Clear(ctx context.Context) error {
	core, now, ours := p.Cluster.CoreV1(), *metav1.NewDeleteOptions(0), metav1.ListOptions{LabelSelector: demoLabel + "=true"}
	services, err := core.Services(Namespace).List(ctx, ours)
	if err == nil {
		for _, s := range services.Items {
			err = errors.Join(err, core.Services(Namespace).Delete(ctx, s.Name, now))
		}
	}
	err = errors.Join(err,
		core.Pods(Namespace).DeleteCollection(ctx, now, ours),
		core.PersistentVolumeClaims(Namespace).DeleteCollection(ctx, now, ours),
		core.PersistentVolumes().DeleteCollection(ctx, now, ours),
		core.Nodes().DeleteCollection(ctx, now, ours))
	if err != nil {
		return fmt.Errorf("clear the cluster: %w", err)
	}
	return nil
}
