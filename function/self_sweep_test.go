package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// sendTo is a sender that hands its events to a function.
type sendTo func(ctx context.Context, e ce.Event) error

func (s sendTo) Send(ctx context.Context, e ce.Event) error { return s(ctx, e) }

func TestTheSweepThatIsDueIsAskedForAtOnceAndThenAsItBecomesDue(t *testing.T) {
	t.Parallel()
	var due atomic.Bool
	due.Store(true)
	sent := make(chan ce.Event, 10)
	s := newSelfSweeper(func(context.Context) (bool, error) { return due.Swap(false), nil }, event.Builder{},
		sendTo(func(_ context.Context, e ce.Event) error { sent <- e; return nil }), quiet)
	s.every = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.run(ctx) }()

	first := <-sent
	require.Equal(t, event.SweepRequested, first.Type())
	require.NoError(t, event.ValidateData(first.Type(), first.Data()))
	due.Store(true)
	require.NotEqual(t, first.ID(), (<-sent).ID())
	stop()
	<-ended
	require.Empty(t, sent)
}

func TestOnlyASweepThatIsDueIsAskedFor(t *testing.T) {
	t.Parallel()
	over, end := context.WithCancel(t.Context())
	end()
	away := errors.New("away")
	for name, c := range map[string]struct {
		ctx          context.Context
		due          bool
		err, refused error
		sent, warned bool
	}{
		"due":                      {ctx: t.Context(), due: true, sent: true},
		"not due":                  {ctx: t.Context()},
		"due as the process ends":  {ctx: over, due: true},
		"nobody knows":             {ctx: t.Context(), due: true, err: away, warned: true},
		"nobody knows at the end":  {ctx: over, err: away},
		"due, but it is not taken": {ctx: t.Context(), due: true, refused: away, sent: true, warned: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			sent := false
			s := newSelfSweeper(func(context.Context) (bool, error) { return c.due, c.err }, event.Builder{},
				sendTo(func(context.Context, ce.Event) error { sent = true; return c.refused }), slog.New(slog.NewTextHandler(&log, nil)))
			s.look(c.ctx, t.Context())
			require.Equal(t, c.sent, sent)
			require.Equal(t, c.warned, log.Len() > 0, log.String())
		})
	}
}

func TestASweepThatItAskedForIsGivenTimeWhenTheProcessEnds(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	s := newSelfSweeper(func(context.Context) (bool, error) { return true, nil }, event.Builder{},
		sendTo(func(ctx context.Context, _ ce.Event) error {
			close(begun)
			<-finish
			return ctx.Err()
		}), quiet)
	ended := make(chan struct{})
	go func() { defer close(ended); s.run(ctx) }()
	<-begun
	stop()
	select {
	case <-ended:
		t.Fatal("it did not wait")
	default:
	}
	close(finish)
	<-ended
}

func TestWithoutTicksItSweepsByItself(t *testing.T) {
	t.Parallel()
	owner := stacktest.Database(t)
	// Nothing but the database is within reach: what needs more than that fails by itself, and says so.
	p := startProcess(t, owner, "SELF_SWEEP=true")
	conn, err := pgx.Connect(t.Context(), owner)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	require.Eventually(t, func() bool {
		var trigger, outcome string
		err := conn.QueryRow(t.Context(), "select trigger, outcome from expiry.sweeps").Scan(&trigger, &outcome)
		return err == nil && trigger == event.SweepRequested && outcome != "running"
	}, 20*time.Second, 20*time.Millisecond)
	require.NotContains(t, p.log.String(), "permission denied")

	quietly := startProcess(t, owner)
	require.NotContains(t, quietly.log.String(), event.SweepRequested)
}

func TestGrantsArePrintedWithoutADatabaseAndRunAsTheOwner(t *testing.T) {
	t.Parallel()
	printed := command(t, nil, "migrate", "--print-grants", "some role")
	require.Zero(t, printed.code, printed.err)
	require.Contains(t, printed.out, `on reservations to "some role";`)
	require.Empty(t, printed.err)

	owner, service := stacktest.Database(t), stacktest.ServiceRole(t)
	granted := command(t, login(t, owner), "migrate", "--grant-to", service)
	require.Zero(t, granted.code, granted.err)
	require.Contains(t, granted.out, "granted to "+service)

	refused := command(t, login(t, owner), "migrate", "--grant-to", stacktest.Env(t, "POSTGRES_USER"))
	require.Equal(t, exitUsage, refused.code)
	none := command(t, login(t, owner), "migrate", "--grant-to", "nobody_at_all")
	require.Equal(t, exitFailure, none.code)
	require.Contains(t, none.err, "does not exist")
}
