package pod_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/pod"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mainRunning() pod.Container {
	return pod.Container{Name: "gpu-dev", Kind: pod.App, ID: "containerd://a", Running: true}
}

func mainEnded(reason string, code int) pod.Container {
	return pod.Container{Name: "gpu-dev", Kind: pod.App, ID: "containerd://a",
		Current: &pod.Termination{ContainerID: "containerd://a", Reason: reason, ExitCode: code, FinishedAt: noon}}
}

func TestDead(t *testing.T) {
	t.Parallel()
	disruption := &pod.Disruption{Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting"}
	for name, c := range map[string]struct {
		pod    pod.Pod
		dead   bool
		reason string
	}{
		"nothing reported": {pod: pod.Pod{}},
		"running":          {pod: pod.Pod{Phase: pod.Running, Containers: []pod.Container{mainRunning()}}},
		"pending":          {pod: pod.Pod{Phase: pod.Pending}},
		"pending, preempted before it started": {pod: pod.Pod{Phase: pod.Pending, Disruption: disruption,
			Containers: []pod.Container{{Name: "gpu-dev", Kind: pod.App, Waiting: "ContainerCreating"}}}},
		"node lost": {pod: pod.Pod{Phase: pod.Unknown, Reason: "NodeLost", Disruption: disruption,
			Containers: []pod.Container{mainEnded("Error", 1)}}},
		"a phase of some later Kubernetes": {pod: pod.Pod{Phase: "Paused", Disruption: disruption, Containers: []pod.Container{mainEnded("Error", 1)}}},
		"evicted": {pod: pod.Pod{Phase: pod.Failed, Reason: "Evicted", Message: "The node was low on resource: memory"},
			dead: true, reason: "Evicted: The node was low on resource: memory"},
		"failed, the kubelet says no more": {pod: pod.Pod{Phase: pod.Failed, Containers: []pod.Container{mainEnded("OOMKilled", 137)}},
			dead: true, reason: "OOMKilled: container gpu-dev exited with code 137"},
		"failed in an init container": {pod: pod.Pod{Phase: pod.Failed, Containers: []pod.Container{
			{Name: "mount", Kind: pod.Init, Current: &pod.Termination{Reason: "Completed"}},
			{Name: "setup", Kind: pod.Init, Current: &pod.Termination{Reason: "Error", ExitCode: 3}}, {Name: "gpu-dev", Kind: pod.App, Waiting: "PodInitializing"}}},
			dead: true, reason: "Error: container setup exited with code 3"},
		"failed, nothing known":          {pod: pod.Pod{Phase: pod.Failed}, dead: true, reason: "Failed"},
		"failed, disrupted":              {pod: pod.Pod{Phase: pod.Failed, Disruption: disruption}, dead: true, reason: "EvictionByEvictionAPI: Eviction API: evicting"},
		"disrupted, nobody says why":     {pod: pod.Pod{Phase: pod.Running, Reason: "\x00", Disruption: &pod.Disruption{}, Containers: []pod.Container{mainEnded("", 1)}}, dead: true, reason: "Disrupted"},
		"failed, only the code is known": {pod: pod.Pod{Phase: pod.Failed, Containers: []pod.Container{mainEnded("", 2)}}, dead: true, reason: "container gpu-dev exited with code 2"},
		"succeeded":                      {pod: pod.Pod{Phase: pod.Succeeded, Containers: []pod.Container{mainEnded("Completed", 0)}}, dead: true, reason: "Completed: container gpu-dev exited with code 0"},
		"OOM-killed, will be restarted":  {pod: pod.Pod{Phase: pod.Running, Containers: []pod.Container{mainEnded("OOMKilled", 137)}}},
		"restarted after an OOM kill": {pod: pod.Pod{Phase: pod.Running, Containers: []pod.Container{
			{Name: "gpu-dev", Kind: pod.App, Running: true, Restarts: 1, Last: &pod.Termination{Reason: "OOMKilled", ExitCode: 137}}}}},
		"crash loop":              {pod: pod.Pod{Phase: pod.Running, Containers: []pod.Container{{Name: "gpu-dev", Kind: pod.App, Waiting: "CrashLoopBackOff"}}}},
		"disrupted, in its grace": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{mainRunning()}}},
		"disrupted, running whatever else is said of it": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{
			{Name: "gpu-dev", Kind: pod.App, Running: true, Current: &pod.Termination{Reason: "Error", ExitCode: 1}, Waiting: "CrashLoopBackOff"}}}},
		"disrupted, main container ended": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{mainEnded("Error", 143)}},
			dead: true, reason: "EvictionByEvictionAPI: Eviction API: evicting"},
		"disrupted, main container waits": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{{Name: "gpu-dev", Kind: pod.App, Waiting: "CrashLoopBackOff"}}},
			dead: true, reason: "EvictionByEvictionAPI: Eviction API: evicting"},
		"disrupted, main container not reported":     {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{{Name: "sshd", Kind: pod.App, Waiting: "Error"}}}},
		"disrupted, main container's state is empty": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption, Containers: []pod.Container{{Name: "gpu-dev", Kind: pod.App}}}},
		"disrupted, only an init container of that name ended": {pod: pod.Pod{Phase: pod.Running, Disruption: disruption,
			Containers: []pod.Container{{Name: "gpu-dev", Kind: pod.Init, Current: &pod.Termination{Reason: "Completed"}}}}},
		"being deleted": {pod: pod.Pod{Phase: pod.Running, Deleting: noon, Containers: []pod.Container{mainEnded("Error", 137)}}},
		"the user's words are made one printable line": {pod: pod.Pod{Phase: pod.Failed, Reason: "Evicted", Message: "a\x00b\n\x1b[31mred\xff " + strings.Repeat("é", 600)},
			dead: true, reason: "Evicted: a b [31mred\uFFFD " + strings.Repeat("é", 500-len("Evicted: a b [31mredX ")-1) + "…"},
		"the longest reason is left as it is": {pod: pod.Pod{Phase: pod.Failed, Reason: strings.Repeat("é", 500)}, dead: true, reason: strings.Repeat("é", 500)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dead, reason := pod.Dead(c.pod)
			require.Equal(t, c.dead, dead)
			require.Equal(t, c.reason, reason)
		})
	}
}

