package dispatch_test

import (
	"net/http"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestADeadLetterIsSentAgainAsItWas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	original, err := event.Builder{}.FollowUp(event.FollowUp{Kind: "cleanup", Key: "r1", ReservationID: "r1", Subject: "r1", Dispatch: 2})
	require.NoError(t, err)
	dead := original.Clone()
	dead.SetExtension("knativeerrorcode", "503")
	alive, failure := event.SplitBrokerError(dead)
	text, err := event.Encode(alive)
	require.NoError(t, err)
	id, err := w.db.StoreDeadLetter(t.Context(), postgres.DeadLetter{
		EventID: dead.ID(), EventType: dead.Type(), EventSource: dead.Source(), Event: text, ErrorCode: failure.Code,
	})
	require.NoError(t, err)

	down := newSink(t, func(ce.Event) int { return http.StatusServiceUnavailable })
	require.ErrorContains(t, dispatch.Replay(t.Context(), w.db, sender(t, down.URL, 1), id), "503")
	letter, err := w.db.DeadLetter(t.Context(), id)
	require.NoError(t, err)
	require.True(t, letter.Open(), "it was not sent")

	up := newSink(t, nil)
	require.NoError(t, dispatch.Replay(t.Context(), w.db, sender(t, up.URL, 1), id))
	require.Len(t, up.events, 1)
	require.Equal(t, original.String(), up.events[0].String())
	letter, err = w.db.DeadLetter(t.Context(), id)
	require.NoError(t, err)
	require.False(t, letter.Open())

	require.True(t, fault.Is(dispatch.Replay(t.Context(), w.db, sender(t, up.URL, 1), 4711), fault.Gone))
}
