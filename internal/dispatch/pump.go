package dispatch

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Queue finds follow-ups that are due; *postgres.DB is one.
type Queue interface {
	DispatchDue(ctx context.Context, limit int, askAgain time.Duration) ([]postgres.FollowUp, error)
	NextDispatch(ctx context.Context) (time.Duration, bool, error)
}

const (
	// askAgain is how long an event that was sent keeps a row from being asked for again. It is less than the five
	// minutes between two ticks, so that each of them asks anew for what was lost.
	askAgain = 4 * time.Minute

	shortestWait = 250 * time.Millisecond
	longestWait  = 30 * time.Second
)

// drain hands every row that is due to do, at most limit at a time, until none is and none is under way, or ctx
// ends. It returns when all of do has.
func drain(ctx context.Context, queue Queue, limit int, do func(postgres.FollowUp)) error {
	p := pool{limit: limit, do: do, done: make(chan struct{}, limit)}
	defer p.wait()
	for {
		picked, err := queue.DispatchDue(ctx, limit-p.busy, askAgain)
		if err != nil {
			return err
		}
		p.start(picked)
		if p.busy == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			p.busy--
		}
	}
}

// follow hands rows to do as they become due, at most limit at a time, until ctx ends. It looks when it is woken,
// when a row's time has come, when work has ended, and every half minute. It returns when all of do has.
func follow(ctx context.Context, queue Queue, limit int, wake <-chan struct{}, failed func(error), do func(postgres.FollowUp)) {
	p := pool{limit: limit, do: do, done: make(chan struct{}, limit)}
	defer p.wait()
	for {
		wait := longestWait
		if p.busy < limit {
			picked, err := queue.DispatchDue(ctx, limit-p.busy, askAgain)
			p.start(picked)
			var next time.Duration
			some := false
			if err == nil {
				next, some, err = queue.NextDispatch(ctx)
			}
			if err != nil && ctx.Err() == nil {
				failed(err)
			} else if some {
				wait = min(max(next, shortestWait), longestWait)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.done:
			p.busy--
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pool runs do for several rows at once. It belongs to one goroutine.
type pool struct {
	limit, busy int
	do          func(postgres.FollowUp)
	done        chan struct{} // holds limit, so that no worker waits
}

func (p *pool) start(picked []postgres.FollowUp) {
	for _, f := range picked {
		p.busy++
		go func() {
			defer func() { p.done <- struct{}{} }()
			p.do(f)
		}()
	}
}

func (p *pool) wait() {
	for ; p.busy > 0; p.busy-- {
		<-p.done
	}
}
