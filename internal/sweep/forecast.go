package sweep

import (
	"context"
	"fmt"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Forecast is how many reservations the next tick will end by what the database says now, as if it were not paused.
// What pods and snapshots will tell is not in it.
type Forecast struct {
	Expire int    `json:"expire"`
	Fail   int    `json:"fail"`
	Cancel int    `json:"cancel"`
	Brake  *Brake `json:"brake,omitempty"`
}

// Ending returns how many reservations will end.
func (f Forecast) Ending() int { return f.Expire + f.Fail + f.Cancel }

// Forecast looks ahead to the next tick. It changes nothing and takes no lease.
func (s *Sweeper) Forecast(ctx context.Context) (Forecast, error) {
	_, seen, _, err := s.begin(ctx, "", true)
	if err != nil {
		return Forecast{}, fmt.Errorf("look ahead: %w", err)
	}
	p := s.newPass(postgres.SweepLease{}, seen, nil)
	var f Forecast
	for _, pt := range []part{deadlines(s.store, s.opts.Grace), stuck(s.store)} {
		pl, err := pt.plan(ctx, p)
		if err != nil {
			return Forecast{}, fmt.Errorf("look ahead: %w", err)
		}
		for _, d := range pl.decisions {
			switch d.Action {
			case Expire:
				f.Expire++
			case Fail:
				f.Fail++
			case Cancel:
				f.Cancel++
			}
		}
	}
	f.Brake = p.brake.report()
	return f, nil
}
