package main

import (
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// Reservations that end and leave a disk.

// Past its end: listing, snapshot, volume gone, disk free.
func expiredWithDisk(s *stage) {
	s.reserve("ended, with a disk", platform.Reservation{User: "judy", Disk: "work", EndsIn: -time.Minute}).onDisk().running().
		sh("mkdir -p /home/dev/project && echo data >/home/dev/project/results.csv").
		expect(is("expired"), podGone, serviceGone, listed("results.csv"), snapshotted, volumeGone, claimGone, diskFree(1),
			cleanup("released"),
			facts("reservation.expired", "disk.snapshotted", "disk.released", "reservation.cleanedUp"))
}
