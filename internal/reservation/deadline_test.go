package reservation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestAbsurdDeadlinesAreNamedAndNeverActedOn(t *testing.T) {
	t.Parallel()
	const twoYears = 17_520 * time.Hour
	year := func(y int) Instant { return At(time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC)) }
	for name, tc := range map[string]struct {
		change func(r *Reservation)
		want   Anomaly
	}{
		"nothing wrong":                {func(r *Reservation) {}, NoAnomaly},
		"deadline null":                {func(r *Reservation) { r.ExpiresAt = Instant{} }, DeadlineNull},
		"everything null":              {func(r *Reservation) { *r = Reservation{Status: Active} }, DeadlineNull},
		"deadline infinity":            {func(r *Reservation) { r.ExpiresAt = Infinity() }, DeadlineInfinite},
		"deadline minus infinity":      {func(r *Reservation) { r.ExpiresAt = PastInfinity() }, DeadlineInfinite},
		"deadline in the year 1":       {func(r *Reservation) { r.ExpiresAt = year(1) }, DeadlineTooOld},
		"deadline just before 2000":    {func(r *Reservation) { *r = Reservation{Status: Active, ExpiresAt: At(Epoch.Add(-time.Microsecond))} }, DeadlineTooOld},
		"deadline at 2000, else null":  {func(r *Reservation) { *r = Reservation{Status: Active, ExpiresAt: At(Epoch)} }, NoAnomaly},
		"deadline in the year 9999":    {func(r *Reservation) { r.ExpiresAt = year(9999) }, DeadlineTooFar},
		"deadline at the horizon":      {func(r *Reservation) { r.ExpiresAt = in(twoYears) }, NoAnomaly},
		"deadline past the horizon":    {func(r *Reservation) { r.ExpiresAt = in(twoYears + time.Microsecond) }, DeadlineTooFar},
		"created null":                 {func(r *Reservation) { r.CreatedAt = Instant{} }, NoAnomaly},
		"created infinity":             {func(r *Reservation) { r.CreatedAt = Infinity() }, CreatedAbsurd},
		"created minus infinity":       {func(r *Reservation) { r.CreatedAt = PastInfinity() }, CreatedAbsurd},
		"created in the year 1":        {func(r *Reservation) { r.CreatedAt = year(1) }, CreatedAbsurd},
		"created after the deadline":   {func(r *Reservation) { r.CreatedAt = in(time.Hour + time.Microsecond) }, DeadlineBeforeCreated},
		"created at the deadline":      {func(r *Reservation) { r.CreatedAt = r.ExpiresAt }, NoAnomaly},
		"launched null":                {func(r *Reservation) { r.LaunchedAt = Instant{} }, NoAnomaly},
		"launched infinity":            {func(r *Reservation) { r.LaunchedAt = Infinity() }, LaunchedAbsurd},
		"launched minus infinity":      {func(r *Reservation) { r.LaunchedAt = PastInfinity() }, LaunchedAbsurd},
		"launched in 1999":             {func(r *Reservation) { r.LaunchedAt = year(1999) }, LaunchedAbsurd},
		"launched after the deadline":  {func(r *Reservation) { r.LaunchedAt = in(time.Hour + time.Microsecond) }, DeadlineBeforeLaunched},
		"launched at the deadline":     {func(r *Reservation) { r.LaunchedAt = r.ExpiresAt }, NoAnomaly},
		"an unsound deadline is first": {func(r *Reservation) { r.ExpiresAt, r.CreatedAt = Instant{}, Infinity() }, DeadlineNull},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := running()
			tc.change(&r)
			require.Equal(t, tc.want, DeadlineAnomaly(r, now))
			_, anomaly := EffectiveDeadline(r, nil, now)
			require.Equal(t, tc.want, anomaly)
			if tc.want != NoAnomaly {
				require.NotEmpty(t, tc.want.Sentence())
				require.False(t, Overdue(r, nil, now, 0))
				require.False(t, Overdue(r, nil, now.Add(200*365*24*time.Hour), 0) && DeadlineAnomaly(r, now.Add(200*365*24*time.Hour)) != NoAnomaly)
			}
		})
	}
	require.Empty(t, NoAnomaly.Sentence())
}

