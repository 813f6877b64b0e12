package cleanup_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestAVanishedRowsPodInItsOwnNamespaceIsNotGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set namespace = 'team-x'")
	p := w.pods[podKey]
	delete(w.pods, podKey)
	p.Namespace = "team-x"
	w.pods["team-x/"+podName] = p
	c := w.claims["gpu-dev/disk-alice"]
	c.Namespace = "team-x"
	w.claims["team-x/disk-alice"] = c
	w.before = func(call string) error {
		if strings.HasPrefix(call, "delete pod") {
			return errors.New("the API server is busy")
		}
		return nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.Contains(t, w.step(t, postgres.StepPod), "busy")
	require.Equal(t, "team-x", read[string](t, w, "select namespace from expiry.cleanups"), "recorded")
	w.before = nil
	w.exec(t, "delete from reservations") // by the platform
	w.deliver(t.Context(), t)
	_, runs := w.pods["team-x/"+podName]
	require.False(t, runs && w.made("keep "+volume), "the pod runs, its step says %q, and its volume is taken", w.step(t, postgres.StepPod))
}

func TestAPodOfWhichTheAPIServerSaysNothingIsNotGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	asked := false
	w.before = func(call string) error {
		asked = asked || strings.HasPrefix(call, "delete pod")
		if asked && strings.HasPrefix(call, "get pod") {
			return errors.New("the API server is away")
		}
		return nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, "open: ", w.step(t, postgres.StepPod)[:6])
	require.Contains(t, w.step(t, postgres.StepPod), "is away")
	require.False(t, w.made("keep "+volume), "its volume is not taken from a pod that may run")
}
