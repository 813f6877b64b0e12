package pod_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestServicesOf(t *testing.T) {
	t.Parallel()
	mine := pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev-1", Labels: map[string]string{"app": "gpu-dev", "reservation": "1"}}
	other := pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev-2", Labels: map[string]string{"app": "gpu-dev", "reservation": "2"}}
	elsewhere := pod.Pod{Namespace: "team-a", Name: "gpu-dev-3", Labels: map[string]string{"reservation": "1"}}
	both := []pod.Pod{mine, other, elsewhere}
	service := func(name string, selector map[string]string) pod.Service {
		return pod.Service{Namespace: "gpu-dev", Name: name, Selector: selector}
	}
	for name, c := range map[string]struct {
		pod     pod.Pod
		pods    []pod.Pod
		service pod.Service
		found   bool
	}{
		"its SSH service":                          {mine, both, service("gpu-dev-1-ssh", map[string]string{"reservation": "1"}), true},
		"its SSH service, the pod gone":            {pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev-1"}, []pod.Pod{other}, service("gpu-dev-1-ssh", map[string]string{"reservation": "1"}), true},
		"its SSH service, selecting nothing":       {mine, both, service("gpu-dev-1-ssh", nil), true},
		"its SSH service by name, another's pod":   {mine, both, service("gpu-dev-1-ssh", map[string]string{"reservation": "2"}), false},
		"selects this pod alone":                   {mine, both, service("jupyter", map[string]string{"reservation": "1"}), true},
		"selects both":                             {mine, both, service("all", map[string]string{"app": "gpu-dev"}), false},
		"selects the other":                        {mine, both, service("gpu-dev-2-ssh", map[string]string{"reservation": "2"}), false},
		"selects nothing":                          {mine, both, service("headless", nil), false},
		"selects a label that this pod has not":    {mine, both, service("x", map[string]string{"reservation": "1", "gpu": ""}), false},
		"in another namespace":                     {mine, both, pod.Service{Namespace: "team-a", Name: "gpu-dev-1-ssh", Selector: map[string]string{"reservation": "1"}}, false},
		"of a pod whose name begins with this one": {pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev"}, both, service("gpu-dev-1-ssh", map[string]string{"reservation": "1"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.found, len(pod.ServicesOf(c.pod, c.pods, []pod.Service{c.service})) == 1)
		})
	}
}

func TestServicesOfFindsAllWhateverStandsBeforeThem(t *testing.T) {
	t.Parallel()
	mine := pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev-1"}
	elsewhere, ssh := pod.Service{Namespace: "team-a", Name: "gpu-dev-1-ssh"}, pod.Service{Namespace: "gpu-dev", Name: "gpu-dev-1-ssh"}
	require.Equal(t, []pod.Service{ssh}, pod.ServicesOf(mine, nil, []pod.Service{elsewhere, ssh}))
}
