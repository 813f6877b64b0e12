package reservation

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestStateEntryIsReadFromEveryPlausibleHistory(t *testing.T) {
	t.Parallel()
	entered := time.Date(2026, 3, 1, 8, 30, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		history string
		tells   bool
	}{
		"null":                     {``, false},
		"json null":                {`null`, false},
		"empty":                    {`[]`, false},
		"an object":                {`{"status":"preparing","timestamp":"2026-03-01T08:30:00Z"}`, false},
		"no json":                  {`[{"status":`, false},
		"rfc 3339":                 {`[{"status":"preparing","timestamp":"2026-03-01T08:30:00Z"}]`, true},
		"rfc 3339 with offset":     {`[{"status":"preparing","time":"2026-03-01T09:30:00+01:00"}]`, true},
		"python's utcnow":          {`[{"status":"preparing","at":"2026-03-01T08:30:00.000000"}]`, true},
		"python's str":             {`[{"status":"preparing","changed_at":"2026-03-01 08:30:00+00:00"}]`, true},
		"postgres's text":          {`[{"status":"preparing","at":"2026-03-01 08:30:00+00"}]`, true},
		"a space and no zone":      {`[{"status":"preparing","at":"2026-03-01 08:30:00"}]`, true},
		"unix seconds":             {`[{"status":"preparing","timestamp":1772353800}]`, true},
		"unix seconds in a string": {`[{"status":"preparing","timestamp":" 1772353800 "}]`, true},
		"fractional unix seconds":  {`[{"status":"preparing","timestamp":1772353800.0}]`, true},
		"unix milliseconds":        {`[{"status":"preparing","timestamp":1772353800000}]`, true},
		"state and to":             {`[{"to":"queued","at":1},{"state":" Preparing ","at":1772353800}]`, true},
		"encoded twice":            {`"[{\"status\":\"preparing\",\"at\":1772353800}]"`, true},
		"entries encoded twice":    {`["{\"status\":\"preparing\",\"at\":1772353800}"]`, true},
		"first of the last run": {`[{"status":"preparing","at":1772350000},{"status":"queued","at":1772351000},
			{"status":"preparing","at":1772353800},{"status":"preparing","at":1772353900}]`, true},
		"entries without status break no run": {`[{"status":"preparing","at":1772353800},
			{"timestamp":"2026-03-01T08:40:00","message":"pulling the image"},{"status":"preparing","at":1772357000}]`, true},
		"nor do those with a blank one":  {`[{"status":"preparing","at":1772353800},{"status":" ","at":1},{"status":"preparing","at":1772357000}]`, true},
		"junk among the entries":         {`[null, 7, "x", "", [], {"status":3}, {"status":"preparing","at":1772353800}, {}]`, true},
		"first time of the run unusable": {`[{"status":"preparing","at":"yesterday"},{"status":"preparing","at":1772353800}]`, true},
		"second key has the time":        {`[{"status":"preparing","timestamp":null,"at":1772353800}]`, true},
		"only messages":                  {`[{"timestamp":"2026-03-01T08:30:00","message":"Creating pod"}]`, false},
		"last word is another status":    {`[{"status":"preparing","at":1772353800},{"status":"active","at":1772353900}]`, false},
		"last word after a run of two":   {`[{"status":"preparing","at":1},{"status":"preparing","at":1772353800},{"status":"active","at":1772353900}]`, false},
		"no time at all":                 {`[{"status":"preparing"}]`, false},
		"not a number":                   {`[{"status":"preparing","at":"NaN"}]`, false},
		"infinite":                       {`[{"status":"preparing","at":"Infinity"}]`, false},
		"zero":                           {`[{"status":"preparing","at":0}]`, false},
		"negative":                       {`[{"status":"preparing","at":-1}]`, false},
		"too many milliseconds":          {`[{"status":"preparing","at":1e14}]`, false},
		"beyond all time":                {`[{"status":"preparing","at":1e300}]`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := stateEntered([]byte(tc.history), Preparing)
			require.Equal(t, tc.tells, ok)
			if tc.tells {
				require.Equal(t, entered, got)
			}
		})
	}
}

func TestSecondsAndMillisecondsAreToldApartByTheirSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"99999999999":  time.Date(5138, 11, 16, 9, 46, 39, 0, time.UTC),
		"100000000000": time.Date(1973, 3, 3, 9, 46, 40, 0, time.UTC),
	} {
		got, ok := parseHistoryTime([]byte(text))
		require.True(t, ok)
		require.Equal(t, want, got)
	}
}

func TestFirstEnteredIsTheFirstSoundTimeOfThatStatus(t *testing.T) {
	t.Parallel()
	history := []byte(`[{"status":"queued","at":1772350000},{"status":"preparing"},{"status":"preparing","at":12},{"status":"preparing","at":1772353800},
		{"status":"queued","at":1772353900},{"status":"preparing","at":1772354000}]`)
	got, ok := FirstEntered(history, Preparing)
	require.True(t, ok)
	require.Equal(t, time.Unix(1772353800, 0).UTC(), got)
	got, ok = FirstEntered(history, Preparing, Queued)
	require.True(t, ok)
	require.Equal(t, time.Unix(1772350000, 0).UTC(), got)
	_, ok = FirstEntered(history, Active)
	require.False(t, ok)
}

