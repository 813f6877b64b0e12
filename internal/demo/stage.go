package main

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// scenario sets something up on a stage, says what must be true in the end, and what happens meanwhile.
type scenario func(s *stage)

// stage is where one scenario is set up. After the first error its methods do nothing.
type stage struct {
	*platform.Platform
	service  *service
	ctx      context.Context //nolint:containedctx // of the set-up, which the scenarios are written without
	subjects []*subject
	events   []*happening
	err      error
}

// subject is a row of the table: a reservation, a disk or a pod.
type subject struct {
	*platform.Server
	stage  *stage
	title  string
	hidden bool     // it is no row of the table
	letter bool     // it is the event that the broker gave up on
	rows   string   // its rows as they were at the start
	kept   []string // snapshots, in the order they were made
	checks []check
}

// check is one expectation: holds returns nil, or an error that says what is the case instead.
type check struct {
	what  string
	holds func(ctx context.Context, r *subject) error
}

// happening is what somebody else does once it is time.
type happening struct {
	what string
	due  func(ctx context.Context) (bool, error)
	do   func(ctx context.Context) error
	said string // what came of it, in words
	done bool
}

// setAll sets up all scenarios, several at a time, and returns their stages in order.
func setAll(ctx context.Context, p *platform.Platform, service *service, scenarios []scenario) ([]*stage, error) {
	stages := make([]*stage, len(scenarios))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, set := range scenarios {
		stages[i] = &stage{Platform: p, service: service, ctx: ctx}
		group.Go(func() error {
			set(stages[i])
			return stages[i].failure()
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return stages, nil
}

func (s *stage) failure() error {
	if s.err == nil {
		return nil
	}
	return fmt.Errorf("set up %q: %w", s.subjects[len(s.subjects)-1].title, s.err)
}

func (s *stage) try(do func(ctx context.Context) error) {
	if s.err == nil {
		s.err = do(s.ctx)
	}
}

// add makes a subject that is no reservation.
func (s *stage) add(title string, server platform.Server) *subject {
	r := &subject{stage: s, title: title, Server: &server}
	s.subjects = append(s.subjects, r)
	return r
}

// reserve writes a reservation.
func (s *stage) reserve(title string, row platform.Reservation) *subject {
	r := s.add(title, platform.Server{})
	row.Name = title
	s.try(func(ctx context.Context) error {
		server, err := s.Reserve(ctx, row)
		*r.Server = server
		return err
	})
	return r
}

// expect adds expectations.
func (r *subject) expect(checks ...check) { r.checks = append(r.checks, checks...) }

// onDisk makes and attaches the volume of its disk.
func (r *subject) onDisk() *subject {
	r.stage.try(func(ctx context.Context) error { return r.stage.AttachDisk(ctx, r.Server) })
	return r
}

// running starts its server.
func (r *subject) running() *subject {
	r.stage.try(func(ctx context.Context) error { return r.stage.Start(ctx, r.Server) })
	return r
}

// sh runs a command in its server.
func (r *subject) sh(command string) *subject {
	r.stage.try(func(ctx context.Context) error {
		_, err := r.stage.ExecInPod(ctx, r.Pod, "sh", "-c", command)
		return err
	})
	return r
}

// also does something more to it.
func (r *subject) also(do func(ctx context.Context) error) *subject {
	r.stage.try(do)
	return r
}

// meanwhile has somebody do something as soon as it is due.
func (s *stage) meanwhile(what string, due func(ctx context.Context) (bool, error), do func(ctx context.Context) error) {
	s.events = append(s.events, &happening{what: what, due: due, do: do})
}

// operate has an operator run one of the service's own commands as soon as a query, whose $1 is id, says "true".
func (s *stage) operate(what, id, due string, args func(ctx context.Context) ([]string, error)) {
	h := &happening{what: what}
	h.due = func(ctx context.Context) (bool, error) {
		yes, err := s.Text(ctx, due, id)
		return yes == "true", err
	}
	h.do = func(ctx context.Context) error {
		words, err := args(ctx)
		if err == nil {
			h.said, err = s.service.command(ctx, words...)
			h.said, _, _ = strings.Cut(h.said, " {") // JSON is for others
		}
		return err
	}
	s.events = append(s.events, h)
}

// failing checks all expectations of all subjects, several at a time. It returns, for those subjects of which not all
// hold, an error or nil for each.
func failing(ctx context.Context, subjects []*subject) map[*subject][]error {
	var mu sync.Mutex
	found := map[*subject][]error{}
	var group errgroup.Group
	group.SetLimit(8)
	for _, r := range subjects {
		group.Go(func() error {
			errs := make([]error, len(r.checks))
			bad := false
			for i, c := range r.checks {
				errs[i] = c.holds(ctx, r)
				bad = bad || errs[i] != nil
			}
			if bad {
				mu.Lock()
				defer mu.Unlock()
				found[r] = errs
			}
			return nil
		})
	}
	_ = group.Wait()
	return found
}
