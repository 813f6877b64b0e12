package cleanup_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// TestADeliveryMayDieAnywhere kills a delivery before and after each of its calls and lets the next ones go on: the end
// must be that of a delivery which lived.
func TestADeliveryMayDieAnywhere(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	whole := newWorldIn(t, shelf)
	whole.stand(t)
	whole.request(t)
	var begun, answered atomic.Int32
	whole.before = func(string) error { begun.Add(1); return nil }
	whole.after = func(string) error { answered.Add(1); return nil }
	whole.deliver(t.Context(), t)
	want := whole.state()
	require.Equal(t, postgres.OutcomeReleased, whole.outcome(t))

	type point struct {
		when string
		k    int
	}
	var points []point
	for k := range int(begun.Load()) {
		points = append(points, point{"before", k})
	}
	for k := range int(answered.Load()) {
		points = append(points, point{"after", k})
	}
	for _, p := range stacktest.CrashPoints(t, points, 18) {
		t.Run(fmt.Sprintf("%s call %d", p.when, p.k+1), func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.request(t)
			ctx, kill := context.WithCancel(t.Context())
			defer kill()
			n := 0
			var mu sync.Mutex
			die := func(string) error {
				mu.Lock()
				defer mu.Unlock()
				if n++; n == p.k+1 {
					kill()
				}
				return ctx.Err()
			}
			if p.when == "before" {
				w.before = die
			} else {
				w.after = die
			}
			w.deliver(ctx, t)
			require.NotEqual(t, postgres.OutcomeReleased, outcomeOr(t, w), "it was killed")

			w.before, w.after = nil, nil
			w.deliver(t.Context(), t)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t), "%s", w.steps(t))
			wantState := want
			if !strings.Contains(w.state(), id+".txt") {
				require.Contains(t, w.step(t, postgres.StepListing), "missing", "only a listing may be missing")
				wantState = strings.Replace(want, "alice/default/"+id+".txt", "", 1)
			}
			require.Equal(t, wantState, w.state())
			require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
			require.Equal(t, 1, read[int](t, w, "select count(*)::int from expiry.follow_ups where kind = 'availability.update'"))
		})
	}
}

func outcomeOr(t *testing.T, w *world) string {
	t.Helper()
	if w.facts(t, event.ReservationCleanedUp) > 0 {
		return postgres.OutcomeReleased
	}
	return "open"
}

func (w *world) steps(t *testing.T) string {
	t.Helper()
	var all []string
	for _, s := range postgres.Steps() {
		all = append(all, fmt.Sprintf("%s %s", s, w.step(t, s)))
	}
	return strings.Join(all, "\n")
}

func TestDeliveriesAtOnceCleanUpOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			_, err := w.runner.Run(t.Context(), postgres.Cleanup, id)
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
	deletions := 0
	for _, call := range w.calls {
		if call == "delete pod "+podKey {
			deletions++
		}
	}
	require.Equal(t, 1, deletions)
}

// TestTwoDeliveriesThatBothBelieveTheyHoldTheLeaseDoNoHarm is what a stalled process looks like when it wakes up.
func TestTwoDeliveriesThatBothBelieveTheyHoldTheLeaseDoNoHarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			_, err := w.action.Handle(t.Context(), postgres.FollowUp{Kind: postgres.Cleanup, Key: id, ReservationID: id})
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
	require.Equal(t, []string{"gpu-dev/gpu-dev-other"}, keys(w.pods))
}
