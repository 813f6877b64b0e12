package sweep

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestHoweverManyNamespacesTheRowsNameThePlatformsOwnAndTheFullestAreLookedAt(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	for i := range namespacesMost + 5 {
		if i == namespacesMost-2 {
			require.Empty(t, w.within(c).Failures, "so many, with the platform's own two, are no trouble")
		}
		w.insert(row{"namespace": quote(fmt.Sprintf("a%02d", i)), "launched_at": ago(time.Minute)})
	}
	dead := func(namespace string) string {
		id := w.insert(row{"namespace": quote(namespace)})[0]
		c.add(pod.Pod{Namespace: namespace, Name: "gpu-dev-" + id[:8], Phase: pod.Failed, Reason: "Evicted"})
		return id
	}
	ids := []string{dead("gpu-dev"), dead("default"), dead("zoo"), dead("zoo")}
	alone := dead("zz")
	r := w.within(c)
	for _, id := range ids {
		require.Equal(t, "failed", w.status(id))
	}
	require.Equal(t, "active", w.status(alone))
	require.Equal(t, Partial, r.Outcome)
	require.Len(t, r.Failures, 1, "once, and not by every part that looks at pods")
	require.Equal(t, "pods", r.Failures[0].Part)
	require.Contains(t, r.Failures[0].Error, "a47, a48, a49, a50, a51, a52, a53, a54, zz", "what is not known is named")
}

func TestANamespaceThatCannotBeListedHidesNoOtherAndNothingIsMissingFromIt(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	c.forbidden = "secret"
	unseen := w.insert(row{"namespace": quote(c.forbidden)})[0]
	dead := w.insert(row{"namespace": "'zoo'"})[0]
	c.add(pod.Pod{Namespace: "zoo", Name: "gpu-dev-" + dead[:8], Phase: pod.Failed, Reason: "Evicted"})
	for range 2 {
		r := w.within(c)
		require.Equal(t, Partial, r.Outcome)
		require.Contains(t, r.Failures[0].Error, "403")
		w.ageAbsences(5 * time.Minute)
	}
	require.Equal(t, "failed", w.status(dead))
	require.Equal(t, "active", w.status(unseen))
	require.Zero(t, c.gets)
}
