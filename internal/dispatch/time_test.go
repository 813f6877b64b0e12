package dispatch_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// queue has so many follow-ups due, and says when the next is.
type queue struct {
	t      *testing.T
	due    int
	next   time.Duration // negative: none
	parent string        // the trace of who asked for them
	asked  int
	undone []time.Duration // the pauses with which they are due again
	stop   func()
}

func (q *queue) DispatchDue(_ context.Context, limit int, _ time.Duration) ([]postgres.FollowUp, error) {
	if limit < 1 {
		q.t.Error("asked for none")
	}
	if q.asked++; q.asked > 1000 {
		q.stop() // it would never end
	}
	picked := make([]postgres.FollowUp, min(q.due, limit))
	for i := range picked {
		picked[i] = postgres.FollowUp{Kind: postgres.Cleanup, Key: "r1", ReservationID: "r1", Subject: "r1", Traceparent: q.parent}
	}
	q.due -= len(picked)
	return picked, nil
}

func (q *queue) NextDispatch(context.Context) (time.Duration, bool, error) {
	return q.next, q.next >= 0, nil
}

func (q *queue) UndoDispatch(_ context.Context, _ postgres.FollowUp, pause time.Duration) error {
	q.undone = append(q.undone, pause)
	return nil
}

func (q *queue) RefuseDispatch(context.Context, postgres.FollowUp, error) error { return nil }

func TestRunLooksAgainWhenTheNextIsDueButNotAllTheTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		next  time.Duration
		looks int // in nearly a minute
	}{
		"none is to come":          {-1, 2},
		"the next in an hour":      {time.Hour, 2},
		"the next in ten seconds":  {10 * time.Second, 6},
		"one that nobody can have": {0, 4 * 59},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithTimeout(t.Context(), 59*time.Second-time.Millisecond)
				defer stop()
				q := &queue{t: t, next: c.next, stop: stop}
				dispatch.New(q, event.Builder{}, hanging{}, dispatch.Options{Log: quiet}).Run(ctx)
				require.Equal(t, c.looks, q.asked)
			})
		})
	}
}

func TestWhatIsUnderWayWhenRunIsToEndHasEighteenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		q := &queue{t: t, due: 1, next: -1, stop: stop}
		began := time.Now()
		d := dispatch.New(q, event.Builder{}, hanging{}, dispatch.Options{AtOnce: 1, Log: quiet})
		d.Wake() // while all that may be is under way
		d.Run(ctx)
		require.Equal(t, 19*time.Second, time.Since(began))
		require.Equal(t, []time.Duration{2 * time.Second}, q.undone)
	})
}

// silent takes requests and never answers.
type silent struct{ tries atomic.Int32 }

func (s *silent) RoundTrip(r *http.Request) (*http.Response, error) {
	s.tries.Add(1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestASinkThatDoesNotAnswerIsTriedThreeTimesForTenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sink, began := &silent{}, time.Now()
		require.ErrorIs(t, dispatch.NewHTTPSender("http://sink", dispatch.SenderOptions{Transport: sink}).Send(t.Context(), anEvent()), context.DeadlineExceeded)
		require.EqualValues(t, 3, sink.tries.Load())
		pauses := time.Since(began) - 30*time.Second
		require.InDelta(t, 500*time.Millisecond, pauses, float64(300*time.Millisecond))
	})
}

func TestASendersConnectionIsUsedAgain(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	sink := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 40_000)) // more than a connection holds back
	}))
	sink.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	sink.Start()
	defer sink.Close()
	sender := sender(t, sink.URL, 1)
	for range 3 {
		require.NoError(t, sender.Send(t.Context(), anEvent()))
	}
	require.EqualValues(t, 1, connections.Load())
}

func anEvent() ce.Event {
	e := ce.New()
	e.SetID("1")
	e.SetType("test")
	e.SetSource("//test")
	return e
}
