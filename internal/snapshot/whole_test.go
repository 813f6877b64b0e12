package snapshot_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
)

// TestTheWholeWayFromAPodToASnapshot runs the cleanup that package cleanup makes, with the keeper as its last step, on a
// pod that writes to its disk through a claim whose volume object would take the volume along.
func TestTheWholeWayFromAPodToASnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, core := t.Context(), w.cluster.Client.CoreV1()
	_, err := core.PersistentVolumes().Patch(ctx, w.pv, types.MergePatchType,
		[]byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	podName := "gpu-dev-" + w.id[:8]
	node := w.cluster.CreateNode(func(n *corev1.Node) { n.Spec.ProviderID = "aws:///us-east-1a/" + w.instance }).Name
	w.cluster.CreatePod(podName, func(p *corev1.Pod) {
		p.Spec.NodeName = node
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: w.claimed}}}}
	})
	_, err = w.cluster.Exec(podName, nil, "sh", "-c", "echo hello > /home/dev/notes.txt")
	require.NoError(t, err)
	bucket := "contents-" + w.account.ID
	_, err = s3.NewFromConfig(w.account.Config, func(o *s3.Options) { o.UsePathStyle = true }).
		CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	require.NoError(t, err)

	// Nothing is known but the pod: the row names neither volume nor disk.
	w.exec(t, "delete from expiry.cleanups")
	w.exec(t, "delete from expiry.follow_ups")
	w.exec(t, "update reservations set ebs_volume_id = null, disk_name = null, namespace = $2, reservation_ended = now() where reservation_id = $1", w.id, w.cluster.Namespace)
	asked, err := w.db.EnsureCleanup(ctx, w.id)
	require.NoError(t, err)
	require.True(t, asked)

	w.whole(aws.NewS3(w.account.Config, bucket), time.Hour)
	report := w.deliver(t, postgres.Cleanup)
	require.Equal(t, followup.StatePostponed, report.State, "the driver has its time: %+v", report)
	require.Contains(t, read[string](t, w, "select detail from expiry.cleanup_steps where step = 'disk'"), "the driver has until")
	w.age(t, time.Hour)
	require.Equal(t, "snapshotting", w.deliver(t, postgres.Cleanup).Outcome)
	w.settle(t, 3)

	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	got := w.disk(t)
	require.Contains(t, got.Content, "s3://"+bucket+"/alice/work/")
	require.NotEmpty(t, got.Size)
	got.Content, got.Size = released.Content, released.Size
	require.Equal(t, released, got)
	require.False(t, w.exists(t))
	require.Len(t, w.made(t), 1)
	_, err = core.Pods(w.cluster.Namespace).Get(ctx, podName, metav1.GetOptions{})
	require.True(t, errors.IsNotFound(err))
	require.False(t, w.objects(t))
}

// whole has the cleanup that package cleanup makes run, with the keeper as its last step.
func (w *world) whole(bucket cleanup.Bucket, driverGrace time.Duration) {
	cluster := kube.New(func(context.Context) (*rest.Config, error) { return w.cluster.Config, nil }, kube.Options{})
	quiet := slog.New(slog.DiscardHandler)
	parts := snapshot.World{Store: w.db, EC2: cloudSide{w.outside}, Cluster: kubeSide{w.outside}, Identity: w.sts}
	options := snapshot.Options{Now: w.clock.now, Sleep: w.clock.sleep, Log: quiet, Interval: 5 * time.Second, Lag: 1, DriverGrace: driverGrace}
	w.runner = followup.NewRunner(w.db, map[postgres.FollowUpKind]followup.Action{
		postgres.Cleanup: cleanup.New(cleanup.World{Store: w.db, Cluster: cluster, EC2: aws.NewEC2(w.account.Config), Identity: parts.Identity,
			Router: aws.NewLoadBalancer(w.account.Config), Bucket: bucket, Disk: snapshot.NewKeeper(parts, options)}, cleanup.Options{Lag: 1, Log: quiet}),
		postgres.SnapshotSync: snapshot.NewSync(parts, options),
	}, followup.Options{Log: quiet})
}
