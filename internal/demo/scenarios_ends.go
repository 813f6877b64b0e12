package main

import (
	"context"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// Reservations that end, one way or another, and leave no disk.

// Past its end and grace.
func expired(s *stage) {
	s.reserve("ended, without a disk", platform.Reservation{User: "ivan", EndsIn: -time.Minute}).running().
		expect(is("expired"), because("its time ended"), podGone, serviceGone, step("final_notice", "done"), cleanup("nothing_to_keep"),
			facts("reservation.expired", "reservation.cleanedUp"))
}

// A name in DNS and a place behind the load balancer go with the server; other names stay.
func expiredWithNames(s *stage) {
	r := s.reserve("ended, with a domain", platform.Reservation{User: "jack", Domain: "brave-otter", EndsIn: -time.Minute}).running()
	other := s.reserve("lives on, with a domain", platform.Reservation{User: "kim", Domain: "calm-fox", EndsIn: 5 * time.Hour}).running()
	for _, one := range []*subject{r, other} {
		one.also(func(ctx context.Context) error { return s.Publish(ctx, *one.Server) }).
			also(func(ctx context.Context) error { return s.Route(ctx, one.Server) })
	}
	r.expect(is("expired"), podGone, records(0), routeGone,
		equals("its row in domain_mappings is gone", "select count(*) from domain_mappings where reservation_id = $1", "0"),
		cleanup("nothing_to_keep"), facts("reservation.expired", "reservation.cleanedUp"))
	other.expect(is("active"), records(2), podStays, untouched)
}

// The domain was given to a newer reservation before the old one ended: it is not the old one's to take away.
func domainTakenOver(s *stage) {
	old := s.reserve("ended, its domain taken over", platform.Reservation{User: "lena", Domain: "lucky-lynx", EndsIn: -time.Minute}).running()
	newer := s.reserve("has taken over that domain", platform.Reservation{User: "lena", Domain: "lucky-lynx", EndsIn: 5 * time.Hour}).running()
	for _, one := range []*subject{old, newer} {
		one.also(func(ctx context.Context) error { return s.Publish(ctx, *one.Server) })
	}
	old.expect(is("expired"), podGone, cleanup("nothing_to_keep"))
	newer.expect(is("active"), records(2), podStays, untouched,
		equals("the row in domain_mappings is its own", "select count(*) from domain_mappings where reservation_id = $1", "1"))
}

// A set ends as one, by the latest of the node's own and the master's deadline: a node whose own is past waits. The
// master's ends once both are warned.
func multinode(s *stage) {
	id := uuid.NewString()
	master := s.reserve("a set's master, 4 minutes to go", platform.Reservation{ID: id, User: "mia", EndsIn: 4 * time.Minute, Master: id, Nodes: 2}).running()
	node := s.reserve("its node, past its own end", platform.Reservation{User: "mia", EndsIn: -5 * time.Minute, Master: id, Node: 1, Nodes: 2}).running()
	for _, one := range []*subject{master, node} {
		one.expect(is("expired"), warned("5"), podGone, cleanup("nothing_to_keep"),
			equals("it ended after the master's deadline", `
				select r.reservation_ended > m.expires_at from reservations r
				join reservations m on m.reservation_id = r.master_reservation_id where r.reservation_id = $1`, "true"),
			facts("reservation.warned", "reservation.expired", "reservation.cleanedUp"))
	}
	s.meanwhile("mia's set is cut short and ends now",
		func(ctx context.Context) (bool, error) {
			warned, err := s.Text(ctx, "select bool_and(warnings_sent ? '5min_warning_sent') from reservations where master_reservation_id = $1", id)
			return warned == "true", err
		},
		func(ctx context.Context) error { return s.Extend(ctx, id, 0) })
}

// Preparing for two hours: it failed. What was launched of it goes, its disk is free.
func stuckPreparing(s *stage) {
	r := s.reserve("preparing for 2 hours", platform.Reservation{User: "nils", Status: "preparing", Since: 2 * time.Hour, Disk: "train", EndsIn: 4 * time.Hour})
	r.also(func(ctx context.Context) error { return s.StartPartly(ctx, r.Server) }).
		expect(is("failed"), because("preparing for over an hour"), podGone, serviceGone, cleanup("nothing_to_keep"), diskFree(0),
			facts("reservation.failed", "disk.released", "reservation.cleanedUp"))
}

// Queued for fifty hours: it is cancelled, its disk free.
func stuckQueued(s *stage) {
	s.reserve("queued for 50 hours", platform.Reservation{User: "olga", Status: "queued", Since: 50 * time.Hour, Disk: "papers", EndsIn: 4 * time.Hour}).
		expect(is("cancelled"), because("queued for over 48 hours"), cleanup("nothing_to_keep"), diskFree(0),
			facts("reservation.cancelled", "disk.released", "reservation.cleanedUp"))
}

// Queued since yesterday: that is not long enough.
func queued(s *stage) {
	s.reserve("queued for a day", platform.Reservation{User: "omar", Status: "queued", Since: 24 * time.Hour, EndsIn: 4 * time.Hour}).
		expect(is("queued"), untouched, neverAnnounced)
}

// A spot server whose instance EC2 takes back while we look: missing on two ticks far enough apart, then expired with
// the reason.
func reclaimed(s *stage) {
	r := s.reserve("a spot server, reclaimed", platform.Reservation{User: "pia", GPU: spotServer, EndsIn: 5 * time.Hour})
	r.also(func(ctx context.Context) (err error) {
		r.Node, err = s.AddNode(ctx)
		return err
	}).running()
	r.expect(is("expired"), because("has been missing since", "EC2 reclaimed its spot instance "), cleanup("nothing_to_keep"),
		facts("reservation.expired", "reservation.cleanedUp"))
	s.meanwhile("EC2 takes pia's spot instance back",
		func(ctx context.Context) (bool, error) {
			seen, err := s.Text(ctx, "select count(*) from expiry.pods where reservation_id = $1 and instance_id is not null", r.ID)
			return seen == "1", err
		},
		func(ctx context.Context) error { return s.LoseNode(ctx, *r.Server) })
}

// An active reservation that has no pod at all.
func missingPod(s *stage) {
	s.reserve("its pod is missing", platform.Reservation{User: "quin", EndsIn: 5 * time.Hour}).
		expect(is("expired"), because("has been missing since"), cleanup("nothing_to_keep"), facts("reservation.expired", "reservation.cleanedUp"))
}

// One node of a set is evicted: that one failed, with the kubelet's reason. The other goes on.
func evicted(s *stage) {
	id := uuid.NewString()
	master := s.reserve("a set's master", platform.Reservation{ID: id, User: "rosa", EndsIn: 5 * time.Hour, Master: id, Nodes: 2}).running()
	node := s.reserve("its node, evicted", platform.Reservation{User: "rosa", EndsIn: 5 * time.Hour, Master: id, Node: 1, Nodes: 2, Disk: "node-1"}).
		onDisk().running()
	node.also(func(ctx context.Context) error {
		return s.SetPodStatus(ctx, node.Pod, func(status *corev1.PodStatus) {
			status.Phase, status.Reason, status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory."
		})
	})
	master.expect(is("active"), podStays, untouched)
	node.expect(is("failed"), because("Evicted", "low on resource: memory"), podGone, snapshotted, volumeGone, diskFree(1), cleanup("released"),
		facts("reservation.failed", "disk.snapshotted", "disk.released", "reservation.cleanedUp"))
}

// The platform gave up on a launch and left its half-made pod.
func failedLaunch(s *stage) {
	r := s.reserve("failed, half a pod left", platform.Reservation{User: "sven", Status: "preparing", Since: 10 * time.Minute, EndsIn: 4 * time.Hour})
	r.also(func(ctx context.Context) error { return s.StartPartly(ctx, r.Server) }).
		also(func(ctx context.Context) error { return s.End(ctx, r.ID, "failed", "the image could not be pulled") }).
		expect(is("failed"), because("the image could not be pulled"), podGone, serviceGone, cleanup("nothing_to_keep"), facts("reservation.cleanedUp"))
}

// Two reservations whose ids begin with the same eight digits have pods of one name. The pod is the live one's.
func sameName(s *stage) {
	a, b := uuid.NewString(), uuid.NewString()
	b = a[:8] + b[8:]
	old := s.reserve("cancelled an hour ago", platform.Reservation{ID: a, User: "tess", EndsIn: 2 * time.Hour})
	old.also(func(ctx context.Context) error { return s.End(ctx, a, "cancelled", "cancelled by its user") }).
		also(func(ctx context.Context) error {
			return s.Exec(ctx, "update reservations set reservation_ended = reservation_ended - interval '1 hour' where reservation_id = $1", a)
		}).
		expect(is("cancelled"), cleanup("nothing_to_keep"))
	s.reserve("lives on under the same pod name", platform.Reservation{ID: b, User: "theo", EndsIn: 5 * time.Hour}).running().
		expect(is("active"), podStays, untouched)
}

// A pod that no reservation ever had: it is counted, and left alone.
func strayPod(s *stage) {
	r := s.add("a pod without reservation", platform.Server{ID: "0badcafe-0000-4000-8000-000000000000", User: "nobody", Pod: "gpu-dev-0badcafe"})
	r.running().expect(podStays, check{"every sweep counts it", func(ctx context.Context, _ *subject) error {
		wrong, err := s.Text(ctx, `select string_agg(counts->>'podsWithoutReservation', ',') from expiry.sweeps
			where finished_at is not null and not paused and counts->>'podsWithoutReservation' is distinct from '1'`)
		return wrongly(wrong, err)
	}})
}
