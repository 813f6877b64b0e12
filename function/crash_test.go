package main

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// TestAProcessMayBeKilledAtEveryCall lets processes sweep a world with one reservation of each kind, counts their calls to
// PostgreSQL, Kubernetes and AWS, then kills a process (SIGKILL) before each of them, and after each that acts before its
// answer comes. The ticks after that must bring the world to the very state to which they bring it when nobody dies.
func TestAProcessMayBeKilledAtEveryCall(t *testing.T) {
	t.Parallel()
	whole := newOutside(t, nil)
	require.Equal(t, settled(t), whole.settle())
	calls, _ := whole.made()

	type point struct {
		k     int
		after bool
	}
	var points []point
	kinds := map[string]int{}
	for k, c := range calls {
		points = append(points, point{k + 1, false})
		if c.acts {
			points = append(points, point{k + 1, true})
		}
		kinds[strings.Fields(c.name)[0]]++
	}
	var tried, killed atomic.Int32
	t.Cleanup(func() {
		t.Logf("%d calls (%v), %d crash points, %d tried: %d processes killed, %d settled before they came to that call",
			len(calls), kinds, len(points), tried.Load(), killed.Load(), tried.Load()-killed.Load())
	})
	picked := stacktest.CrashPoints(t, points, 2)
	for _, p := range picked {
		when := map[bool]string{false: "before", true: "after"}[p.after]
		t.Run(fmt.Sprintf("%s call %d %s", when, p.k, calls[p.k-1].name), func(t *testing.T) {
			t.Parallel()
			o := newOutside(t, nil)
			o.cutAt(p.k, p.after)
			got := o.settle()
			if n := tried.Add(1); n%25 == 0 {
				t.Logf("%d of %d crash points tried", n, len(picked))
			}
			made, _ := o.made()
			require.Equal(t, len(made) >= p.k, o.killed == 1, "who makes that call is killed at it")
			killed.Add(int32(o.killed))
			require.Equal(t, settled(t), got)
		})
	}
}
