package cleanup_test

import (
	"context"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// What one delivery waits: for a pod that stops, and for one that does not.
const (
	ample = 45 * time.Second
	brief = time.Second
)

func (r *reality) podThere(t *testing.T) *corev1.Pod {
	t.Helper()
	p, err := r.Client.CoreV1().Pods(r.Namespace).Get(t.Context(), r.podName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return p
}

func TestEverythingIsTakenDownForReal(t *testing.T) {
	t.Parallel()
	r := newReality(t, ample)
	report := r.deliver(t)
	require.Equal(t, followup.StateDone, report.State, "%s %s", report.Error, r.text(t, "select json_agg(s)::text from expiry.cleanup_steps s"))
	require.Equal(t, postgres.OutcomeReleased, r.text(t, "select outcome from expiry.cleanups"))

	require.Nil(t, r.podThere(t))
	services, err := r.Client.CoreV1().Services(r.Namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, services.Items)
	pv, err := r.Client.CoreV1().PersistentVolumes().Get(t.Context(), r.pv, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy)
	require.Equal(t, []string{"A happy-bear." + zone}, r.records(t))
	rules := elb.NewFromConfig(r.aws.Config)
	groups, err := rules.DescribeTargetGroups(t.Context(), &elb.DescribeTargetGroupsInput{})
	require.NoError(t, err)
	require.Empty(t, groups.TargetGroups)
	require.Equal(t, "0", r.text(t, "select ((select count(*) from domain_mappings) + (select count(*) from alb_target_groups))::text"))

	listing := r.object(t, "alice/work/"+r.id+".txt")
	require.Contains(t, listing, "\t/home/dev\n")
	require.Contains(t, listing, "work\n  notes.txt\n")
	require.Contains(t, listing, "RESERVATION_ENDED.txt", "the last word was written before")
	require.NotContains(t, listing, "WARN_")
	require.Equal(t, r.volume+" work", r.text(t, "select detail from expiry.cleanup_steps where step = 'disk'"), "both found")
	require.Equal(t, r.instance, r.text(t, "select instance_id from expiry.cleanups"))
	require.Equal(t, "true", r.text(t, "select (pod_gone_at is not null)::text from expiry.cleanups"))
}

func TestAPodThatTakesItsTimeIsWaitedForOverDeliveries(t *testing.T) {
	t.Parallel()
	r := newReality(t, brief)
	p := r.podThere(t)
	p.Annotations = map[string]string{stacktest.StopAfter: "3s"} // longer than one delivery waits here
	_, err := r.Client.CoreV1().Pods(r.Namespace).Update(t.Context(), p, metav1.UpdateOptions{})
	require.NoError(t, err)

	require.Equal(t, followup.StatePostponed, r.deliver(t).State)
	require.NotNil(t, r.podThere(t))
	require.Empty(t, len(r.records(t))-1, "nothing else waits for it")
	require.Eventually(t, func() bool { return r.deliver(t).State == followup.StateDone }, 30*time.Second, time.Millisecond)
}

func TestTheKubeletsWordOnTerminationIsKeptForReal(t *testing.T) {
	t.Parallel()
	r := newReality(t, brief)
	p := r.podThere(t)
	p.Annotations = map[string]string{stacktest.StopAfter: "never"}
	_, err := r.Client.CoreV1().Pods(r.Namespace).Update(t.Context(), p, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, followup.StatePostponed, r.deliver(t).State)
	const terminated = "select (containers_terminated_at is not null)::text from expiry.cleanups"
	require.Equal(t, "false", r.text(t, terminated))
	// As a kubelet does whose containers have exited and whose volumes are not unmounted yet.
	r.SetStatus(r.podName, func(s *corev1.PodStatus) {
		s.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137}}
	})
	require.Equal(t, followup.StatePostponed, r.deliver(t).State)
	require.Equal(t, "true", r.text(t, terminated))
}

func TestAPodOnADeadNodeIsForcedOnceItsInstanceHasStopped(t *testing.T) {
	t.Parallel()
	r := newReality(t, brief)
	r.SetNodeReady(r.node, corev1.ConditionUnknown)
	require.Equal(t, followup.StatePostponed, r.deliver(t).State)
	now := metav1.Now()
	require.NotNil(t, r.podThere(t).DeletionTimestamp)
	require.Greater(t, r.podThere(t).DeletionTimestamp.Sub(now.Time), 10*time.Second, "asked for with its grace period")

	_, err := ec2.NewFromConfig(r.aws.Config).StopInstances(t.Context(), &ec2.StopInstancesInput{InstanceIds: []string{r.instance}})
	require.NoError(t, err)
	// The grace period passes by the API server's clock, which nobody can move: a shorter one may be asked for.
	second := int64(1)
	require.NoError(t, r.Client.CoreV1().Pods(r.Namespace).Delete(t.Context(), r.podName, metav1.DeleteOptions{GracePeriodSeconds: &second}))
	require.Eventually(t, func() bool { return r.deliver(t).State == followup.StateDone }, 60*time.Second, time.Millisecond)
	require.Equal(t, "forced: instance "+r.instance+" is stopped", r.text(t, "select outcome || ': ' || detail from expiry.cleanup_steps where step = 'pod'"))
	require.Equal(t, "false", r.text(t, "select (containers_terminated_at is not null)::text from expiry.cleanups"), "no kubelet said so")
}

