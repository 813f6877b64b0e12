package dispatch_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestEveryDueFollowUpIsSentOnceHoweverManySend(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 40)
	s := newSink(t, nil)
	var total atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		d := dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{Log: quiet})
		wg.Go(func() {
			sent, err := d.SendDue(t.Context())
			if err != nil {
				t.Error(err)
			}
			total.Add(int64(sent.Sent))
		})
	}
	wg.Wait()
	require.EqualValues(t, 40, total.Load())
	require.Len(t, s.ids(), 40)
	require.Equal(t, 1, s.ids()["cleanup/r7/1"])
}

func TestWhatTheSinkDoesNotTakeStaysDueAndStopsTheSending(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 100)
	s := newSink(t, func(ce.Event) int { return http.StatusInternalServerError })
	d := dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{AtOnce: 4, Log: quiet})
	sent, err := d.SendDue(t.Context())
	require.ErrorContains(t, err, "500")
	require.NotContains(t, err.Error(), "secret")
	require.Zero(t, sent.Sent)
	require.Equal(t, 100, w.count(t, "follow_ups where state = 'due' and ask_again_at <= clock_timestamp() and attempts = 0"), "all stay due, none has failed")
	require.LessOrEqual(t, w.count(t, "follow_ups where dispatch > 0"), 8, "it does not try them all")
}

func TestWhatNoSinkWillEverTakeIsAFailureOfItsOwnAndStopsNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 10)
	w.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('warning', 'nonsense', 'r1', 'r1')")
	s := newSink(t, func(e ce.Event) int {
		if e.Subject() == "r3" {
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	d := dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 3), dispatch.Options{Log: quiet})
	sent, err := d.SendDue(t.Context())
	require.NoError(t, err)
	require.Equal(t, dispatch.Sent{Sent: 9, Refused: 2}, sent)
	require.Equal(t, 1, w.count(t, "follow_ups where key = 'r3' and attempts = 1 and last_error like '%400%'"))
	require.Equal(t, 1, w.count(t, "follow_ups where key = 'nonsense' and attempts = 1 and last_error like '%nonsense%'"))
}

func TestARefusedConnectionIsTriedAgainAndSaysNothingOfTheAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 1)
	s := newSink(t, nil)
	s.Close()
	sent, err := dispatch.New(w.db, event.Builder{}, sender(t, s.URL+"/?token=hunter2", 2), dispatch.Options{Log: quiet}).SendDue(t.Context())
	require.ErrorContains(t, err, "connection refused")
	require.NotContains(t, err.Error(), "hunter2")
	require.Equal(t, dispatch.Sent{Failed: 1}, sent)
}

func TestAPassingFaultOfTheSinkIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 1)
	var tries atomic.Int32
	s := newSink(t, func(ce.Event) int {
		if tries.Add(1) < 3 {
			return http.StatusBadGateway
		}
		return http.StatusAccepted
	})
	sent, err := dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 3), dispatch.Options{Log: quiet}).SendDue(t.Context())
	require.NoError(t, err)
	require.Equal(t, dispatch.Sent{Sent: 1}, sent)
}

// run starts Run and returns how to end it.
func run(t *testing.T, d *dispatch.Dispatcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func TestRunSendsWhatIsDueAtOnceWhatBecomesDueLaterAndWhatItIsWokenFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 20)
	w.exec(t, `insert into expiry.follow_ups (kind, key, reservation_id, subject, due_at)
		values ('cleanup', 'later', 'later', 'later', clock_timestamp() + interval '700 milliseconds')`)
	s := newSink(t, nil)
	d := dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{Log: quiet})
	run(t, d)
	require.Eventually(t, func() bool { return len(s.ids()) == 21 }, 20*time.Second, 10*time.Millisecond, "without being woken")
	w.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', 'new', 'new', 'new')")
	d.Wake()
	require.Eventually(t, func() bool { return s.ids()["cleanup/new/1"] == 1 }, 5*time.Second, 10*time.Millisecond)
}

