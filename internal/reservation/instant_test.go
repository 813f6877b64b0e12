package reservation

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var _ sql.Scanner = (*Instant)(nil)

func TestInstantReadsWhateverATimestampColumnMayHold(t *testing.T) {
	t.Parallel()
	utc := func(year int, month time.Month, day, hour, minute, second, micro int) Instant {
		return At(time.Date(year, month, day, hour, minute, second, micro*1000, time.UTC))
	}
	for name, tc := range map[string]struct {
		src  any
		want Instant
	}{
		"null":                      {nil, Instant{}},
		"a driver's time":           {time.Date(2026, 3, 1, 12, 0, 0, 123_456_789, time.FixedZone("", 3600)), utc(2026, 3, 1, 11, 0, 0, 123_456)},
		"infinity":                  {"infinity", Infinity()},
		"minus infinity":            {[]byte("-infinity"), PastInfinity()},
		"utc text":                  {"2026-03-01 12:00:00+00", utc(2026, 3, 1, 12, 0, 0, 0)},
		"microseconds":              {"2026-03-01 12:00:00.123456+00", utc(2026, 3, 1, 12, 0, 0, 123_456)},
		"half-hour zone":            {"2026-03-01 12:00:00+05:30", utc(2026, 3, 1, 6, 30, 0, 0)},
		"zone of local time":        {"1883-01-01 00:00:00-04:56:02", utc(1883, 1, 1, 4, 56, 2, 0)},
		"year one":                  {"0001-01-01 00:00:00+00", utc(1, 1, 1, 0, 0, 0, 0)},
		"last four-digit year":      {"9999-12-31 23:59:59.999999+00", utc(9999, 12, 31, 23, 59, 59, 999_999)},
		"five-digit year":           {"10000-01-01 00:00:00+00", utc(10000, 1, 1, 0, 0, 0, 0)},
		"last year of all":          {"294276-12-31 00:00:00+00", utc(294276, 12, 31, 0, 0, 0, 0)},
		"before christ":             {"4714-11-24 00:00:00+00 BC", utc(-4713, 11, 24, 0, 0, 0, 0)},
		"leap day":                  {"2024-02-29 00:00:00+00", utc(2024, 2, 29, 0, 0, 0, 0)},
		"leap day of the year 1 BC": {"0001-02-29 00:00:00+00 BC", utc(0, 2, 29, 0, 0, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Infinity() // whatever was there is overwritten
			require.NoError(t, got.Scan(tc.src))
			require.Equal(t, tc.want.String(), got.String())
			require.True(t, tc.want == got)
		})
	}
}

func TestInstantRefusesWhatIsNoTimestamp(t *testing.T) {
	t.Parallel()
	for _, src := range []any{"", "soon", "2026-03-01", "2026-13-01 00:00:00+00", "2026-03-01 00:00:00", "-2026-03-01 00:00:00+00", "999999-01-01 00:00:00+00", 12, true} {
		var i Instant
		require.Error(t, i.Scan(src), "%v", src)
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

func TestInstantReadsBackEveryTextThatPostgresWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		micros := rapid.Int64Range(-62_135_596_800_000_000, 253_402_300_799_999_999).Draw(t, "microseconds") // years 1 to 9999
		offset := rapid.IntRange(-56, 56).Draw(t, "quarter hours") * 900
		want := time.UnixMicro(micros)
		text := want.In(time.FixedZone("", offset)).Format("2006-01-02 15:04:05.999999Z07:00:00")
		if strings.HasPrefix(text, "0000-") || text[4] != '-' { // shifted out of the years that Go writes as PostgreSQL does
			return
		}
		var got Instant
		if err := got.Scan(text); err != nil {
			t.Fatal(err)
		}
		if got != At(want) {
			t.Fatalf("%s read as %s", text, got)
		}
	})
}

func FuzzInstantScan(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		var i Instant
		if i.Scan(text) != nil {
			return
		}
		require.False(t, i.IsNull())
		if at, ok := i.Time(); ok {
			require.Equal(t, time.UTC, at.Location())
			require.Equal(t, at, at.Truncate(time.Microsecond))
		}
	})
}
