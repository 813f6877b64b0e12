package sweep

import (
	"context"
	"fmt"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// Forecast is how many reservations the next tick will end by what the database says now, as if it were not paused:
// pods that were missing are taken to be missing still. What else the cluster will tell is not in it.
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
	ending := make(map[string]bool)
	for _, pt := range []part{deadlines(s.store, s.opts.Grace), stuck(s.store)} {
		pl, err := pt.plan(ctx, p)
		if err != nil {
			return Forecast{}, fmt.Errorf("look ahead: %w", err)
		}
		for _, d := range pl.decisions {
			ending[d.ReservationID] = true
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
	missing, err := s.forecastMissing(ctx, p, ending)
	if err != nil {
		return Forecast{}, fmt.Errorf("look ahead: %w", err)
	}
	f.Expire += missing
	f.Brake = p.brake.report()
	return f, nil
}

// forecastMissing returns how many reservations will expire because their pod, missing so far, is missing still. ending
// are those that end for another reason.
func (s *Sweeper) forecastMissing(ctx context.Context, p *pass, ending map[string]bool) (int, error) {
	active, err := s.store.ActiveReservations(ctx, nil)
	if err != nil {
		return 0, err
	}
	before, err := s.store.MissingEnded(ctx, p.now.Add(-reservation.BrakeMemory))
	if err != nil {
		return 0, err
	}
	absent, confirmed := 0, 0
	for _, r := range active {
		if ending[r.ID] || !reservation.MissingEligible(r.Reservation, p.now) {
			continue
		}
		switch missingVerdict(r, p.now, s.opts.MissingConfirm) {
		case reservation.MissingConfirmed:
			confirmed++
			absent++
		case reservation.MissingWaiting:
			absent++
		case reservation.MissingNoted, reservation.MissingIgnored: // nothing is known of it
		}
	}
	if !p.brake.pods(0, absent, before) {
		return 0, nil
	}
	return min(confirmed, confirmationsMost), nil
}