// Generators are made anew for each use: rapid's own are not safe to share between parallel tests.

func drawTime(t *rapid.T, label string) time.Time {
	if rapid.Bool().Draw(t, label+" is zero") {
		return time.Time{}
	}
	return noon.Add(time.Duration(rapid.Int64Range(0, 1e6).Draw(t, label)) * time.Second)
}

func drawTermination(t *rapid.T, label string) *pod.Termination {
	if rapid.Bool().Draw(t, label+" is none") {
		return nil
	}
	return &pod.Termination{
		ContainerID: rapid.SampledFrom([]string{"", "containerd://a", "containerd://b"}).Draw(t, "id"),
		Reason:      rapid.SampledFrom([]string{"", "OOMKilled", "Error", "Completed"}).Draw(t, "reason"),
		ExitCode:    rapid.IntRange(0, 255).Draw(t, "code"),
		FinishedAt:  drawTime(t, "finished"),
	}
}

func drawContainer(t *rapid.T) pod.Container {
	return pod.Container{
		Name:     rapid.SampledFrom([]string{"gpu-dev", "sshd", ""}).Draw(t, "name"),
		Kind:     rapid.SampledFrom([]pod.Kind{pod.App, pod.Init, pod.Sidecar, pod.Ephemeral, ""}).Draw(t, "kind"),
		ID:       rapid.SampledFrom([]string{"", "containerd://a"}).Draw(t, "id"),
		Restarts: rapid.IntRange(0, 3).Draw(t, "restarts"),
		Running:  rapid.Bool().Draw(t, "running"),
		Waiting:  rapid.SampledFrom([]string{"", "CrashLoopBackOff"}).Draw(t, "waiting"),
		Current:  drawTermination(t, "current"),
		Last:     drawTermination(t, "last"),
	}
}

func drawPod(t *rapid.T) pod.Pod {
	p := pod.Pod{
		Namespace:  "gpu-dev",
		Name:       "gpu-dev-0",
		UID:        rapid.SampledFrom([]string{"", "u1"}).Draw(t, "uid"),
		Phase:      rapid.SampledFrom([]pod.Phase{"", pod.Pending, pod.Running, pod.Succeeded, pod.Failed, pod.Unknown}).Draw(t, "phase"),
		Reason:     rapid.OneOf(rapid.Just(""), rapid.String()).Draw(t, "reason"),
		Message:    rapid.String().Draw(t, "message"),
		Deleting:   drawTime(t, "deleting"),
		Containers: rapid.SliceOfN(rapid.Custom(drawContainer), 0, 4).Draw(t, "containers"),
	}
	if rapid.Bool().Draw(t, "disrupted") {
		p.Disruption = &pod.Disruption{Reason: rapid.OneOf(rapid.Just("\x00"), rapid.String()).Draw(t, "why"), Message: rapid.String().Draw(t, "more")}
	}
	return p
}

func checkDeath(t *rapid.T) {
	p := drawPod(t)
	dead, reason := pod.Dead(p)
	require.True(t, utf8.ValidString(reason))
	require.NotContains(t, reason, "\n")
	require.LessOrEqual(t, len([]rune(reason)), 500)
	if !dead {
		require.Empty(t, reason)
		return
	}
	require.NotContains(t, []pod.Phase{"", pod.Pending, pod.Unknown}, p.Phase, "what is not known is not dead")
	require.NotEmpty(t, reason)
	if main, ok := p.Main(); p.Phase == pod.Running {
		require.NotNil(t, p.Disruption)
		require.True(t, ok && !main.Running, "a pod whose main container runs is not dead")
	}
}

func TestDeathIsKnownNotGuessed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, checkDeath)
}

func FuzzDead(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkDeath)) }
