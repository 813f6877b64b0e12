package sweep

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

func TestOnePartsFailureStopsNoOther(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		plan  func(ctx context.Context, p *pass) (plan, error)
		want  string
		hangs bool
	}{
		"an error": {func(context.Context, *pass) (plan, error) { return plan{}, errors.New("the API is away\x00") }, "the API is away", false},
		"a panic":  {func(context.Context, *pass) (plan, error) { panic("nil map") }, "panic: nil map", false},
		"a late one": {func(context.Context, *pass) (plan, error) {
			return plan{apply: func(context.Context) (done, error) { panic("while applying") }}, nil
		}, "panic: while applying", false},
		"one that hangs until told": {func(ctx context.Context, _ *pass) (plan, error) {
			<-ctx.Done()
			return plan{}, fmt.Errorf("list pods: %w", ctx.Err())
		}, "its share of the sweep's time is over", true},
		"one that decides too late": {func(ctx context.Context, _ *pass) (plan, error) {
			<-ctx.Done()
			return plan{apply: func(context.Context) (done, error) { panic("while applying") }}, nil
		}, "its share of the sweep's time is over", true},
		"one with much to say": {func(context.Context, *pass) (plan, error) { return plan{}, errors.New(strings.Repeat("é", 5_000)) }, strings.Repeat("é", errorMost) + "…", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.populate()
			within := time.Minute
			if tc.hangs {
				within = 10 * time.Second
			}
			s := before(w.sweeper(func(o *Options) { o.Timeout = within }), part{name: "bad", plan: tc.plan})
			r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
			require.NoError(t, err)
			require.Equal(t, Partial, r.Outcome)
			require.Len(t, r.Failures, 1)
			require.Equal(t, "bad", r.Failures[0].Part)
			require.Contains(t, r.Failures[0].Error, tc.want)
			require.NotContains(t, r.Failures[0].Error, "goroutine")
			require.Equal(t, 1, r.Counts["expired"])
			require.Equal(t, 1, r.Counts["warningsRequested"])
			require.Equal(t, 1, r.Counts["stuckFailed"])
			require.Equal(t, "partial", w.text("select outcome from expiry.sweeps"))
			data := w.text("select data::text from expiry.facts where type = $1", event.SweepCompleted)
			require.NoError(t, event.ValidateData(event.SweepCompleted, []byte(data)))
			require.Contains(t, data, `"bad"`)
		})
	}
}

func TestAPartThatDoesNotEvenStopIsLeftBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	g := newGate(t)
	s := before(w.sweeper(func(o *Options) { o.Timeout = 10 * time.Second }), g.part())
	began := time.Now()
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Less(t, time.Since(began), 10*time.Second)
	require.Equal(t, Partial, r.Outcome)
	require.Contains(t, r.Failures[0].Error, "does not stop")
	require.Equal(t, 1, r.Counts["expired"])
}

func TestAnErrorThatJustFitsIsKeptAsItIs(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("é", errorMost)
	require.Equal(t, text, storable(errors.New(text)))
}

func TestThoseWhoComeFirstMayTakeHalfOfTheTimeTheOthersTheirShareOfWhatIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.sweeper(func(o *Options) { o.Timeout = 100 * time.Hour }) // of which 90 are for the parts
	s.parts = nil
	var hours []int
	for _, first := range []bool{true, false, false, false} {
		s.parts = append(s.parts, part{name: "part", first: first, plan: func(ctx context.Context, _ *pass) (plan, error) {
			deadline, _ := ctx.Deadline()
			hours = append(hours, int(time.Until(deadline).Round(time.Hour).Hours()))
			return plan{}, nil
		}})
	}
	w.run(s, event.SweepRequest{})
	require.Equal(t, []int{45, 30, 45, 90}, hours)
}

func TestDeadlinesAndWarningsComeBeforeWhatIsSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	s := w.sweeper(func(o *Options) { o.Timeout = 8 * time.Second })
	for range 3 {
		s.parts = append(s.parts, part{name: "slow", plan: func(ctx context.Context, _ *pass) (plan, error) {
			<-ctx.Done()
			return plan{}, ctx.Err()
		}})
	}
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Partial, r.Outcome)
	require.Equal(t, 1, r.Counts["expired"])
	require.Equal(t, 1, r.Counts["warningsRequested"])
	require.Len(t, r.Failures, 3)
	require.Less(t, r.FinishedAt.Sub(r.StartedAt), 8*time.Second)
}

func TestWhatDoesNotFitIsFoundByTheNextTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	s := before(w.sweeper(func(o *Options) { o.Timeout = time.Second }), newGate(t).part()) // and its stopping is not waited for
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Failed, r.Outcome)
	require.Len(t, r.Failures, len(s.parts))
	require.Contains(t, r.Failures[1].Error, "not begun: its share of the sweep's time is over")
	require.Empty(t, w.texts("select reservation_id from reservations where status = 'expired'"))

	r = w.sweep()
	require.Equal(t, 1, r.Counts["expired"])
	require.Equal(t, 1, r.Counts["stuckFailed"])
}

func TestAProcessToldToStopGivesTheLeaseBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	s := before(w.sweeper(), part{name: "interrupted", plan: func(ctx context.Context, _ *pass) (plan, error) {
		stop()
		<-ctx.Done()
		return plan{}, ctx.Err()
	}})
	r, err := s.Sweep(ctx, event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Failed, r.Outcome)
	require.Len(t, r.Failures, len(s.parts))
	require.Equal(t, 1, w.sweep().Counts["expired"], "the next tick need not wait")
}