func TestNoMoreIsSentThanMayBeAtATime(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*testing.T, *dispatch.Dispatcher){
		"Run": func(t *testing.T, d *dispatch.Dispatcher) { run(t, d) },
		"SendDue": func(t *testing.T, d *dispatch.Dispatcher) {
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = d.SendDue(t.Context()) })
			t.Cleanup(wg.Wait)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.cleanups(t, 12)
			var inside, most atomic.Int32
			gate := make(chan struct{})
			s := newSink(t, func(ce.Event) int {
				now := inside.Add(1)
				for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
				}
				<-gate
				inside.Add(-1)
				return http.StatusAccepted
			})
			t.Cleanup(func() { close(gate) })
			begin(t, dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{AtOnce: 3, Log: quiet}))
			for left := int32(12); left > 0; left-- { // one by one, so that others come while some are inside
				require.Eventually(t, func() bool { return inside.Load() == min(3, left) }, 10*time.Second, 5*time.Millisecond)
				gate <- struct{}{}
			}
			require.Eventually(t, func() bool { return len(s.ids()) == 12 }, 10*time.Second, 10*time.Millisecond)
			require.EqualValues(t, 3, most.Load())
		})
	}
}

func TestRunSendsAgainWhatFoundNoTaker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 1)
	var tries atomic.Int32
	s := newSink(t, func(ce.Event) int {
		if tries.Add(1) == 1 {
			return http.StatusServiceUnavailable // full
		}
		return http.StatusAccepted
	})
	run(t, dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{Pause: 50 * time.Millisecond, Log: quiet}))
	require.Eventually(t, func() bool { return s.ids()["cleanup/r0/2"] == 1 }, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, 1, w.count(t, "follow_ups where attempts = 0"))
}

func TestRunEndsWithItsContextAndCutsOffWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 1)
	arrived, gate := make(chan struct{}), make(chan struct{})
	s := newSink(t, func(ce.Event) int { close(arrived); <-gate; return http.StatusAccepted })
	t.Cleanup(func() { close(gate) })
	stop := run(t, dispatch.New(w.db, event.Builder{}, sender(t, s.URL, 1), dispatch.Options{Grace: 10 * time.Millisecond, Log: quiet}))
	<-arrived
	stop()
	require.Equal(t, 1, w.count(t, "follow_ups where state = 'due' and ask_again_at < clock_timestamp() + interval '1 minute'"), "to be sent again soon")
}

func TestRunOutlivesTheDatabasesAbsence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := dispatch.New(w.db, event.Builder{}, nil, dispatch.Options{Log: quiet})
	stop := run(t, d)
	w.db.Close()
	d.Wake()
	d.Wake() // never waits
	stop()
}

func TestRunDueCarriesOutEverythingInProcessAndWhatThatMakesDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanups(t, 25)
	cleanup := action(func(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
		if f.Key == "r0" {
			w.exec(t, "insert into expiry.follow_ups (kind, key, subject) values ('availability.update', 'all', 'all')")
		}
		if f.Key == "r1" {
			return followup.LookAgain(time.Hour), nil
		}
		return followup.Done("settled"), nil
	})
	availability := action(func(context.Context, postgres.FollowUp) (followup.Result, error) {
		return followup.Done("invoked"), nil
	})
	runner := followup.NewRunner(w.db, map[postgres.FollowUpKind]followup.Action{
		postgres.Cleanup: cleanup, postgres.AvailabilityUpdate: availability,
	}, followup.Options{Log: quiet})
	reports := map[followup.State]int{}
	err := dispatch.RunDue(t.Context(), w.db, runner, func(r followup.Report, err error) {
		if err != nil {
			t.Error(err)
		}
		reports[r.State]++
	})
	require.NoError(t, err)
	require.Equal(t, map[followup.State]int{followup.StateDone: 25, followup.StatePostponed: 1}, reports)
	require.Equal(t, 1, w.count(t, "follow_ups where state = 'due'"))
}

type action func(ctx context.Context, f postgres.FollowUp) (followup.Result, error)

func (a action) Handle(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
	return a(ctx, f)
}
