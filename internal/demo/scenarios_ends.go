package main

import (
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// Reservations that end.

// Past its end and grace, without a disk: there is nothing to keep.
func expired(s *stage) {
	s.reserve("ended, without a disk", platform.Reservation{User: "ivan", EndsIn: -time.Minute}).running().
		expect(is("expired"), podGone, serviceGone, step("final_notice", "done"), cleanup("nothing_to_keep"),
			facts("reservation.expired", "reservation.cleanedUp"))
}
