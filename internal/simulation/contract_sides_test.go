package simulation

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	sdkec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestContractOfKubernetes(t *testing.T) {
	t.Parallel()
	t.Run("the model", func(t *testing.T) {
		t.Parallel()
		w := model.New(dawn, rand.New(rand.NewPCG(1, 1)))
		w.Cluster.MakeNode("node-0", w.EC2.MakeInstance(false))
		kubernetesContract(t, modelCluster{modelSide{t, w}})
	})
	t.Run("the API server", func(t *testing.T) {
		t.Parallel()
		stack := stacktest.Kubernetes(t)
		api := kube.New(func(context.Context) (*rest.Config, error) { return stack.Config, nil }, kube.Options{})
		kubernetesContract(t, realCluster{t, stack, api})
	})
}

func TestContractOfEC2(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) { // what takes how long in the model
		t.Run("the model", func(t *testing.T) {
			t.Parallel()
			w := model.New(dawn, rand.New(rand.NewPCG(seed, 3)))
			w.EC2.Sound = true
			ec2Contract(t, modelEC2{modelSide{t, w}})
		})
	}
	t.Run("the emulator", func(t *testing.T) {
		t.Parallel()
		account := stacktest.AWS(t)
		ec2Contract(t, realEC2{t, account, sdkec2.NewFromConfig(account.Config), aws.NewEC2(account.Config)})
	})
}

// modelSide lets the model's time pass.
type modelSide struct {
	t *testing.T
	w *model.World
}

func (s modelSide) eventually(condition func() bool) {
	s.t.Helper()
	for range 1000 {
		if condition() {
			return
		}
		s.w.Advance(time.Second)
	}
	require.Fail(s.t, "it never comes true")
}

type modelCluster struct{ modelSide }

func (s modelCluster) api() kubernetesAPI { return s.w.Cluster }
func (modelCluster) namespace() string    { return "gpu-dev" }

func (s modelCluster) makePod(name string, labels map[string]string) string {
	p := model.Pod{StopsIn: 5 * time.Second}
	p.Namespace, p.Name, p.Labels, p.Node = "gpu-dev", name, labels, "node-0"
	made, ok := s.w.Cluster.MakePod(p)
	require.True(s.t, ok)
	return made.UID
}

func (s modelCluster) makeService(name string, selector map[string]string) string {
	s.w.Cluster.MakeService(model.Service{Service: pod.Service{Namespace: "gpu-dev", Name: name, Selector: selector}})
	return s.w.Cluster.Service("gpu-dev", name).UID
}

func (s modelCluster) makeVolume(claim, volume, volumeID string) (claimUID, volumeUID string) {
	s.w.Cluster.MakeVolume("gpu-dev", claim, volume, volumeID, "Delete")
	v, err := s.w.Cluster.GetVolume(s.t.Context(), volume)
	require.NoError(s.t, err)
	return v.ClaimUID, v.UID
}

func (s modelCluster) makeNode(name, instance string) { s.w.Cluster.MakeNode(name, instance) }

func (s modelCluster) files(name string) (names []string) {
	for file := range s.w.Cluster.Pod("gpu-dev", name).Files {
		names = append(names, file)
	}
	return names
}

type realCluster struct {
	t     *testing.T
	stack *stacktest.Cluster
	kube  *kube.Cluster
}

func (s realCluster) api() kubernetesAPI { return s.kube }
func (s realCluster) namespace() string  { return s.stack.Namespace }

func (s realCluster) makePod(name string, labels map[string]string) string {
	return string(s.stack.CreatePod(name, func(p *corev1.Pod) { p.Labels = labels }).UID)
}

func (s realCluster) makeService(name string, selector map[string]string) string {
	made, err := s.stack.Client.CoreV1().Services(s.stack.Namespace).Create(s.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Port: 22, TargetPort: intstr.FromInt32(22)}}},
	}, metav1.CreateOptions{})
	require.NoError(s.t, err)
	return string(made.UID)
}

func (s realCluster) makeVolume(claim, volume, volumeID string) (claimUID, volumeUID string) {
	core, ctx, none := s.stack.Client.CoreV1(), s.t.Context(), ""
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	c, err := core.PersistentVolumeClaims(s.stack.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: claim},
		Spec:       corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: volume, StorageClassName: &none, Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(s.t, err)
	v, err := core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: volume},
		Spec: corev1.PersistentVolumeSpec{Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{Namespace: s.stack.Namespace, Name: claim, UID: c.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.aws.com", VolumeHandle: volumeID}}},
	}, metav1.CreateOptions{})
	require.NoError(s.t, err)
	s.t.Cleanup(func() {
		_ = core.PersistentVolumes().Delete(context.WithoutCancel(ctx), volume, metav1.DeleteOptions{})
	})
	return string(c.UID), string(v.UID)
}

func (s realCluster) makeNode(name, instance string) {
	nodes := s.stack.Client.CoreV1().Nodes()
	_, err := nodes.Create(s.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: "aws:///us-east-1a/" + instance},
	}, metav1.CreateOptions{})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = nodes.Delete(context.Background(), name, metav1.DeleteOptions{}) })
}

func (s realCluster) files(name string) []string { return s.stack.Files(name) }

func (s realCluster) eventually(condition func() bool) {
	s.t.Helper()
	require.Eventually(s.t, condition, 30*time.Second, 20*time.Millisecond)
}

type modelEC2 struct{ modelSide }

func (s modelEC2) api() ec2API { return s.w.EC2 }
func (s modelEC2) makeVolume(tags map[string]string) string {
	return s.w.EC2.MakeVolume(tags, "", dawn).ID
}
func (s modelEC2) makeInstance() string { return s.w.EC2.MakeInstance(false) }

func (s modelEC2) attach(volume, instance string) {
	v := s.w.EC2.Volume(volume)
	v.Stuck = false
	ended := &model.Pod{} // nobody writes
	s.w.Cluster.Kill(ended, "", pod.Failed)
	s.w.EC2.Attach(v, instance, ended)
}

func (s modelEC2) halt(instance string) { s.w.EC2.Halt(instance, "terminated") }

type realEC2 struct {
	t       *testing.T
	account *stacktest.Account
	client  *sdkec2.Client
	ec2     *aws.EC2
}

func (s realEC2) api() ec2API { return s.ec2 }

func (s realEC2) makeVolume(tags map[string]string) string {
	spec := types.TagSpecification{ResourceType: types.ResourceTypeVolume}
	for key, value := range tags {
		spec.Tags = append(spec.Tags, types.Tag{Key: &key, Value: &value})
	}
	out, err := s.client.CreateVolume(s.t.Context(), &sdkec2.CreateVolumeInput{
		AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(7), TagSpecifications: []types.TagSpecification{spec},
	})
	require.NoError(s.t, err)
	return *out.VolumeId
}

func (s realEC2) makeInstance() string {
	out, err := s.client.RunInstances(s.t.Context(), &sdkec2.RunInstancesInput{
		ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1),
	})
	require.NoError(s.t, err)
	return *out.Instances[0].InstanceId
}

func (s realEC2) attach(volume, instance string) {
	_, err := s.client.AttachVolume(s.t.Context(), &sdkec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: awssdk.String("/dev/xvdf")})
	require.NoError(s.t, err)
}

func (s realEC2) halt(instance string) {
	s.account.Alter(instance, map[string]any{"state": "terminated"})
}

func (s realEC2) eventually(condition func() bool) {
	s.t.Helper()
	require.Eventually(s.t, condition, 30*time.Second, 20*time.Millisecond)
}
