package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

func TestTheForecastCountsWhatIsMissingAndWillBeConfirmed(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	confirm := func(o *Options) { asConfigured(o); o.MissingConfirm = 4 * time.Minute }
	ahead := func() Forecast {
		t.Helper()
		f, err := w.sweeper(confirm).Forecast(t.Context())
		require.NoError(t, err)
		return f
	}
	for range 40 {
		w.active(c, nil)
	}
	w.lost(4, "lost")
	both := w.insert(row{"launched_at": ago(90 * 24 * time.Hour)})[0]
	w.within(c, confirm)
	w.exec("insert into expiry.missing_pods (reservation_id, first_seen_at, last_seen_at, ended_at) select 'before', at, at, at from (select now() - interval '30 minutes' as at) s")
	require.Zero(t, ahead().Ending(), "too short a time")
	require.Equal(t, 5, ahead().Brake.Missing)
	require.Equal(t, 1, ahead().Brake.MissingBefore)

	w.ageAbsences(5 * time.Minute)
	w.lost(1, "new")
	w.exec("update reservations set expires_at = clock_timestamp() - interval '1 hour' where reservation_id = $1", both)
	f := ahead()
	require.Equal(t, Forecast{Expire: 5, Brake: f.Brake}, f, "what ends for two reasons ends once")

	w.lost(10, "more")
	w.within(c, func(o *Options) { confirm(o); o.BrakePercent = 0; o.BrakeMin = 0 })
	f = ahead()
	require.Equal(t, reservation.BrakeMissing, f.Brake.State)
	require.Zero(t, f.Expire, "the brake will hold them")

	_, err := w.db.Pause(t.Context(), "to look", 0)
	require.NoError(t, err)
	require.Equal(t, 15, ahead().Brake.Missing)
	_, err = w.db.Resume(t.Context())
	require.NoError(t, err)
	r, err := New(w.db, Outside{Cluster: c}, testOptions()).Sweep(t.Context(), event.Ping, event.SweepRequest{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, f.Brake.Missing, r.Brake.Missing, "as the sweep itself will find them")
}

func TestTheDatabasesClockIsTakenToBeReadHalfwayBetweenTwoLooksAtThisMachines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var took time.Duration
	f, err := w.sweeper(func(o *Options) {
		o.Now = func() time.Time { now := time.Now().Add(took); took += 200 * time.Second; return now }
	}).Forecast(t.Context())
	require.NoError(t, err)
	require.InDelta(t, -100, f.Brake.ClockSkewSeconds, 50)
}

func TestADryRunTellsOfWhatEndsForTwoReasonsOnce(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	confirm := func(o *Options) { asConfigured(o); o.MissingConfirm = 4 * time.Minute }
	w.active(c, nil)
	both := w.insert(nil)[0]
	w.within(c, confirm)
	w.ageAbsences(5 * time.Minute)
	w.exec("update reservations set expires_at = clock_timestamp() - interval '1 hour' where reservation_id = $1", both)
	o := testOptions()
	confirm(&o)
	r, err := New(w.db, Outside{Cluster: c}, o).Sweep(t.Context(), event.Ping, event.SweepRequest{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, []Action{Expire}, actionsOf(r, both))
	require.Equal(t, 1, r.Brake.Overdue)
	require.Zero(t, r.Brake.Missing)
}