func TestStuckCountsFromTheEntryIntoTheState(t *testing.T) {
	t.Parallel()
	entry := func(status Status, d time.Duration) []byte {
		return fmt.Appendf(nil, `[{"status":%q,"timestamp":%d}]`, status, now.Add(-d).Unix())
	}
	for name, tc := range map[string]struct {
		row     Reservation
		want    Status // empty: not stuck
		reason  string
		anomaly Anomaly
	}{
		"preparing for exactly an hour": {Reservation{Status: Preparing, CreatedAt: ago(time.Hour)}, "", "", NoAnomaly},
		"preparing for over an hour": {Reservation{Status: Preparing, CreatedAt: ago(time.Hour + time.Second)}, Failed,
			"preparing for over an hour: since 2026-03-01 10:59:59 UTC by created_at", NoAnomaly},
		"queued for exactly 48 hours": {Reservation{Status: Queued, CreatedAt: ago(48 * time.Hour)}, "", "", NoAnomaly},
		"queued for over 48 hours": {Reservation{Status: Queued, CreatedAt: ago(49 * time.Hour)}, Cancelled,
			"queued for over 48 hours: since 2026-02-27 11:00:00 UTC by created_at", NoAnomaly},
		"pending for over 48 hours": {Reservation{Status: Pending, CreatedAt: ago(49 * time.Hour)}, Cancelled,
			"pending for over 48 hours: since 2026-02-27 11:00:00 UTC by created_at", NoAnomaly},
		"history says it was later": {Reservation{Status: Preparing, CreatedAt: ago(50 * time.Hour), StatusHistory: entry(Preparing, time.Minute)}, "", "", NoAnomaly},
		"history beats a newer update": {Reservation{Status: Preparing, CreatedAt: ago(5 * time.Hour), UpdatedAt: ago(time.Second), StatusHistory: entry(Preparing, 2*time.Hour)}, Failed,
			"preparing for over an hour: since 2026-03-01 10:00:00 UTC by status_history", NoAnomaly},
		"history before the creation is no history": {Reservation{Status: Preparing, CreatedAt: ago(30 * time.Minute), StatusHistory: entry(Preparing, 2*time.Hour)}, "", "", NoAnomaly},
		"history of the future is no history": {Reservation{Status: Preparing, CreatedAt: ago(2 * time.Hour), StatusHistory: entry(Preparing, -time.Minute)}, Failed,
			"preparing for over an hour: since 2026-03-01 10:00:00 UTC by created_at", NoAnomaly},
		"history before 2000 is no history": {Reservation{Status: Preparing, UpdatedAt: ago(2 * time.Hour), StatusHistory: []byte(`[{"status":"preparing","at":12}]`)}, Failed,
			"preparing for over an hour: since 2026-03-01 10:00:00 UTC by updated_at", NoAnomaly},
		"newest column: launched": {Reservation{Status: Preparing, CreatedAt: ago(9 * time.Hour), UpdatedAt: ago(8 * time.Hour), LaunchedAt: ago(7 * time.Hour)}, Failed,
			"preparing for over an hour: since 2026-03-01 05:00:00 UTC by launched_at", NoAnomaly},
		"newest column: updated":       {Reservation{Status: Queued, CreatedAt: ago(90 * time.Hour), UpdatedAt: ago(time.Hour)}, "", "", NoAnomaly},
		"updated in the future":        {Reservation{Status: Queued, CreatedAt: ago(90 * time.Hour), UpdatedAt: in(time.Hour)}, "", "", NoAnomaly},
		"updated at infinity":          {Reservation{Status: Queued, CreatedAt: ago(90 * time.Hour), UpdatedAt: Infinity()}, "", "", StateAgeUnknown},
		"nothing known":                {Reservation{Status: Preparing}, "", "", StateAgeUnknown},
		"only minus infinity":          {Reservation{Status: Preparing, CreatedAt: PastInfinity()}, "", "", StateAgeUnknown},
		"only the year 1":              {Reservation{Status: Pending, CreatedAt: At(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC))}, "", "", StateAgeUnknown},
		"active is never stuck":        {Reservation{Status: Active, CreatedAt: ago(900 * time.Hour)}, "", "", NoAnomaly},
		"an unknown status is no wait": {Reservation{Status: "waiting", CreatedAt: ago(900 * time.Hour)}, "", "", NoAnomaly},
		"ended is over":                {Reservation{Status: Failed, CreatedAt: ago(900 * time.Hour)}, "", "", NoAnomaly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ending, stuck, anomaly := Stuck(tc.row, now)
			require.Equal(t, tc.want != "", stuck)
			require.Equal(t, tc.anomaly, anomaly)
			require.Equal(t, tc.reason, ending.Reason)
			if stuck {
				require.Equal(t, tc.want, ending.Status)
			}
		})
	}
}

func TestStuckNeverActsOnWhatIsYoungerThanTheLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := drawReservation(t, "worker")
		ending, stuck, _ := Stuck(r, now)
		if !stuck {
			return
		}
		limit := map[Status]time.Duration{Preparing: PreparingLimit, Queued: WaitingLimit, Pending: WaitingLimit}[r.Status]
		if limit == 0 || !ending.Since.Add(limit).Before(now) || !ending.Status.Ended() {
			t.Fatalf("%+v from %+v", ending, r)
		}
		for _, column := range []Instant{r.CreatedAt, r.LaunchedAt, r.UpdatedAt} {
			if At(ending.Since).before(column) {
				t.Fatalf("counted from %v although %v is newer", ending.Since, column)
			}
		}
	})
}

func FuzzStatusHistory(f *testing.F) {
	f.Fuzz(func(t *testing.T, history []byte) {
		for _, status := range []Status{Pending, Queued, Preparing} {
			r := Reservation{Status: status, CreatedAt: ago(72 * time.Hour), StatusHistory: history}
			since, source := enteredState(r, now)
			at, known := since.Time()
			require.True(t, known, "created_at is always there to fall back on")
			require.False(t, at.After(now))
			require.False(t, since.before(r.CreatedAt))
			require.Contains(t, []string{"status_history", "created_at"}, source)
			Stuck(r, now)
		}
	})
}