func TestANewerReservationsPodAndDomainAreLeftAloneForReal(t *testing.T) {
	t.Parallel()
	r := newReality(t, ample)
	r.exec(t, "update reservations set reservation_ended = now() - interval '10 minutes'") // so that what is there was made later
	r.exec(t, "insert into reservations (reservation_id, user_id, status, pod_name) values ('newer', 'alice', 'active', $1)", r.podName)
	r.exec(t, "update domain_mappings set reservation_id = 'newer'")

	require.Equal(t, followup.StateDone, r.deliver(t).State)
	p := r.podThere(t)
	require.NotNil(t, p)
	require.Nil(t, p.DeletionTimestamp)
	require.Len(t, r.records(t), 3)
	services, err := r.Client.CoreV1().Services(r.Namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, services.Items, 1)
	require.Equal(t, []string{"WARN_EXPIRES_IN_5MIN.txt", "work"}, r.Files(r.podName))
}

func TestTroubleInAWSDelaysNoPod(t *testing.T) {
	t.Parallel()
	r := newReality(t, ample)
	r.aws.Fail(
		stacktest.Fault{Action: "route53:.*", Code: "ThrottlingException"},
		stacktest.Fault{Action: "elasticloadbalancing:.*", Code: "ServiceUnavailable"},
		stacktest.Fault{Action: "s3:.*", Code: "SlowDown"},
	)
	report := r.deliver(t)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "dns: ")
	require.Contains(t, report.Error, "load_balancer: ")
	require.Nil(t, r.podThere(t))
	require.Equal(t, "released", r.text(t, "select outcome from expiry.cleanup_steps where step = 'disk'"))
	require.Equal(t, "missing", r.text(t, "select outcome from expiry.cleanup_steps where step = 'listing'"))
	require.NotEmpty(t, r.text(t, "select disk_size from expiry.cleanups"), "what du said is kept")

	r.aws.Fail()
	require.Equal(t, followup.StateDone, r.deliver(t).State)
	require.Len(t, r.records(t), 1)
	require.Equal(t, "1 1", r.text(t, `select (select attempts from expiry.cleanup_steps where step = 'dns') || ' ' ||
		(select count(*) from expiry.facts where type like '%cleanedUp%')`))
}

func TestADeliveryKilledForRealGoesOn(t *testing.T) {
	t.Parallel()
	r := newReality(t, ample)
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	done := make(chan error, 1)
	go func() {
		_, err := r.runner.Run(ctx, postgres.Cleanup, r.id)
		done <- err
	}()
	require.Eventually(t, func() bool {
		return r.text(t, "select count(*)::text from expiry.cleanup_steps where step = 'pod'") == "1"
	}, 20*time.Second, time.Millisecond)
	kill()
	require.NoError(t, <-done)
	require.Equal(t, followup.StateDone, r.deliver(t).State)
	require.Nil(t, r.podThere(t))
	require.Equal(t, postgres.OutcomeReleased, r.text(t, "select outcome from expiry.cleanups"))
}

func TestOfTwoClaimsTheOneMountedAtHomeIsTheDiskForReal(t *testing.T) {
	t.Parallel()
	r := newReality(t, ample)
	other, err := ec2.NewFromConfig(r.aws.Config).CreateVolume(t.Context(), &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10)})
	require.NoError(t, err)
	r.claim(t, "imagenet", "data-"+r.pv, *other.VolumeId)
	zero := int64(0)
	require.NoError(t, r.Client.CoreV1().Pods(r.Namespace).Delete(t.Context(), r.podName, metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	require.Eventually(t, func() bool { return r.podThere(t) == nil }, 30*time.Second, 20*time.Millisecond)
	r.pod(t, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "imagenet", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "imagenet"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "imagenet", MountPath: "/data"}}
	})
	r.exec(t, "update reservations set reservation_ended = now()") // after this pod was made
	report := r.deliver(t)
	require.Equal(t, followup.StateDone, report.State, "%s", report.Error)
	require.Equal(t, r.volume+" work", r.text(t, "select detail from expiry.cleanup_steps where step = 'disk'"))
	require.Equal(t, r.pv, r.text(t, "select pv_name from expiry.cleanups"))
}
