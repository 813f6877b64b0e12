package sweep

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

func TestTheBrake(t *testing.T) {
	t.Parallel()
	missing := func(n int, allowed *int) part {
		return part{name: "missing", new: true, plan: func(_ context.Context, p *pass) (plan, error) {
			*allowed = p.brake.pods(0, n)
			return plan{}, nil
		}}
	}
	for name, tc := range map[string]struct {
		active, overdue, missing int
		skew                     time.Duration
		expired, allowed         int
		state                    reservation.BrakeState
	}{
		"few end":                                  {active: 100, overdue: 10, missing: 10, expired: 10, allowed: 10, state: reservation.BrakeReleased},
		"too many together":                        {active: 100, overdue: 11, missing: 10, expired: 11, allowed: 0, state: reservation.BrakeMissing},
		"many deadlines alone":                     {active: 100, overdue: 90, expired: 90, state: reservation.BrakeReleased},
		"many deadlines and the clocks disagree":   {active: 100, overdue: 90, missing: 1, skew: 61 * time.Second, state: reservation.BrakeAll},
		"many deadlines and the clock lags behind": {active: 100, overdue: 90, skew: -61 * time.Second, state: reservation.BrakeAll},
		"the clocks disagree a little":             {active: 100, overdue: 90, skew: 55 * time.Second, expired: 90, state: reservation.BrakeReleased},
		"few deadlines and the clocks disagree":    {active: 100, overdue: 20, skew: time.Hour, expired: 20, state: reservation.BrakeReleased},
		"a small platform":                         {active: 6, overdue: 3, missing: 2, expired: 3, allowed: 2, state: reservation.BrakeReleased},
		"one too many on a small platform":         {active: 7, overdue: 3, missing: 3, expired: 3, allowed: 0, state: reservation.BrakeMissing},
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
			var allowed int
			s.parts = append(s.parts, missing(tc.missing, &allowed))
			r := w.run(s, event.SweepRequest{})
			require.Equal(t, tc.expired, r.Counts["expired"])
			require.Equal(t, tc.allowed, allowed)
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
