package dispatch_test

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
)

func announcer(t *testing.T, w world, to dispatch.Sender) *dispatch.Announcer {
	t.Helper()
	return dispatch.NewAnnouncer(w.db, event.Builder{}, to, dispatch.AnnouncerOptions{Log: quiet})
}

func TestFactsAreAnnouncedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, subject := range []string{"r1", "r2", "r3"} {
		for sequence := 1; sequence <= 5; sequence++ {
			w.fact(t, subject, sequence)
		}
	}
	s := newSink(t, nil)
	var wg sync.WaitGroup
	for range 4 { // deliveries that end at the same time
		wg.Go(func() {
			if _, err := announcer(t, w, sender(t, s.URL, 1)).Drain(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// One Drain may find nothing only because another is just sending; together they leave nothing behind.
	_, err := announcer(t, w, sender(t, s.URL, 1)).Drain(t.Context())
	require.NoError(t, err)
	require.Len(t, s.events, 15)
	last := map[string]int{}
	for _, e := range s.events {
		sequence, err := strconv.Atoi(e.Extensions()["sequence"].(string))
		require.NoError(t, err)
		last[e.Subject()]++
		require.Equal(t, last[e.Subject()], sequence)
	}
	require.Equal(t, 15, w.count(t, "facts where published_at is not null"))
}

func TestADeliverySendsWhatItMadeTrueAndLittleOfWhatIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 20 {
		w.fact(t, "other"+strconv.Itoa(i), 1) // all of them older
	}
	for sequence := 1; sequence <= 3; sequence++ {
		w.fact(t, "own", sequence)
	}
	s := newSink(t, nil)
	sent, err := announcer(t, w, sender(t, s.URL, 1)).Share(t.Context(), "own")
	require.NoError(t, err)
	require.Equal(t, 3+8, sent)
	for i, sequence := range []string{"0000000001", "0000000002", "0000000003"} {
		require.Equal(t, "own", s.events[i].Subject())
		require.Equal(t, sequence, s.events[i].Extensions()["sequence"])
	}

	sent, err = announcer(t, w, sender(t, s.URL, 1)).Share(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, 8, sent)
	sent, err = announcer(t, w, sender(t, s.URL, 1)).Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4, sent)
}

func TestWhatIsBegunWhenTheTimeIsOverIsSentAllTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 20 {
		w.fact(t, strconv.Itoa(i), 1)
	}
	s := newSink(t, nil)
	announcer := dispatch.NewAnnouncer(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.AnnouncerOptions{Within: 1, Log: quiet})
	sent, err := announcer.Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, 8, sent)
	require.Equal(t, 12, w.count(t, "facts where attempts = 0 and published_at is null and lease_token is null"))
}

func TestOneFactHoldsNoDeliveryForLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fact(t, "r1", 1)
	announcer := dispatch.NewAnnouncer(w.db, event.Builder{}, hanging{}, dispatch.AnnouncerOptions{Each: time.Millisecond, Log: quiet})
	_, err := announcer.Share(t.Context(), "r1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 1, w.count(t, "facts where attempts = 1 and lease_token is null"))
}

// hanging takes nothing, and says so when it is no longer asked to.
type hanging struct{}

func (hanging) Send(ctx context.Context, _ ce.Event) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestFactsThatAreNotTakenWaitAndLoseNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fact(t, "r1", 1)
	w.fact(t, "r1", 2)
	s := newSink(t, func(ce.Event) int { return http.StatusServiceUnavailable })
	sent, err := announcer(t, w, sender(t, s.URL, 1)).Drain(t.Context())
	require.ErrorContains(t, err, "503")
	require.Zero(t, sent)
	require.Equal(t, 1, w.count(t, "facts where attempts = 1 and try_again_at > clock_timestamp() and lease_token is null and sequence = 1"))
	require.Equal(t, 1, w.count(t, "facts where attempts = 0 and sequence = 2"))

	w.exec(t, "update expiry.facts set try_again_at = '-infinity'")
	up := newSink(t, nil)
	sent, err = announcer(t, w, sender(t, up.URL, 1)).Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, sent)
}

func TestAFactThatIsNotTakenWaitsLongerEachTimeButNeverForAnHour(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fact(t, "second try", 1)
	w.fact(t, "twentieth", 1)
	w.exec(t, "update expiry.facts set attempts = case subject when 'twentieth' then 19 else 1 end")
	s := newSink(t, func(ce.Event) int { return http.StatusServiceUnavailable })
	_, err := announcer(t, w, sender(t, s.URL, 1)).Drain(t.Context())
	require.Error(t, err)
	for subject, longer := range map[string]string{"second try": "16 seconds", "twentieth": "1 minute"} {
		require.Equal(t, 1, w.count(t, "facts where subject = '"+subject+"' and try_again_at > clock_timestamp() + interval '"+longer+"'"))
	}
	require.Zero(t, w.count(t, "facts where try_again_at > clock_timestamp() + interval '10 minutes'"))
}

func TestAFactThatIsRefusedStopsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fact(t, "r1", 1)
	w.fact(t, "r2", 1)
	w.fact(t, "r2", 2)
	s := newSink(t, func(e ce.Event) int {
		if e.Subject() == "r1" {
			return http.StatusBadRequest
		}
		return http.StatusAccepted
	})
	sent, err := announcer(t, w, sender(t, s.URL, 3)).Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, sent)
	require.Equal(t, 1, w.count(t, "facts where subject = 'r1' and last_error like '%400%'"))
}

func TestWithoutASinkFactsStayRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fact(t, "r1", 1)
	sent, err := announcer(t, w, nil).Drain(t.Context())
	require.NoError(t, err)
	require.Zero(t, sent)
	require.Equal(t, 1, w.count(t, "facts where published_at is null and attempts = 0"))
}
