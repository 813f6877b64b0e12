package pod_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestOOMs(t *testing.T) {
	t.Parallel()
	killed := func(id string) *pod.Termination {
		return &pod.Termination{ContainerID: id, Reason: "OOMKilled", ExitCode: 137, FinishedAt: noon}
	}
	for name, c := range map[string]struct {
		containers []pod.Container
		keys       []string
	}{
		"none": {containers: []pod.Container{mainRunning(), mainEnded("Error", 137)}},
		"in the current state": {containers: []pod.Container{{Name: "gpu-dev", Current: killed("containerd://a")}},
			keys: []string{"containerd://a@2026-03-01T12:00:00Z"}},
		"in the last state": {containers: []pod.Container{{Name: "gpu-dev", ID: "containerd://b", Running: true, Restarts: 1, Last: killed("containerd://a")}},
			keys: []string{"containerd://a@2026-03-01T12:00:00Z"}},
		"in both, the earlier first": {containers: []pod.Container{{Name: "gpu-dev", Restarts: 1, Current: killed("containerd://b"), Last: killed("containerd://a")}},
			keys: []string{"containerd://a@2026-03-01T12:00:00Z", "containerd://b@2026-03-01T12:00:00Z"}},
		"the same kill shown twice": {containers: []pod.Container{{Name: "gpu-dev", Restarts: 1, Current: killed("containerd://a"), Last: killed("containerd://a")}},
			keys: []string{"containerd://a@2026-03-01T12:00:00Z"}},
		"in any container": {containers: []pod.Container{{Name: "sidecar", Kind: pod.Sidecar, Last: killed("s")}, {Name: "setup", Kind: pod.Init, Current: killed("i")}},
			keys: []string{"s@2026-03-01T12:00:00Z", "i@2026-03-01T12:00:00Z"}},
		"without an id": {containers: []pod.Container{{Name: "gpu-dev", ID: "containerd://b", Last: killed("")}},
			keys: []string{"u1/gpu-dev@2026-03-01T12:00:00Z"}},
		"without a time": {containers: []pod.Container{{Name: "gpu-dev", Restarts: 2, Current: &pod.Termination{ContainerID: "c", Reason: "OOMKilled"}}},
			keys: []string{"c#2"}},
		"without both": {containers: []pod.Container{{Name: "gpu-dev", Restarts: 2,
			Current: &pod.Termination{Reason: "OOMKilled"}, Last: &pod.Termination{Reason: "OOMKilled"}}},
			keys: []string{"u1/gpu-dev#1", "u1/gpu-dev#2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var keys []string
			for _, o := range pod.OOMs(pod.Pod{UID: "u1", Containers: c.containers}) {
				keys = append(keys, o.Key)
			}
			require.Equal(t, c.keys, keys)
		})
	}
}

func TestOOMTellsContainerAndTime(t *testing.T) {
	t.Parallel()
	found := pod.OOMs(pod.Pod{Containers: []pod.Container{mainEnded("OOMKilled", 137)}})
	require.Equal(t, []pod.OOM{{Key: "containerd://a@2026-03-01T12:00:00Z", ContainerID: "containerd://a", Container: "gpu-dev", Kind: pod.App, At: noon}}, found)
}

func checkOOMs(t *rapid.T) {
	p := drawPod(t)
	seen := map[string]bool{}
	for _, o := range pod.OOMs(p) {
		require.False(t, seen[o.Key], "a kill is reported once")
		seen[o.Key] = true
	}
}

func TestEachOOMIsReportedOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, checkOOMs)
}

func FuzzOOMs(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkOOMs)) }

func TestAnOOMKeepsItsKeyAcrossTheRestart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := drawContainer(t)
		c.Current = &pod.Termination{ContainerID: rapid.SampledFrom([]string{"", "x"}).Draw(t, "id"), Reason: "OOMKilled", FinishedAt: drawTime(t, "at")}
		c.Last = nil
		before := pod.OOMs(pod.Pod{UID: "u", Containers: []pod.Container{c}})
		c.Last, c.Current, c.Running, c.ID = c.Current, nil, true, "containerd://next"
		c.Restarts++
		after := pod.OOMs(pod.Pod{UID: "u", Containers: []pod.Container{c}})
		require.Equal(t, before, after)
	})
}
