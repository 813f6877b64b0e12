package cleanup_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// count returns how often a call was made.
func (o *outside) count(call string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.calls {
		if c == call {
			n++
		}
	}
	return n
}

// claim gives the pod one more claim, before those that it has, and its volume.
func (w *world) claim(name string, v pod.PersistentVolume) {
	w.claims["gpu-dev/"+name] = pod.Claim{Namespace: "gpu-dev", Name: name, UID: "claim-" + name, VolumeName: v.Name}
	if v.VolumeID != "" {
		v.ClaimName, v.ClaimNamespace = name, "gpu-dev"
		w.volumes[v.Name] = v
	}
	p := w.pods[podKey]
	p.Claims = append([]string{name}, p.Claims...)
	w.pods[podKey] = p
}

func TestTheVolumeAfterOneThatIsRetainedAlreadyIsRetainedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.claim("data", pod.PersistentVolume{Name: "pv-data", UID: "pv-2", ReclaimPolicy: pod.RetainPolicy, VolumeID: secondVolume})
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.volumes["pv-alice"].Retained())
	require.Equal(t, "done: pv-alice", w.step(t, postgres.StepRetain))
}

func TestAVolumeObjectOfAPodThatWentFirstIsRetainedIfItIsTheOneThatWasSeen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		then func(*world)
		step string
	}{
		"another by now": {func(w *world) {
			w.volumes["pv-alice"] = pod.PersistentVolume{Name: "pv-alice", UID: "pv-9", ReclaimPolicy: "Delete"}
		}, "not_ours: pv-alice is another by now"},
		"gone":            {func(w *world) { delete(w.volumes, "pv-alice") }, "already_gone: pv-alice"},
		"nobody can tell": {func(w *world) { w.before = failing("get pv") }, "open: throttled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.request(t)
			w.before = failing("retain")
			w.deliver(t.Context(), t)
			delete(w.pods, podKey)
			w.before = nil
			c.then(w)
			w.calls = nil
			w.deliver(t.Context(), t)
			require.Equal(t, c.step, w.step(t, postgres.StepRetain))
			require.False(t, w.made("retain pv pv-alice"))
		})
	}
}

func TestTheServicesOfARowThatNamesItsNamespaceGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set namespace = 'gpu-dev'")
	newer := w.service("a-newer-one", map[string]string{"app": podName}) // listed before the others
	newer.Created = w.now().UTC().Add(time.Hour)
	w.services["gpu-dev/a-newer-one"] = newer
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, []string{"gpu-dev/a-newer-one", "gpu-dev/everybody"}, keys(w.services))
}

// ending is a delivery's context that always says to end soon, and never does.
type ending struct {
	context.Context
	left time.Duration
}

func (e ending) Deadline() (time.Time, bool) { return time.Now().Add(e.left), true }

func TestADeliveryThatEndsSoonLeavesTheDiskToTheNext(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left time.Duration
		kept bool
	}{"a call's time is left": {left: 30 * time.Second, kept: true}, "less": {left: 20 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.request(t)
			report := w.deliver(ending{t.Context(), c.left}, t)
			require.Equal(t, c.kept, w.made("keep "+volume))
			if !c.kept {
				require.Equal(t, followup.StatePostponed, report.State, report.Error)
				require.Contains(t, w.step(t, postgres.StepDisk), "too little of the delivery is left for the disk")
			}
		})
	}
}

func TestAPodIsLookedAtTwiceASecondForAMinuteOrAsLongAsTheDeliveryLasts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ left, waits time.Duration }{
		"a minute":                    {90 * time.Second, time.Minute},
		"but for what is still to do": {40 * time.Second, 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.stubborn = true
			w.groups["group-1"] = 0 // nothing else takes its time
			w.request(t)
			began := w.now()
			w.deliver(ending{t.Context(), c.left}, t)
			require.InDelta(t, c.waits, w.now().Sub(began), float64(time.Second))
			require.InDelta(t, 2*c.waits.Seconds(), w.count("get pod "+podKey), 10)
		})
	}
}

func TestAPodThatIsStoppingIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left  time.Duration // of its grace period
		asked int
	}{"about as soon as ours": {left: 33 * time.Second}, "but later": {left: 10 * time.Minute, asked: 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.stubborn = true
			p := w.pods[podKey]
			p.Deleting = w.now().Add(c.left)
			w.pods[podKey] = p
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.asked, w.count("delete pod "+podKey))
		})
	}
}

func TestAPodThatGoesAsItIsDeletedIsGone(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	for name, then := range map[string]func(*world){
		"gone":     func(w *world) { delete(w.pods, podKey) },
		"replaced": func(w *world) { w.pods[podKey] = w.pod("uid-2") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.before = func(call string) error {
				if call == "delete pod "+podKey {
					then(w)
				}
				return nil
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, "done: ", w.step(t, postgres.StepPod))
		})
	}
}

func TestAPodThatStaysThoughForcedIsNotGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	p := w.pods[podKey]
	p.Deleting = w.now().Add(-time.Minute)
	w.pods[podKey] = p
	w.instances[host] = disk.Instance{ID: host, State: disk.InstanceStopped}
	w.after = func(call string) error {
		if call == "force pod "+podKey {
			w.mu.Lock()
			w.pods[podKey] = p
			w.mu.Unlock()
		}
		return nil
	}
	w.request(t)
	require.Equal(t, followup.StatePostponed, w.deliver(t.Context(), t).State)
	require.Equal(t, 1, w.count("force pod "+podKey))
	require.False(t, w.made("keep "+volume))

	w.after = nil
	w.deliver(t.Context(), t)
	require.Equal(t, "forced: instance "+host+" is stopped", w.step(t, postgres.StepPod))
}

func TestAPodWithoutAWordOnItsContainersMayHaveRunOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	p := w.pods[podKey]
	p.Containers = nil
	w.pods[podKey] = p
	told := false
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		told = c.ContainersTerminated
		return followup.Done("snapshot_pending"), nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume))
	require.False(t, told)
	require.Equal(t, "done: ", w.step(t, postgres.StepPod))
}

func TestOnlyAPodThatCanHaveNoDiskIsForcedForItsSlownessAlone(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	for name, c := range map[string]struct {
		diskName       string
		claims, mounts []string
		forced         bool
	}{
		"no disk":            {forced: true},
		"a disk's name":      {diskName: "default"},
		"a claim":            {claims: []string{"data"}},
		"a volume":           {mounts: []string{secondVolume}},
		"a claim, a volume":  {claims: []string{"data"}, mounts: []string{secondVolume}},
		"all that there are": {diskName: "default", claims: []string{"data"}, mounts: []string{secondVolume}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.exec(t, "delete from disks")
			w.exec(t, "update reservations set ebs_volume_id = null, disk_name = nullif($1, '')", c.diskName)
			p := w.pods[podKey]
			p.Claims, p.HomeClaim, p.VolumeIDs, p.Deleting = c.claims, "", c.mounts, w.now().Add(-3*time.Minute)
			w.pods[podKey] = p
			w.stubborn = true
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.forced, w.made("force pod "+podKey))
			if c.forced {
				require.Equal(t, "forced: it has no disk and did not stop in 2m30s", w.step(t, postgres.StepPod))
			}
		})
	}
}

func TestARowThatNamesNothingThatCanBeAPodIsNotLookedFor(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{"its name": "pod_name = 'No Pod'", "its namespace": "namespace = 'No Namespace'"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.exec(t, "update reservations set "+change)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Contains(t, w.step(t, postgres.StepIdentify), "the row names nothing that can be a pod")
			require.Equal(t, "nothing_to_do: the row names nothing that can be a pod", w.step(t, postgres.StepServices))
			require.False(t, slices.ContainsFunc(w.calls, func(call string) bool { return len(call) > 7 && call[:7] == "get pod" }))
		})
	}
}
