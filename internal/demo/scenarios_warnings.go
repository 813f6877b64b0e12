package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// Reservations that are warned and go on.

// Far from its end: nobody warns it, and nothing of it changes.
func healthy(s *stage) {
	s.reserve("hours to go", platform.Reservation{User: "ada", EndsIn: 3 * time.Hour}).running().
		expect(is("active"), neverWarned, neverAnnounced, podStays, untouched)
}

// 25 minutes to go: the first warning is due.
func warnedAt30(s *stage) {
	s.reserve("25 minutes to go", platform.Reservation{User: "bob", EndsIn: 25 * time.Minute}).running().
		expect(is("active"), warned("30"), flagged(`{"time": true, "30min_warning_sent": true}`),
			file("WARN_EXPIRES_IN_30MIN.txt", "no persistent disk", "gpu-dev edit"), tellsWhen("WARN_EXPIRES_IN_30MIN.txt"),
			facts("reservation.warned"), podStays)
}

// 12 minutes to go, an older warning lies there: the one at 15 replaces it, that at 30 is passed over.
func warnedAt15(s *stage) {
	s.reserve("12 minutes to go", platform.Reservation{User: "cleo", EndsIn: 12 * time.Minute}).running().
		sh("echo old >/home/dev/WARN_EXPIRES_IN_30MIN.txt").
		expect(warned("15"), passedOver("30"), tellsWhen("WARN_EXPIRES_IN_15MIN.txt"),
			onlyWarning("WARN_EXPIRES_IN_15MIN.txt"), facts("reservation.warned"), podStays)
}

// 4 minutes to go: the most urgent level alone is sent; the text says that the disk is kept.
func warnedAt5(s *stage) {
	s.reserve("4 minutes to go, with a disk", platform.Reservation{User: "dora", Disk: "home", EndsIn: 4 * time.Minute}).onDisk().running().
		expect(warned("5"), passedOver("30, 15"), file("WARN_EXPIRES_IN_5MIN.txt", `your disk "home"`),
			tellsWhen("WARN_EXPIRES_IN_5MIN.txt"), podStays, volumeAttached, facts("reservation.warned"))
}

// Warned at 5, then its user extends by a quarter of an hour: a warning belongs to one deadline, so it is warned anew.
func extended(s *stage) {
	r := s.reserve("extended after its warning", platform.Reservation{User: "eve", EndsIn: 4 * time.Minute}).running()
	r.expect(is("active"), warned("5, 15"), flagged(`{"time": true, "15min_warning_sent": true}`),
		tellsWhen("WARN_EXPIRES_IN_15MIN.txt"), onlyWarning("WARN_EXPIRES_IN_15MIN.txt"),
		facts("reservation.warned", "reservation.warned"), podStays)
	s.meanwhile("eve extends her reservation to 14 minutes from now",
		func(ctx context.Context) (bool, error) {
			sent, err := s.Text(ctx, "select warnings_sent->>'5min_warning_sent' from reservations where reservation_id = $1", r.ID)
			return sent == "true", err
		},
		func(ctx context.Context) error { return s.Extend(ctx, r.ID, 14*time.Minute) })
}

// A container ran out of memory and was started again: counted once, its user is told, the reservation goes on.
func outOfMemory(s *stage) {
	r := s.reserve("out of memory, restarted", platform.Reservation{User: "finn", EndsIn: 2 * time.Hour}).running()
	r.also(func(ctx context.Context) error {
		return s.SetPodStatus(ctx, r.Pod, func(status *corev1.PodStatus) {
			c := &status.ContainerStatuses[0]
			c.RestartCount = 1
			c.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
				Reason: "OOMKilled", ExitCode: 137, ContainerID: c.ContainerID + "-0", FinishedAt: metav1.NewTime(time.Now().Add(-time.Minute))}
		})
	}).expect(is("active"),
		equals("it is counted once", "select concat(oom_count, ' ', oom_container, ' ', last_oom_at is not null) from reservations where reservation_id = $1", "1 gpu-dev t"),
		file("OOM_DETECTED.txt", "OOMKilled", "gpu-dev"), facts("reservation.oomkilled"), podStays)
}

// No deadline at all: reported with every sweep, never ended.
func noDeadline(s *stage) {
	null := ""
	s.reserve("its deadline is NULL", platform.Reservation{User: "gil", Deadline: &null}).running().
		expect(is("active"), reported("deadline_null"), neverAnnounced, podStays, untouched)
}

// A deadline long before the platform existed is a mistake, not a date.
func absurdDeadline(s *stage) {
	long := "1970-01-01 00:00:00Z"
	s.reserve("its deadline is in 1970", platform.Reservation{User: "hana", Deadline: &long}).running().
		expect(is("active"), reported("deadline_too_old"), neverAnnounced, podStays, untouched)
}
