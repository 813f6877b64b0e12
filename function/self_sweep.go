package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
)

// lookForSweeps is how often a process that is awake looks whether a sweep is due.
const lookForSweeps = 15 * time.Second

// selfSweeper posts this process the sweep that is due, where no PingSource does: at once when it starts, since that
// may be what it was started for, and now and then while it is awake. Who else does the same finds the lease taken.
type selfSweeper struct {
	due   func(ctx context.Context) (bool, error)
	build event.Builder
	self  dispatch.Sender
	log   *slog.Logger
	every time.Duration
	newID func() string
}

func newSelfSweeper(due func(context.Context) (bool, error), build event.Builder, self dispatch.Sender, log *slog.Logger) *selfSweeper {
	return &selfSweeper{due: due, build: build, self: self, log: log, every: lookForSweeps, newID: uuid.NewString}
}

// run ends with ctx; a sweep under way is then given as long as any other delivery.
func (s *selfSweeper) run(ctx context.Context) {
	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(cutOffAfter, cut) })
	defer stop()
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.look(ctx, sending)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (s *selfSweeper) look(ctx, sending context.Context) {
	due, err := s.due(ctx)
	switch {
	case ctx.Err() != nil || (err == nil && !due):
		return
	case err == nil:
		err = s.post(sending)
	}
	if err != nil {
		s.log.WarnContext(ctx, "no sweep now; it is looked at again", "error", err)
	}
}

func (s *selfSweeper) post(ctx context.Context) error {
	e, err := s.build.SweepRequested(s.newID())
	if err != nil {
		return err
	}
	return s.self.Send(ctx, e)
}
