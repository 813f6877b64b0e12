package disk_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
)

func TestAStrangersSnapshotIsCountedByWhoeverHasNotYet(t *testing.T) {
	t.Parallel()
	const pending, completed, failed = disk.SnapshotPending, disk.SnapshotCompleted, disk.SnapshotError
	type seen struct {
		age   time.Duration
		state disk.SnapshotState
	}
	for name, c := range map[string]struct {
		seen    []seen // snap-0, snap-1, …
		awaited int
		counted time.Duration // ago; 0: just now
		want    map[string]disk.SnapshotState
	}{
		"under way, and awaited":           {[]seen{{time.Minute, pending}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": pending}},
		"under way, its maker is slow":     {[]seen{{time.Second, pending}}, 0, time.Hour, map[string]disk.SnapshotState{"snap-0": pending}},
		"completed, and awaited":           {[]seen{{time.Minute, completed}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": pending}},
		"failed, and awaited":              {[]seen{{time.Minute, failed}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": pending}},
		"completed long ago":               {[]seen{{time.Hour, completed}}, 0, time.Hour, map[string]disk.SnapshotState{"snap-0": completed}},
		"failed long ago":                  {[]seen{{time.Hour, failed}}, 0, time.Hour, map[string]disk.SnapshotState{"snap-0": failed}},
		"completed, too young to tell":     {[]seen{{time.Minute, completed}}, 0, time.Hour, nil},
		"just old enough":                  {[]seen{{disk.AdoptAfter, completed}}, 0, time.Hour, map[string]disk.SnapshotState{"snap-0": completed}},
		"of two the newest is awaited":     {[]seen{{2 * time.Hour, completed}, {time.Hour, completed}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": completed, "snap-1": pending}},
		"a failed one before a newer":      {[]seen{{2 * time.Hour, failed}, {time.Hour, completed}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": pending, "snap-1": completed}},
		"one under way is what they await": {[]seen{{time.Hour, completed}, {2 * time.Hour, pending}}, 1, time.Hour, map[string]disk.SnapshotState{"snap-0": completed, "snap-1": pending}},
		"what they await is not listed":    {[]seen{{2 * time.Hour, completed}, {time.Hour, completed}}, 1, 0, map[string]disk.SnapshotState{"snap-0": completed}},
		"it has just been counted":         {[]seen{{time.Minute, completed}}, 1, 0, map[string]disk.SnapshotState{"snap-0": pending}},
		"it would be listed by now":        {[]seen{{time.Hour, completed}}, 1, disk.AdoptAfter, map[string]disk.SnapshotState{"snap-0": pending}},
		"in the recycle bin":               {[]seen{{time.Hour, disk.SnapshotRecoverable}}, 1, time.Hour, nil},
		"fewer pending than in the books":  {[]seen{{time.Hour, completed}}, -2, time.Hour, map[string]disk.SnapshotState{"snap-0": completed}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var unknown []disk.Snapshot
			for i, s := range c.seen {
				unknown = append(unknown, disk.Snapshot{ID: "snap-" + string(rune('0'+i)), State: s.state, StartedAt: now.Add(-s.age)})
			}
			got := map[string]disk.SnapshotState{}
			for _, a := range disk.Adopt(unknown, c.awaited, now.Add(-c.counted), now) {
				got[a.Snapshot.ID] = a.As
			}
			if c.want == nil {
				require.Empty(t, got)
				return
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestAdoptionCountsEachSnapshotOnceInAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		states := []disk.SnapshotState{disk.SnapshotPending, disk.SnapshotCompleted, disk.SnapshotError}
		var unknown []disk.Snapshot
		underWay := 0
		for i := range rapid.IntRange(0, 6).Draw(t, "snapshots") {
			s := disk.Snapshot{
				ID: string(rune('a' + i)), State: rapid.SampledFrom(states).Draw(t, "state"),
				StartedAt: now.Add(-time.Duration(rapid.IntRange(10, 50).Draw(t, "minutes")) * time.Minute),
			}
			if s.State == disk.SnapshotPending {
				underWay++
			}
			unknown = append(unknown, s)
		}
		awaited := rapid.IntRange(-2, 8).Draw(t, "awaited")
		adopted := disk.Adopt(unknown, awaited, now.Add(-time.Hour), now)
		if len(adopted) != len(unknown) {
			t.Fatalf("%d of %d adopted", len(adopted), len(unknown))
		}
		toCount := 0
		for _, a := range adopted {
			if a.As == disk.SnapshotPending {
				toCount++
			} else if a.As != a.Snapshot.State {
				t.Fatalf("%s is %s, taken as %s", a.Snapshot.ID, a.Snapshot.State, a.As)
			}
		}
		if want := max(underWay, min(awaited, len(unknown))); toCount != want {
			t.Fatalf("%d are still to be counted, not %d", toCount, want)
		}
		slices.Reverse(unknown)
		require.Equal(t, adopted, disk.Adopt(unknown, awaited, now.Add(-time.Hour), now))
	})
}
