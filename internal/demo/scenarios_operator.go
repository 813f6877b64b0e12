package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// What the service does not do by itself, and what people do about it.

// More pods vanish at once than the brake believes, as when an API server is sick: nobody's reservation ends. Those that
// are missing for reasons of their own have ended before.
func manyMissing(s *stage) {
	const pods = 6
	var all []*subject
	for i := range pods {
		r := s.reserve(fmt.Sprintf("%d servers vanish at once, the first", pods), platform.Reservation{User: "rack", EndsIn: 5 * time.Hour}).running()
		if i > 0 {
			r.title, r.hidden = fmt.Sprintf("%d servers vanish at once, number %d", pods, i+1), true
		}
		r.expect(is("active"), neverAnnounced, untouched)
		all = append(all, r)
	}
	all[0].expect(
		equals("the last sweep has held back its end, and that of the others", `
			select braked and (counts->>'missingHeldBack')::int = 6 from expiry.sweeps where finished_at is not null and $1 <> ''
			order by started_at desc limit 1`, "true"),
		check{"status says so", func(ctx context.Context, _ *subject) error {
			said, err := s.service.command(ctx, "status")
			return errors.Join(err, contains(said, "6 missing"))
		}})
	s.meanwhile(fmt.Sprintf("the pods of %d servers vanish at once", pods),
		func(ctx context.Context) (bool, error) {
			ended, err := s.Text(ctx, "select bool_and(status = 'expired') from reservations where user_id in ('pia', 'quin')")
			return ended == "true", err
		},
		func(ctx context.Context) error { return s.LosePods(ctx, "rack") })
}

// While an operator has paused the service nothing new is decided; what was begun goes on. Its time ends only once the
// pause holds, however long that takes.
func pausedAtItsEnd(s *stage) {
	r := s.reserve("its time ends during a pause", platform.Reservation{User: "otto", EndsIn: 4 * time.Minute}).running()
	r.expect(is("expired"), podGone, cleanup("nothing_to_keep"), facts("reservation.warned", "reservation.expired", "reservation.cleanedUp"),
		equals("a sweep during the pause left it alone, and the next one after it did not", `
			select bool_or(w.paused and w.started_at > r.expires_at + interval '3 seconds')
			       and r.reservation_ended > max(w.started_at) filter (where w.paused)
			from expiry.sweeps w, reservations r where r.reservation_id = $1 group by r.reservation_ended`, "true"))
	always := func(args ...string) func(context.Context) ([]string, error) {
		return func(context.Context) ([]string, error) { return args, nil }
	}
	s.operate("an operator pauses the service", r.ID, "select warnings_sent->>'5min_warning_sent' from reservations where reservation_id = $1",
		always("pause", "--why", "to have a look", "--for", "10m"))
	s.meanwhile("otto's time is cut short and ends now",
		func(ctx context.Context) (bool, error) {
			paused, err := s.Text(ctx, "select count(*) from expiry.pause")
			return paused == "1", err
		},
		func(ctx context.Context) error { return s.Extend(ctx, r.ID, 0) })
	s.operate("the operator has seen enough", r.ID, `
		select exists (select from expiry.sweeps w where w.paused and w.finished_at is not null and w.started_at > r.expires_at + interval '3 seconds')
		from reservations r where reservation_id = $1`, always("resume"))
}

// The broker gave up on a tick that somebody had posted by hand; an operator sends it again.
func deadLetter(s *stage) {
	r := s.add("an event that the broker gave up on", platform.Server{})
	r.letter = true
	s.try(func(ctx context.Context) error {
		_, err := post(ctx, s.service.url+"/dead-letter", "dev.gpudev.expiry.sweep.requested.v1", `{}`, "*/*",
			"Ce-Knativeerrorcode: 503", "Ce-Knativeerrordest: "+s.service.url+"/")
		return err
	})
	r.expect(nothing("it was taken when it was sent again", "select string_agg(event_id, ', ') from expiry.dead_letters where replayed_at is null"))
	s.operate("an operator sends the dead letter again", "", "select count(*) >= 2 and $1 = '' from expiry.sweeps where finished_at is not null",
		func(ctx context.Context) ([]string, error) {
			id, err := s.Text(ctx, "select min(dead_letter_id) from expiry.dead_letters")
			return []string{"dead-letters", "replay", id}, err
		})
}
