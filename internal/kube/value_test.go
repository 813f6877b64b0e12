package kube

import (
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/pod"
)

const wholePod = `{
  "metadata": {"namespace": "gpu-dev", "name": "gpu-dev-0a1b2c3d", "uid": "u1", "labels": {"user-id": "alice", "app": "gpu"},
    "creationTimestamp": "2026-03-01T10:00:00Z", "deletionTimestamp": "2026-03-01T12:00:30Z"},
  "spec": {"nodeName": "n1",
    "initContainers": [{"name": "setup"}, {"name": "sshd", "restartPolicy": "Always"}],
    "containers": [{"name": "helper", "volumeMounts": [{"name": "old", "mountPath": "/home/dev"}]},
      {"name": "gpu-dev", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "home", "mountPath": "/home/dev"}]}],
    "volumes": [
      {"name": "home", "persistentVolumeClaim": {"claimName": "disk-alice"}},
      {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
      {"name": "old", "awsElasticBlockStore": {"volumeID": "aws://us-east-1a/vol-0000000000000000a"}},
      {"name": "odd", "awsElasticBlockStore": {"volumeID": "data"}},
      {"name": "inline", "csi": {"driver": "ebs.csi.aws.com", "volumeAttributes": {"b": "vol-0000000000000000c", "a": "vol-0000000000000000b", "type": "gp3"}}},
      {"name": "tmp", "emptyDir": {}}]},
  "status": {"phase": "Running", "reason": "NodeLost", "message": "lost",
    "conditions": [{"type": "Ready", "status": "False"}, {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "taint"}],
    "initContainerStatuses": [
      {"name": "setup", "state": {"terminated": {"reason": "Completed", "exitCode": 0, "finishedAt": "2026-03-01T10:00:05Z", "containerID": "containerd://s"}}},
      {"name": "sshd", "containerID": "containerd://d", "state": {"running": {}}}],
    "containerStatuses": [{"name": "gpu-dev", "containerID": "containerd://g2", "restartCount": 2, "state": {"waiting": {}},
      "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "message": "m", "finishedAt": "2026-03-01T11:00:00Z", "containerID": "containerd://g1"}}}],
    "ephemeralContainerStatuses": [{"name": "debug", "state": {}}]}}`

func TestPodValueKeepsWhatDecisionsNeed(t *testing.T) {
	t.Parallel()
	var p corev1.Pod
	require.NoError(t, json.Unmarshal([]byte(wholePod), &p))
	at := func(h, m, s int) time.Time { return time.Date(2026, 3, 1, h, m, s, 0, time.UTC) }
	require.Equal(t, pod.Pod{
		Namespace: "gpu-dev", Name: "gpu-dev-0a1b2c3d", UID: "u1", UserID: "alice", Labels: map[string]string{"user-id": "alice", "app": "gpu"},
		Created: at(10, 0, 0), Deleting: at(12, 0, 30), Phase: pod.Running, Reason: "NodeLost", Message: "lost", Node: "n1",
		Disruption: &pod.Disruption{Reason: "DeletionByTaintManager", Message: "taint"},
		Containers: []pod.Container{
			{Name: "setup", Kind: pod.Init, Current: &pod.Termination{ContainerID: "containerd://s", Reason: "Completed", FinishedAt: at(10, 0, 5)}},
			{Name: "sshd", Kind: pod.Sidecar, ID: "containerd://d", Running: true},
			{Name: "gpu-dev", Kind: pod.App, ID: "containerd://g2", Restarts: 2, Waiting: "Waiting",
				Last: &pod.Termination{ContainerID: "containerd://g1", Reason: "OOMKilled", ExitCode: 137, FinishedAt: at(11, 0, 0), Message: "m"}},
			{Name: "debug", Kind: pod.Ephemeral},
		},
		Claims:    []string{"disk-alice", "gpu-dev-0a1b2c3d-scratch"},
		VolumeIDs: []string{"vol-0000000000000000a", "vol-0000000000000000b", "vol-0000000000000000c"},
		HomeClaim: "disk-alice",
	}, podValue(&p))
}

func TestAConditionThatIsNotTrueIsNoDisruption(t *testing.T) {
	t.Parallel()
	p := corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse}}}}
	require.Nil(t, podValue(&p).Disruption)
}

func TestMissingTimesStayZero(t *testing.T) {
	t.Parallel()
	v := podValue(&corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}}})
	require.True(t, v.Created.IsZero())
	require.True(t, v.Deleting.IsZero())
	require.True(t, v.Containers[0].Current.FinishedAt.IsZero())
}

// FuzzPodStatus turns any pod that JSON can hold into decisions.
func FuzzPodStatus(f *testing.F) {
	f.Add([]byte(wholePod))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"status":{"phase":"Failed","reason":"Evicted","message":"\u0000\u001b[31m"}}`))
	f.Add([]byte(`{"status":{"phase":"Running","containerStatuses":[{"name":"gpu-dev","restartCount":-5,"state":{"terminated":{"reason":"OOMKilled","exitCode":-1}}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p corev1.Pod
		if json.Unmarshal(data, &p) != nil {
			return
		}
		v := podValue(&p)
		dead, reason := pod.Dead(v)
		require.True(t, utf8.ValidString(reason))
		require.NotContains(t, reason, "\x00")
		require.Equal(t, dead, reason != "", "the dead have a reason")
		if dead {
			require.Contains(t, []pod.Phase{pod.Failed, pod.Succeeded, pod.Running}, v.Phase)
		}
		seen := map[string]bool{}
		for _, o := range pod.OOMs(v) {
			require.False(t, seen[o.Key])
			seen[o.Key] = true
		}
		verdict, _ := pod.BelongsTo(pod.Object{Namespace: v.Namespace, PodName: v.Name, UID: v.UID, Created: v.Created}, pod.Ended{PodName: v.Name, Namespace: v.Namespace})
		require.NotEqual(t, pod.Belongs, verdict, "without dates nothing belongs")
	})
}
