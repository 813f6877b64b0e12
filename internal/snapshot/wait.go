package snapshot

import (
	"context"
	"errors"
	"time"
)

// spare is how much of a delivery's time is left for what follows a wait.
const spare = 35 * time.Second

// until looks again and again, for at most patience, until look says true. An error of look is its result only if the
// last look failed too: what fails for a moment is looked at again.
func (w worker) until(ctx context.Context, patience time.Duration, look func(context.Context) (bool, error)) (bool, error) {
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, deadline.Sub(w.opts.Now())-spare)
	}
	end := w.opts.Now().Add(patience)
	for {
		ok, err := look(ctx)
		if ok || !w.opts.Now().Add(w.opts.Interval).Before(end) {
			return ok, err
		}
		if interrupted := w.opts.Sleep(ctx, w.opts.Interval); interrupted != nil {
			return false, errors.Join(err, interrupted)
		}
	}
}

// growing is a pause that grows with what has passed already, between 10 s and under the five minutes between two ticks.
func growing(passed time.Duration) time.Duration {
	return min(max(passed/5, 10*time.Second), 4*time.Minute)
}
