package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// nothing expects a query to find nothing wrong.
func nothing(what, query string) check {
	return check{what, func(ctx context.Context, r *subject) error {
		wrong, err := r.stage.Text(ctx, query)
		return wrongly(wrong, err)
	}}
}

func wrongly(wrong string, err error) error {
	if err == nil && wrong != "" {
		err = errors.New("not so: " + wrong)
	}
	return err
}

// The service as a whole.
func whole(s *stage) {
	r := s.add("the service as a whole", platform.Server{})
	r.hidden = true
	r.expect(
		nothing("every sweep did all its work", `
			select string_agg(concat_ws(' ', outcome, failures), '; ') from expiry.sweeps where finished_at is not null and outcome <> 'completed'`),
		nothing("every sweep reports what makes no sense, and nothing else", `
			select string_agg(distinct a->>'kind', ', ') from expiry.sweeps, jsonb_array_elements(anomalies) a
			where a->>'kind' not in ('deadline_null', 'deadline_too_old')`),
		nothing("no cleanup is open", "select string_agg(reservation_id, ', ') from expiry.cleanups where settled_at is null"),
		nothing("nothing is due and nothing fails", `
			select string_agg(concat_ws(' ', kind, key, last_error), '; ') from expiry.follow_ups where state = 'due'`),
		nothing("the announcements of each reservation are numbered without a gap", `
			select string_agg(subject, ', ') from (
			    select subject from expiry.facts group by subject having min(sequence) <> 1 or max(sequence) <> count(*)) gaps`),
		nothing("no snapshot is pending or lost", `
			select string_agg(concat_ws(' ', snapshot_id, state, detail), '; ') from expiry.snapshots where state not in ('completed', 'purged')`),
		check{"the platform was asked to count its free GPUs anew", func(ctx context.Context, r *subject) error {
			_, err := s.count(ctx, "lambda:POST /2015-03-31/functions/"+s.Function+"/invocations")
			return err
		}},
	)
}

// count returns how often an AWS call was made, which is an error where it was not.
func (s *stage) count(ctx context.Context, action string) (int, error) {
	calls, err := s.Calls(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, c := range calls {
		if c.Action == action {
			n++
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("%s was never called in %s calls", action, strconv.Itoa(len(calls)))
	}
	return n, nil
}
