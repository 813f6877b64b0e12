package sweep

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

func TestTheBrake(t *testing.T) {
	t.Parallel()
	missing := func(n int, allowed *bool) part {
		return part{name: "missing", new: true, plan: func(_ context.Context, p *pass) (plan, error) {
			*allowed = p.brake.pods(0, n, 0)
			return plan{}, nil
		}}
	}
	for name, tc := range map[string]struct {
		active, overdue, missing int
		skew                     time.Duration
		expired                  int
		state                    reservation.BrakeState
	}{
		"few end":                                  {active: 100, overdue: 10, missing: 10, expired: 10, state: reservation.BrakeReleased},
		"too many together":                        {active: 100, overdue: 11, missing: 10, expired: 11, state: reservation.BrakeMissing},
		"many deadlines alone":                     {active: 100, overdue: 90, expired: 90, state: reservation.BrakeReleased},
		"many deadlines and the clocks disagree":   {active: 100, overdue: 90, missing: 1, skew: 61 * time.Second, state: reservation.BrakeAll},
		"many deadlines and the clock lags behind": {active: 100, overdue: 90, skew: -61 * time.Second, state: reservation.BrakeAll},
		"the clocks disagree a little":             {active: 100, overdue: 90, skew: 55 * time.Second, expired: 90, state: reservation.BrakeReleased},
		"few deadlines and the clocks disagree":    {active: 100, overdue: 20, skew: time.Hour, expired: 20, state: reservation.BrakeReleased},
		"a small platform":                         {active: 6, overdue: 3, missing: 2, expired: 3, state: reservation.BrakeReleased},
		"one too many on a small platform":         {active: 7, overdue: 3, missing: 3, expired: 3, state: reservation.BrakeMissing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.insertMany(tc.overdue, "due", ago(time.Hour))
			w.insertMany(tc.active-tc.overdue, "run", ahead(time.Hour))
			s := w.sweeper(func(o *Options) {
				o.BrakePercent, o.BrakeMin = 20, 5
				o.Now = func() time.Time { return time.Now().Add(-tc.skew) }
			})
			var allowed bool
			s.parts = append(s.parts, missing(tc.missing, &allowed))
			r := w.run(s, event.SweepRequest{})
			require.Equal(t, tc.expired, r.Counts["expired"])
			require.Equal(t, tc.state == reservation.BrakeReleased, allowed)
			require.Equal(t, tc.state, r.Brake.State)
			require.Equal(t, tc.state != reservation.BrakeReleased, r.Brake.Reason != "" && r.Brake.Engaged())
			require.Equal(t, fmt.Sprint(r.Brake.Engaged()), w.text("select braked::text from expiry.sweeps"))
			require.InDelta(t, tc.skew.Seconds(), r.Brake.ClockSkewSeconds, 5)
			if tc.state == reservation.BrakeAll {
				require.Equal(t, tc.overdue, r.Counts["expiriesHeldBack"])
				require.Empty(t, w.followUps())
			}
		})
	}
}

// lost inserts n active reservations without a pod, each with a pod name of its own.
func (w *world) lost(n int, prefix string) {
	w.t.Helper()
	w.insertMany(n, prefix, ahead(4*time.Hour))
	w.exec("update reservations set pod_name = 'gpu-dev-' || reservation_id where reservation_id like $1 || '-%'", prefix)
}

func (w *world) ended() string {
	w.t.Helper()
	return w.text("select count(*)::text from reservations where status = 'expired'")
}

func asConfigured(o *Options) { o.BrakePercent, o.BrakeMin = 20, 5 }

func TestTheBrakeCountsEveryAbsenceAndNotOnlyWhatOneSweepCanConfirm(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	const all = confirmationsMost * 8
	w.lost(all, "lost")
	for range 10 { // more than it takes to confirm them all
		r := w.within(c, asConfigured)
		require.Equal(t, reservation.BrakeMissing, r.Brake.State)
		require.Equal(t, all, r.Brake.Missing)
		require.Equal(t, "0", w.ended())
		w.ageAbsences(5 * time.Minute)
	}
	require.Equal(t, strconv.Itoa(all), w.text("select count(*)::text from expiry.missing_pods"), "all were asked for")
}

func TestPodsThatVanishAFewAtATimeAreBrakedLikeAllAtOnce(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	const all, each = 200, 10
	for range all {
		w.active(c, nil)
	}
	var last Result
	for range all / each {
		for i, left := 0, slices.Collect(maps.Keys(c.pods)); i < each; i++ {
			delete(c.pods, left[i])
		}
		last = w.within(c, asConfigured)
		w.ageAbsences(5 * time.Minute)
	}
	require.True(t, last.Brake.Engaged())
	ended, err := strconv.Atoi(w.ended())
	require.NoError(t, err)
	require.Positive(t, ended, "the first few look like any others")
	require.LessOrEqual(t, ended, all/5)
	require.Equal(t, ended, last.Brake.MissingBefore)
	require.Contains(t, last.Brake.Reason, fmt.Sprintf("of %d active reservations", all))

	w.exec("update expiry.missing_pods set ended_at = ended_at - interval '2 hours'")
	require.Zero(t, w.within(c, asConfigured).Brake.MissingBefore)
	require.Empty(t, w.texts("select reservation_id from expiry.missing_pods where ended_at is not null"), "forgotten after an hour")
}
