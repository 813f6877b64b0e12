package sweep

import (
	"context"
	"errors"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// keepLease renews the lease until stop is called. The context it returns ends as soon as the lease is lost or might
// be, with postgres.ErrLeaseLost as its cause: no outside call can outlast it. taken is a moment before the lease was
// taken, by this machine's monotonic clock.
func (s *Sweeper) keepLease(ctx context.Context, lease postgres.SweepLease, taken time.Time) (held context.Context, stop func()) {
	held, cancel := context.WithCancelCause(ctx)
	safe := s.opts.LeaseFor - s.opts.LeaseFor/10 // the database's clock may run a little faster
	expiry := time.AfterFunc(time.Until(taken.Add(safe)), func() { cancel(postgres.ErrLeaseLost) })
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		ticker := time.NewTicker(s.opts.RenewEvery)
		defer ticker.Stop()
		for {
			select {
			case <-held.Done():
				return
			case <-ticker.C:
			}
			asked := time.Now()
			switch err := s.store.RenewSweep(held, lease, s.opts.LeaseFor); {
			case err == nil:
				expiry.Reset(time.Until(asked.Add(safe)))
			case errors.Is(err, postgres.ErrLeaseLost):
				cancel(err)
			case held.Err() == nil: // the next tick tries again, until the lease ends
				s.opts.Log.WarnContext(held, "the sweep's lease was not renewed", "error", err)
			}
		}
	}()
	return held, func() {
		expiry.Stop()
		cancel(context.Canceled)
		<-finished
	}
}
