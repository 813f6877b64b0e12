package reservation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPausesGrowUntilTheWorkIsStuckAndThenAreHourly(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{
		0: 20 * time.Second, 1: 20 * time.Second, 2: 40 * time.Second, 3: 80 * time.Second, 5: 320 * time.Second,
		6: 10 * time.Minute, 9: 10 * time.Minute, 10: time.Hour, 11: time.Hour, 1_000_000: time.Hour,
	} {
		pause, stuck := NextPause(failures, 0)
		require.Equal(t, want, pause, failures)
		require.Equal(t, failures >= 10, stuck, failures)
	}
	pause, _ := NextPause(10, 0.999)
	require.InDelta(t, 45*time.Minute, pause, float64(10*time.Second))
}

func TestJitterOnlyShortensAndNeverUndoesTheGrowth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		failures := rapid.IntRange(1, 30).Draw(t, "failures")
		pause, _ := NextPause(failures, rapid.Float64Range(-1, 2).Draw(t, "jitter"))
		longest, _ := NextPause(failures, 0)
		if pause > longest || pause < longest*3/4 {
			t.Fatalf("%s is not within a quarter below %s", pause, longest)
		}
		if failures < 6 {
			if next, _ := NextPause(failures+1, 1); next <= longest {
				t.Fatalf("after %d failures %s, after one more %s", failures, longest, next)
			}
		}
	})
}