func TestARowOfASetEndsByTheLatestOfItsOwnAndTheMastersDeadline(t *testing.T) {
	t.Parallel()
	row := func(status Status, deadline Instant) *Reservation {
		r := running()
		r.ID, r.Status, r.ExpiresAt = "master", status, deadline
		return &r
	}
	for name, tc := range map[string]struct {
		masterID string
		master   *Reservation
		want     Instant // NULL: unknown
	}{
		"no master named":                 {"", row(Active, in(9*time.Hour)), in(time.Hour)},
		"its own master":                  {"worker", row(Active, in(9*time.Hour)), in(time.Hour)},
		"no such master":                  {"master", nil, in(time.Hour)},
		"master later":                    {"master", row(Active, in(2*time.Hour)), in(2 * time.Hour)},
		"master earlier":                  {"master", row(Active, ago(time.Minute)), in(time.Hour)},
		"cancelled master later":          {"master", row(Cancelled, in(2*time.Hour)), in(2 * time.Hour)},
		"live master without deadline":    {"master", row(Active, Instant{}), Instant{}},
		"master still preparing":          {"master", row(Preparing, Instant{}), Instant{}},
		"live master, infinite deadline":  {"master", row(Active, Infinity()), Instant{}},
		"master of unknown status":        {"master", row("", Instant{}), Instant{}},
		"failed master without deadline":  {"master", row(Failed, Instant{}), in(time.Hour)},
		"expired master, absurd deadline": {"master", row(Expired, Infinity()), in(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := running()
			own.ID, own.MasterID = "worker", tc.masterID
			deadline, anomaly := EffectiveDeadline(own, tc.master, now)
			if want, known := tc.want.Time(); known {
				require.Equal(t, NoAnomaly, anomaly)
				require.Equal(t, want, deadline)
				return
			}
			require.Equal(t, MasterDeadlineUnsound, anomaly)
			require.NotEmpty(t, anomaly.Sentence())
		})
	}
}

func TestOverdueMeansActiveAndPastDeadlineAndGrace(t *testing.T) {
	t.Parallel()
	r := running()
	r.ExpiresAt = ago(2 * time.Minute)
	require.False(t, Overdue(r, nil, now, 2*time.Minute), "at the last moment of grace")
	require.True(t, Overdue(r, nil, now.Add(time.Microsecond), 2*time.Minute))
	for _, status := range []Status{Pending, Queued, Preparing, Expired, Cancelled, Failed, "", "Active"} {
		r.Status = status
		require.False(t, Overdue(r, nil, now.Add(time.Hour), 2*time.Minute), status)
	}
}

func drawInstant(t *rapid.T, label string) Instant {
	switch rapid.IntRange(0, 9).Draw(t, label+" shape") {
	case 0:
		return Instant{}
	case 1:
		return Infinity()
	case 2:
		return PastInfinity()
	case 3:
		return At(time.Date(rapid.IntRange(-4000, 20_000).Draw(t, label+" year"), 6, 1, 0, 0, 0, 0, time.UTC))
	default:
		return At(now.Add(time.Duration(rapid.Int64Range(-int64(72*time.Hour), int64(72*time.Hour)).Draw(t, label))))
	}
}

func drawReservation(t *rapid.T, id string) Reservation {
	return Reservation{
		ID:         id,
		Status:     rapid.SampledFrom([]Status{Pending, Queued, Preparing, Active, Active, Active, Expired, Cancelled, Failed, "", "odd"}).Draw(t, id+" status"),
		CreatedAt:  drawInstant(t, id+" created"),
		LaunchedAt: drawInstant(t, id+" launched"),
		ExpiresAt:  drawInstant(t, id+" expires"),
		UpdatedAt:  drawInstant(t, id+" updated"),
		MasterID:   rapid.SampledFrom([]string{"", "worker", "master"}).Draw(t, id+" master"),
	}
}

func TestNothingEndsBeforeItsDeadlineAndGraceNorItsMasters(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		own, grace := drawReservation(t, "worker"), time.Duration(rapid.IntRange(0, 7200).Draw(t, "grace"))*time.Second
		var master *Reservation
		if rapid.Bool().Draw(t, "master exists") {
			m := drawReservation(t, "master")
			master = &m
		}
		if !Overdue(own, master, now, grace) {
			return
		}
		deadline, ok := own.ExpiresAt.Time()
		if !ok || own.Status != Active || !deadline.Add(grace).Before(now) {
			t.Fatalf("ended before its own deadline and grace: %+v", own)
		}
		if master == nil || own.MasterID != "master" {
			return
		}
		deadline, ok = master.ExpiresAt.Time()
		if master.Status.Live() && (!ok || !deadline.Add(grace).Before(now)) {
			t.Fatalf("ended before its live master's deadline and grace: %+v", master)
		}
	})
}

func TestExtendingNeverBringsAnEndForward(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		own, master := drawReservation(t, "worker"), drawReservation(t, "master")
		before := Overdue(own, &master, now, time.Minute)
		extend := rapid.SampledFrom([]*Reservation{&own, &master}).Draw(t, "who")
		at, ok := extend.ExpiresAt.Time()
		if !ok || DeadlineAnomaly(*extend, now) != NoAnomaly { // giving sense to a senseless deadline is no extension
			return
		}
		extend.ExpiresAt = At(at.Add(time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "by"))))
		if !before && Overdue(own, &master, now, time.Minute) {
			t.Fatal("an extension ended the reservation")
		}
	})
}
