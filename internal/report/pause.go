package report

import (
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// utc is the pause with its times in UTC.
func utc(p *postgres.Pause) *postgres.Pause {
	if p == nil {
		return nil
	}
	view := postgres.Pause{At: p.At.UTC(), Why: p.Why}
	if p.Until != nil {
		view.Until = known(*p.Until)
	}
	return &view
}

func pausedWords(p postgres.Pause, now time.Time) string {
	until := "until resumed"
	if p.Until != nil {
		until = "until " + clock(*p.Until, now) + ", " + relative(*p.Until, now)
	}
	return fmt.Sprintf("since %s, %s: %s", when(p.At, now), until, clean(p.Why))
}

// Until says how long a pause that was just begun lasts, and why.
func Until(p postgres.Pause) string {
	until := "until resumed"
	if p.Until != nil {
		until = "until " + clock(*p.Until, p.At) + ", for " + span(p.Until.Sub(p.At))
	}
	return until + ": " + clean(p.Why)
}

// Ahead says how many reservations a tick will end, by what the database says of deadlines and of missing pods.
func Ahead(f sweep.Forecast) string {
	n := f.Ending()
	if n == 0 {
		return "no reservation will end"
	}
	var how []string
	for _, one := range []struct {
		n    int
		what string
	}{{f.Expire, "expire"}, {f.Fail, "fail"}, {f.Cancel, "be cancelled"}} {
		if one.n > 0 {
			how = append(how, fmt.Sprintf("%d will %s", one.n, one.what))
		}
	}
	return number(n, "reservation") + " will end: " + sentence(how...)
}

// Braking says what the brake makes of that, and is empty where it says nothing.
func Braking(f sweep.Forecast) string {
	if f.Brake == nil {
		return ""
	}
	return clean(f.Brake.Reason)
}
