package reservation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestOnlyActiveReservationsLaunchedLongAgoCanMissTheirPod(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status   Status
		launched Instant
		want     bool
	}{
		"launched over ten minutes ago":    {Active, ago(10*time.Minute + time.Microsecond), true},
		"launched exactly ten minutes ago": {Active, ago(10 * time.Minute), false},
		"launched just now":                {Active, ago(0), false},
		"launched in the future":           {Active, in(time.Hour), false},
		"never launched":                   {Active, Instant{}, false},
		"launched at infinity":             {Active, Infinity(), false},
		"launched at minus infinity":       {Active, PastInfinity(), false},
		"launched in the year 1":           {Active, At(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), false},
		"preparing":                        {Preparing, ago(time.Hour), false},
		"expired":                          {Expired, ago(time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, MissingEligible(Reservation{Status: tc.status, LaunchedAt: tc.launched}, now))
		})
	}
}

func TestAPodIsMissingOnlyOnTwoTicksFarEnoughApart(t *testing.T) {
	t.Parallel()
	const confirm = 4 * time.Minute
	before := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, tc := range map[string]struct {
		first, last time.Time
		sameCluster bool
		want        MissingDecision
	}{
		"first sight":                   {time.Time{}, time.Time{}, true, MissingNoted},
		"second sight too soon":         {before(confirm - 1), before(time.Minute), true, MissingWaiting},
		"second sight":                  {before(confirm), before(confirm), true, MissingConfirmed},
		"many sights":                   {before(time.Hour), before(time.Minute), true, MissingConfirmed},
		"the clock went back":           {now.Add(time.Hour), now.Add(time.Hour), true, MissingWaiting},
		"record of nonsense":            {before(time.Hour), before(2 * time.Hour), true, MissingNoted},
		"nobody looked for a day":       {before(48 * time.Hour), before(24*time.Hour + 1), true, MissingNoted},
		"last look just within a day":   {before(48 * time.Hour), before(24 * time.Hour), true, MissingConfirmed},
		"another cluster, first sight":  {time.Time{}, time.Time{}, false, MissingIgnored},
		"another cluster, second sight": {before(time.Hour), before(confirm), false, MissingIgnored},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, MissingVerdict(tc.first, tc.last, now, confirm, tc.sameCluster))
		})
	}
}

func TestMissingTakesTheConfirmTimeHoweverTheTicksFall(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		confirm := time.Duration(rapid.IntRange(1, 600).Draw(t, "confirm")) * time.Second
		var first, last time.Time
		clock, noted := now, time.Time{}
		for range 20 {
			clock = clock.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "tick")) * time.Second)
			switch MissingVerdict(first, last, clock, confirm, true) {
			case MissingNoted:
				first, last, noted = clock, clock, clock
			case MissingWaiting:
				last = clock
			case MissingConfirmed:
				if noted.IsZero() || clock.Sub(noted) < confirm {
					t.Fatalf("confirmed %s after the first sight, want %s", clock.Sub(noted), confirm)
				}
				return
			}
		}
	})
}
