package reservation

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLevelsAreDistinctAndDescend(t *testing.T) {
	t.Parallel()
	for first, want := range map[int][]Level{
		30: {30, 15, 5}, 60: {60, 15, 5}, 15: {15, 5}, 10: {15, 10, 5}, 5: {15, 5}, 1: {15, 5, 1},
	} {
		require.Equal(t, want, Levels(first))
	}
}

func TestDueWarningIsTheMostUrgentWhoseTimeHasCome(t *testing.T) {
	t.Parallel()
	type levels = []Level
	for name, tc := range map[string]struct {
		left     time.Duration
		recorded []Level
		level    Level
		passed   []Level
	}{
		"too early":                        {30*time.Minute + 1, nil, 0, nil},
		"first level to the instant":       {30 * time.Minute, nil, 30, nil},
		"first level sent":                 {20 * time.Minute, levels{30}, 0, nil},
		"second level":                     {15 * time.Minute, levels{30}, 15, nil},
		"second passes over the first":     {14 * time.Minute, nil, 15, levels{30}},
		"third level":                      {5 * time.Minute, levels{15, 30}, 5, nil},
		"third passes over both":           {time.Second, nil, 5, levels{30, 15}},
		"third passes over the second":     {time.Second, levels{30}, 5, levels{15}},
		"all recorded":                     {time.Second, levels{5, 30, 15}, 0, nil},
		"most urgent sent, others missing": {time.Second, levels{5}, 0, nil},
		"at the deadline":                  {0, nil, 0, nil},
		"after the deadline":               {-time.Second, nil, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			level, passed, due := DueWarning(now.Add(tc.left), now, Levels(30), tc.recorded)
			require.Equal(t, tc.level != 0, due)
			require.Equal(t, tc.level, level)
			require.Equal(t, tc.passed, passed)
		})
	}
}

func TestDueWarningDoesNotDependOnTheOrderOfLevels(t *testing.T) {
	t.Parallel()
	level, passed, due := DueWarning(now.Add(4*time.Minute), now, []Level{5, 30, 15, 5}, nil)
	require.True(t, due)
	require.Equal(t, Level(5), level)
	require.ElementsMatch(t, []Level{30, 15}, passed)
}

func TestEachDeadlineIsWarnedOncePerLevelWhateverTheTicks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		levels := Levels(rapid.IntRange(1, 240).Draw(t, "WARNING_MINUTES"))
		deadline, clock := now.Add(5*time.Hour), now
		for extension := range 3 {
			if extension > 0 { // an extension re-arms: nothing is recorded for the new deadline
				deadline = clock.Add(5 * time.Hour)
			}
			var recorded []Level
			stop := deadline.Add(time.Duration(rapid.IntRange(-20, 20).Draw(t, "stop")) * time.Minute)
			for clock.Before(stop) {
				clock = clock.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "tick")) * time.Minute)
				level, passed, due := DueWarning(deadline, clock, levels, recorded)
				if !due {
					if clock.Before(deadline) && !clock.Before(deadline.Add(-slices.Min(levels).Duration())) && len(recorded) < len(levels) {
						t.Fatalf("the last level is past and yet %v of %v are recorded", recorded, levels)
					}
					continue
				}
				if !clock.Before(deadline) || clock.Before(deadline.Add(-level.Duration())) {
					t.Fatalf("level %d out of its time", level)
				}
				for _, l := range append(slices.Clone(passed), level) {
					if slices.Contains(recorded, l) || !slices.Contains(levels, l) {
						t.Fatalf("level %d again, or unknown", l)
					}
					recorded = append(recorded, l)
				}
				for _, l := range passed {
					if l <= level {
						t.Fatalf("passed over %d for the less urgent %d", l, level)
					}
				}
				if _, _, again := DueWarning(deadline, clock, levels, recorded); again {
					t.Fatal("two warnings due at one moment")
				}
			}
		}
	})
}

func TestWarningFlagsKeepThePlatformsFormat(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		column string
		sent   []Level
		want   string
	}{
		"null column":               {``, []Level{30}, `{"30min_warning_sent":true}`},
		"json null":                 {`null`, []Level{30}, `{"30min_warning_sent":true}`},
		"empty":                     {`{}`, nil, `{}`},
		"second level":              {`{"30min_warning_sent":true}`, []Level{30, 15}, `{"30min_warning_sent":true,"15min_warning_sent":true}`},
		"stale flags of a deadline": {`{"30min_warning_sent":true,"5min_warning_sent":true}`, []Level{30}, `{"30min_warning_sent":true}`},
		"foreign keys stay":         {`{"note":{"a":[1,2.50]},"xmin_warning_sent":1,"big":12345678901234567890}`, []Level{5}, `{"note":{"a":[1,2.50]},"xmin_warning_sent":1,"big":12345678901234567890,"5min_warning_sent":true}`},
		"an array":                  {`["30min_warning_sent"]`, []Level{15}, `{"15min_warning_sent":true}`},
		"a number":                  {`17`, []Level{15}, `{"15min_warning_sent":true}`},
		"a string":                  {`"{}"`, []Level{15}, `{"15min_warning_sent":true}`},
		"no json":                   {`{"30min`, []Level{15}, `{"15min_warning_sent":true}`},
		"flag of odd type":          {`{"5min_warning_sent":"yes"}`, nil, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			merged := MergeWarningsSent([]byte(tc.column), tc.sent)
			require.JSONEq(t, tc.want, string(merged))
			if name == "foreign keys stay" {
				require.Contains(t, string(merged), "12345678901234567890", "numbers pass through unread")
			}
		})
	}
}

func FuzzMergeWarningsSent(f *testing.F) {
	f.Fuzz(func(t *testing.T, column []byte, level int) {
		sent := []Level{Level(level & 0xffff), 5}
		merged := MergeWarningsSent(column, sent)
		var got, before map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(merged, &got))
		for _, l := range sent {
			require.Equal(t, "true", string(got[SentFlag(l)]))
		}
		for key := range got {
			require.True(t, !sentFlag.MatchString(key) || slices.ContainsFunc(sent, func(l Level) bool { return SentFlag(l) == key }), key)
		}
		require.Equal(t, merged, MergeWarningsSent(merged, sent), "merging again changes nothing")
		if json.Unmarshal(column, &before) != nil {
			return
		}
		for key := range before {
			require.True(t, sentFlag.MatchString(key) || got[key] != nil, "%q is lost", key)
		}
	})
}
