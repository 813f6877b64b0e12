package reservation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestBrakeStopsMissingPodsFirstAndDeadlinesOnlyWhenClocksDisagree(t *testing.T) {
	t.Parallel()
	const agree, disagree = time.Minute, time.Minute + 1
	for name, tc := range map[string]struct {
		in    BrakeInput
		state BrakeState
		says  bool
	}{
		"nothing to end":               {BrakeInput{Active: 100}, BrakeReleased, false},
		"exactly the share":            {BrakeInput{Active: 100, Overdue: 10, Missing: 10}, BrakeReleased, false},
		"over the share":               {BrakeInput{Active: 100, Overdue: 10, Missing: 11}, BrakeMissing, true},
		"over the share, dead count":   {BrakeInput{Active: 100, Dead: 20, Missing: 1}, BrakeMissing, true},
		"with those of the last hour":  {BrakeInput{Active: 90, Missing: 11, MissingBefore: 10}, BrakeMissing, true},
		"just not, with them":          {BrakeInput{Active: 90, Missing: 10, MissingBefore: 10}, BrakeReleased, false},
		"they alone speak of nothing":  {BrakeInput{Active: 10, Overdue: 5, MissingBefore: 90, ClockSkew: disagree}, BrakeReleased, false},
		"few reservations: under min":  {BrakeInput{Active: 5, Missing: 5}, BrakeReleased, false},
		"few reservations: over min":   {BrakeInput{Active: 6, Missing: 6}, BrakeMissing, true},
		"only deadlines":               {BrakeInput{Active: 10, Overdue: 10}, BrakeReleased, true},
		"only deadlines, clocks agree": {BrakeInput{Active: 10, Overdue: 10, ClockSkew: -agree}, BrakeReleased, true},
		"only deadlines, clocks apart": {BrakeInput{Active: 10, Overdue: 10, ClockSkew: disagree}, BrakeAll, true},
		"machine ahead":                {BrakeInput{Active: 10, Overdue: 9, Missing: 1, ClockSkew: -disagree}, BrakeAll, true},
		"clocks apart, under limit":    {BrakeInput{Active: 100, Overdue: 10, Missing: 1, ClockSkew: time.Hour}, BrakeReleased, false},
		"clocks apart, only missing":   {BrakeInput{Active: 10, Missing: 10, ClockSkew: time.Hour}, BrakeMissing, true},
		"only dead":                    {BrakeInput{Active: 10, Dead: 10}, BrakeReleased, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.in.Percent, tc.in.Min = 20, 5
			got := Brake(tc.in)
			require.Equal(t, tc.state, got.State)
			require.Equal(t, tc.says, got.Reason != "", got.Reason)
		})
	}
}

func TestBrakeSaysWhatItHoldsBack(t *testing.T) {
	t.Parallel()
	in := BrakeInput{Active: 40, Overdue: 3, Dead: 1, Missing: 30, Percent: 20, Min: 5, ClockSkew: 90*time.Second + time.Millisecond}
	require.Equal(t, "would end 34 of 40 active reservations at once (3 by deadline, 1 dead, 30 missing), more than 20% and more than 5, "+
		"and the database clock differs from this machine's by 1m30s: nothing ends by deadline or for a missing pod", Brake(in).Reason)
	in.ClockSkew, in.MissingBefore = 0, 2
	require.Equal(t, "would end 36 of 42 active reservations at once (3 by deadline, 1 dead, 30 missing and 2 ended so in the last hour), "+
		"more than 20% and more than 5: nothing ends for a missing pod", Brake(in).Reason)
	in.MissingBefore = 0
	require.Equal(t, "would end 34 of 40 active reservations at once (3 by deadline, 1 dead, 30 missing), more than 20% and more than 5: "+
		"nothing ends for a missing pod", Brake(in).Reason)
}

func TestBrakeLimitsOfZeroAndAHundredPercent(t *testing.T) {
	t.Parallel()
	require.Equal(t, BrakeMissing, Brake(BrakeInput{Active: 1000, Missing: 1}).State, "0 % and a minimum of 0 stop every missing ending")
	require.Equal(t, BrakeReleased, Brake(BrakeInput{Active: 50, Missing: 50, Percent: 100}).State, "100 % stops none")
}

func TestBrakeIsMonotone(t *testing.T) {
	t.Parallel()
	rank := map[BrakeState]int{BrakeReleased: 0, BrakeMissing: 1, BrakeAll: 2}
	rapid.Check(t, func(t *rapid.T) {
		in := BrakeInput{
			Active:  rapid.IntRange(0, 300).Draw(t, "active"),
			Percent: rapid.IntRange(0, 100).Draw(t, "percent"),
			Min:     rapid.IntRange(0, 20).Draw(t, "min"),
			Overdue: rapid.IntRange(0, 100).Draw(t, "overdue"),
			Dead:    rapid.IntRange(0, 100).Draw(t, "dead"),
			Missing: rapid.IntRange(0, 100).Draw(t, "missing"),

			MissingBefore: rapid.IntRange(0, 100).Draw(t, "missing before"),
		}
		in.ClockSkew = time.Duration(rapid.IntRange(-180, 180).Draw(t, "skew")) * time.Second
		worse := in
		switch rapid.IntRange(0, 5).Draw(t, "what gets worse") {
		case 0:
			worse.Overdue++
		case 1:
			worse.Missing++
		case 2:
			worse.Dead++
		case 3:
			worse.Active = max(0, in.Active-1)
		case 4:
			worse.ClockSkew *= 2
		case 5:
			worse.MissingBefore++
		}
		was, is := Brake(in), Brake(worse)
		if rank[is.State] < rank[was.State] {
			t.Fatalf("%+v is %s but %+v is %s", in, was.State, worse, is.State)
		}
	})
}
