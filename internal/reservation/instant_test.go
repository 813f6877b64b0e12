package reservation

import (
	"database/sql"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var _ sql.Scanner = (*Instant)(nil)

func TestInstantReadsWhateverTheDriverHandsOver(t *testing.T) {
	t.Parallel()
	early := time.Date(-4713, 11, 24, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		src  any
		want Instant
	}{
		"null":              {nil, Instant{}},
		"infinity":          {"infinity", Infinity()},
		"minus infinity":    {"-infinity", PastInfinity()},
		"a time":            {now, At(now)},
		"a time elsewhere":  {now.In(time.FixedZone("", 3600)), At(now)},
		"more than micros":  {now.Add(999), At(now)},
		"the earliest date": {early, At(early)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := At(now.Add(time.Hour)) // whatever was there is overwritten
			require.NoError(t, got.Scan(tc.src))
			require.Equal(t, tc.want, got)
		})
	}
	for _, src := range []any{"", "soon", 12, true} {
		var i Instant
		require.ErrorContains(t, i.Scan(src), "scan a timestamptz")
	}
}

func TestInstantsCompareAsInSQL(t *testing.T) {
	t.Parallel()
	day := At(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))
	next := At(time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC))
	ascending := []Instant{PastInfinity(), day, next, Infinity()}
	for i, a := range ascending {
		require.False(t, a.before(Instant{}), "nothing is before NULL")
		require.False(t, Instant{}.before(a), "NULL is before nothing")
		require.Equal(t, a, later(a, Instant{}))
		require.Equal(t, a, later(Instant{}, a))
		for j, b := range ascending {
			require.Equal(t, i < j, a.before(b), "%v < %v", a, b)
			require.Equal(t, ascending[max(i, j)], later(a, b))
		}
	}
	require.True(t, later(Instant{}, Instant{}).IsNull())
	require.Equal(t, []string{"null", "-infinity", "infinity", "2026-03-01T00:00:00Z"},
		[]string{Instant{}.String(), PastInfinity().String(), Infinity().String(), day.String()})
}

func TestInstantHasATimeOnlyWhereItIsFinite(t *testing.T) {
	t.Parallel()
	for _, i := range []Instant{{}, Infinity(), PastInfinity()} {
		_, ok := i.Time()
		require.False(t, ok, "%v", i)
	}
	at, ok := At(now).Time()
	require.True(t, ok)
	require.Equal(t, now, at)
}
