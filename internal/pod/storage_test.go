package pod_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestTheHomeIsOnTheVolumeMountedThereOrDeepestAboveIt(t *testing.T) {
	t.Parallel()
	at := func(volume, path string) pod.Mount { return pod.Mount{Volume: volume, Path: path} }
	for name, c := range map[string]struct {
		mounts []pod.Mount
		want   string
	}{
		"none":                 {},
		"elsewhere":            {mounts: []pod.Mount{at("data", "/data")}},
		"there":                {mounts: []pod.Mount{at("data", "/data"), at("home", "/home/dev")}, want: "home"},
		"the other way round":  {mounts: []pod.Mount{at("home", "/home/dev"), at("data", "/data")}, want: "home"},
		"with a slash":         {mounts: []pod.Mount{at("home", "/home/dev/")}, want: "home"},
		"without one":          {mounts: []pod.Mount{at("home", "home/dev")}, want: "home"},
		"above":                {mounts: []pod.Mount{at("homes", "/home"), at("data", "/data")}, want: "homes"},
		"there and above":      {mounts: []pod.Mount{at("home", "/home/dev"), at("homes", "/home")}, want: "home"},
		"above and there":      {mounts: []pod.Mount{at("homes", "/home"), at("home", "/home/dev")}, want: "home"},
		"beneath":              {mounts: []pod.Mount{at("work", "/home/dev/work")}},
		"a neighbour's":        {mounts: []pod.Mount{at("other", "/home/dev2"), at("more", "/home/de")}},
		"twice the same":       {mounts: []pod.Mount{at("home", "/home/dev"), at("home", "/home/dev/")}, want: "home"},
		"two at the same path": {mounts: []pod.Mount{at("a", "/home/dev"), at("b", "/home/dev/")}},
	} {
		require.Equal(t, c.want, pod.HomeMount(c.mounts), name)
	}
}

func TestTheHomeVolumeIsNotSimplyTheFirst(t *testing.T) {
	t.Parallel()
	data, home := pod.PersistentVolume{ClaimName: "imagenet", VolumeID: "vol-d"}, pod.PersistentVolume{ClaimName: "home", VolumeID: "vol-h"}
	for name, c := range map[string]struct {
		p         pod.Pod
		bound     []pod.PersistentVolume
		id        string
		undecided []string
	}{
		"by its claim":           {p: pod.Pod{HomeClaim: "home"}, bound: []pod.PersistentVolume{data, home}, id: "vol-h"},
		"in whatever order":      {p: pod.Pod{HomeClaim: "home"}, bound: []pod.PersistentVolume{home, data}, id: "vol-h"},
		"that the pod names":     {p: pod.Pod{HomeVolumeID: "vol-i", VolumeIDs: []string{"vol-x", "vol-i"}}, bound: []pod.PersistentVolume{data}, id: "vol-i"},
		"whose claim is unbound": {p: pod.Pod{HomeClaim: "home"}, bound: []pod.PersistentVolume{data}},
		"untold":                 {p: pod.Pod{VolumeIDs: []string{"vol-x"}}, bound: []pod.PersistentVolume{data, home}, undecided: []string{"vol-d", "vol-h", "vol-x"}},
		"of a pod without any":   {},
	} {
		id, undecided := c.p.HomeVolume(c.bound)
		require.Equal(t, c.id, id, name)
		require.Equal(t, c.undecided, undecided, name)
	}
}

func TestAPodHasVolumesWhetherByClaimOrByThemselves(t *testing.T) {
	t.Parallel()
	require.False(t, pod.Pod{}.HasVolumes())
	require.True(t, pod.Pod{Claims: []string{"home"}}.HasVolumes())
	require.True(t, pod.Pod{VolumeIDs: []string{"vol-1"}}.HasVolumes())
	require.True(t, pod.Pod{Claims: []string{"home"}, VolumeIDs: []string{"vol-1"}}.HasVolumes())
}

func TestAVolumeOutlivesItsClaimOnlyWhereItSaysSo(t *testing.T) {
	t.Parallel()
	for policy, retained := range map[string]bool{pod.RetainPolicy: true, "Delete": false, "Recycle": false, "": false} {
		require.Equal(t, retained, pod.PersistentVolume{ReclaimPolicy: policy}.Retained(), policy)
	}
}
