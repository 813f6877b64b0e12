package cleanup_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

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
