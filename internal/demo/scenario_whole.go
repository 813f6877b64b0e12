package main

import (
	"context"
	"errors"
	"slices"
	"strings"

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
		check{"all that was announced has come in at FACTS_SINK, in order", func(ctx context.Context, _ *subject) error {
			ids, err := s.Text(ctx, "select string_agg(fact_id::text, ' ') from expiry.facts")
			return wrongly(list(s.service.announced.missing(strings.Fields(ids))), err)
		}},
		check{"the platform was asked to count its free GPUs anew", func(ctx context.Context, _ *subject) error {
			calls, err := s.Calls(ctx)
			if err == nil && !slices.ContainsFunc(calls, func(c platform.Call) bool {
				return c.Action == "lambda:POST /2015-03-31/functions/"+s.Function+"/invocations"
			}) {
				err = errors.New("it was not")
			}
			return err
		}},
		check{"a further sweep would do nothing", func(ctx context.Context, _ *subject) error {
			planned, err := dryRun(ctx, s.service.url+"/")
			return wrongly(list(planned), err)
		}},
	)
}
