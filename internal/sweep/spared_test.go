package sweep

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestWhatIsLeftAsItIsIsSaidOfEachReservationOnceWithTheReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	held := w.insert(row{"expires_at": ago(time.Hour)}, row{"expires_at": ago(2 * time.Hour)})
	odd := w.insert(row{"expires_at": "null"})
	braked := func(o *Options) {
		o.BrakePercent = 0
		o.Now = func() time.Time { return time.Now().Add(-time.Hour) } // one of the two clocks is wrong
	}
	said := w.reasons(braked)
	for _, id := range held {
		require.Contains(t, said[id], "held back by the brake: would end 2 of 3 active reservations at once")
	}
	require.Equal(t, reservation.DeadlineNull.Sentence(), said[odd[0]])
	require.Empty(t, w.reasons(braked), "it is the same as before")
	again := w.insert(row{"expires_at": ago(testGrace)}, row{"expires_at": "'infinity'"})
	require.ElementsMatch(t, again, slices.Collect(maps.Keys(w.reasons(braked))), "what is new")
}

func TestThatAMissingPodEndsNothingWhileBrakedIsSaidOnce(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.lost(30, "lost")
	w.within(c, asConfigured)
	w.ageAbsences(5 * time.Minute)
	w.exec("update expiry.sweeps set started_at = started_at - interval '5 minutes'")
	w.lost(1, "new") // would not end yet
	logs := func() map[string]string {
		return w.logged(func(o ...func(*Options)) { w.within(c, o...) }, asConfigured)
	}
	require.Len(t, logs(), 30)
	require.Empty(t, logs())
}

// reasons runs a sweep and returns why it has left reservations as they are, by id.
func (w *world) reasons(change ...func(*Options)) map[string]string {
	w.t.Helper()
	return w.logged(func(o ...func(*Options)) {
		_, _ = w.sweeper(o...).Sweep(w.t.Context(), event.Ping, event.SweepRequest{})
	}, change...)
}

func (w *world) logged(sweep func(...func(*Options)), change ...func(*Options)) map[string]string {
	w.t.Helper()
	var out bytes.Buffer
	sweep(append(change, func(o *Options) { o.Log = telemetry.NewLogger(&out, "json", nil) })...)
	reasons := map[string]string{}
	for lines := json.NewDecoder(&out); lines.More(); {
		var line struct {
			Msg, Reason string
			ID          string `json:"reservation_id"`
		}
		require.NoError(w.t, lines.Decode(&line))
		if line.Msg == "left as it is" {
			reasons[line.ID] = line.Reason
		}
	}
	return reasons
}
