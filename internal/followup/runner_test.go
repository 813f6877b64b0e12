package followup_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "r1"

// world is a database with one cleanup due, and a look at its row.
type world struct {
	db   *postgres.DB
	look *pgx.Conn
}

func newWorld(t *testing.T) world {
	t.Helper()
	url := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	look, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = look.Close(context.Background()) })
	_, err = look.Exec(t.Context(), "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', $1, $1, $1)", key)
	require.NoError(t, err)
	return world{db: db, look: look}
}

// row is what a Run leaves behind.
type row struct {
	State    string
	Outcome  string
	Attempts int
	Error    string
	Leased   bool
	DueIn    time.Duration
}

func (w world) row(t *testing.T) row {
	t.Helper()
	rows, err := w.look.Query(t.Context(), `
		select state, coalesce(outcome, ''), attempts, coalesce(last_error, ''), lease_token is not null,
		    greatest(due_at - clock_timestamp(), interval '0') from expiry.follow_ups`)
	require.NoError(t, err)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[row])
	require.NoError(t, err)
	r.DueIn = r.DueIn.Round(time.Minute)
	return r
}

type action func(ctx context.Context, f postgres.FollowUp) (followup.Result, error)

func (a action) Handle(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
	return a(ctx, f)
}

func (w world) runner(a action, change ...func(*followup.Options)) *followup.Runner {
	opts := followup.Options{Jitter: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&opts)
	}
	return followup.NewRunner(w.db, map[postgres.FollowUpKind]followup.Action{postgres.Cleanup: a}, opts)
}

func TestHowAnActionEndsIsOnItsRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		result followup.Result
		err    error
		state  followup.State
		row    row
	}{
		"done":      {followup.Done("sent"), nil, followup.StateDone, row{State: "done", Outcome: "sent"}},
		"no word":   {followup.Result{}, nil, followup.StateDone, row{State: "done", Outcome: "done"}},
		"waits":     {followup.LookAgain(7 * time.Minute), nil, followup.StatePostponed, row{State: "due", DueIn: 7 * time.Minute}},
		"failed":    {followup.Result{}, errors.New("boom"), followup.StateFailed, row{State: "due", Attempts: 1, Error: "boom"}},
		"half done": {followup.Done("sent"), errors.New("boom"), followup.StateFailed, row{State: "due", Attempts: 1, Error: "boom"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			report, err := w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) { return c.result, c.err }).
				Run(t.Context(), postgres.Cleanup, key)
			require.NoError(t, err)
			require.Equal(t, c.state, report.State)
			require.Equal(t, c.row.Outcome, report.Outcome)
			require.Equal(t, c.row.Error, report.Error)
			require.Equal(t, key, report.About)
			require.Equal(t, c.row, w.row(t))
		})
	}
}

func TestAnActionThatRecordedItsEndIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report, err := w.runner(func(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
		_, err := w.db.FinishFollowUp(ctx, f, "settled")
		return followup.Recorded("settled"), err
	}).Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateDone, report.State)
	require.Equal(t, row{State: "done", Outcome: "settled"}, w.row(t))
}

func TestAPanicIsAFailureLikeAnyOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report, err := w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) { panic("oops") }).
		Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateFailed, report.State)
	require.Equal(t, row{State: "due", Attempts: 1, Error: "panic: oops"}, w.row(t))
}

func TestTheTenthFailureInARowPausesForAnHour(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.look.Exec(t.Context(), "update expiry.follow_ups set attempts = 9")
	require.NoError(t, err)
	_, err = w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) {
		return followup.Result{}, errors.New("boom")
	}).
		Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, row{State: "due", Attempts: 10, Error: "boom", DueIn: time.Hour}, w.row(t))
}

func TestAKindWithoutAnActionIsAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report, err := followup.NewRunner(w.db, nil, followup.Options{Log: slog.New(slog.DiscardHandler)}).Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateFailed, report.State)
	require.Equal(t, "no action carries out cleanup", w.row(t).Error)
}

func TestWhatIsInterruptedIsHandedBackAndNoFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, interrupt := context.WithCancel(t.Context())
	report, err := w.runner(func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		interrupt()
		<-ctx.Done()
		return followup.Result{}, ctx.Err()
	}).Run(ctx, postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateHandedBack, report.State)
	require.Equal(t, row{State: "due"}, w.row(t))
}

func TestWhatWasDoneWhenTheInterruptionCameIsRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, interrupt := context.WithCancel(t.Context())
	report, err := w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) {
		interrupt()
		return followup.Done("sent"), nil
	}).Run(ctx, postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateDone, report.State)
	require.Equal(t, row{State: "done", Outcome: "sent"}, w.row(t))
}

func TestAnActionThatTakesTooLongHasFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report, err := w.runner(func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		<-ctx.Done()
		return followup.Result{}, ctx.Err()
	}, func(o *followup.Options) { o.Deadline = time.Millisecond }).Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateFailed, report.State)
	require.Equal(t, 1, w.row(t).Attempts)
}

func TestAnActionHasLessTimeThanItsLeaseLasts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.runner(func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		require.InDelta(t, followup.Limit(postgres.Cleanup), time.Until(deadline), float64(20*time.Second))
		var leased bool
		require.NoError(t, w.look.QueryRow(ctx, "select lease_expires_at > clock_timestamp() + $1 from expiry.follow_ups", time.Until(deadline)).Scan(&leased))
		require.True(t, leased)
		return followup.Done("sent"), nil
	}).Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, "sent", w.row(t).Outcome)
}

func TestEachKindHasTheTimeOfACallAndLessThanTheLease(t *testing.T) {
	t.Parallel()
	for _, kind := range []postgres.FollowUpKind{
		postgres.Warning, postgres.Notice, postgres.Cleanup, postgres.SnapshotSync, postgres.SnapshotPurge, postgres.AvailabilityUpdate,
	} {
		require.Greater(t, followup.Limit(kind), 20*time.Second, kind)
		require.Less(t, followup.Limit(kind), 2*time.Minute, kind)
	}
}

func TestARowThatCannotBeClaimedIsNotWorkedOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before string
		state  followup.State
	}{
		"held":    {"update expiry.follow_ups set lease_token = gen_random_uuid(), lease_expires_at = clock_timestamp() + interval '1 hour'", followup.StateHeld},
		"not due": {"update expiry.follow_ups set due_at = clock_timestamp() + interval '1 hour'", followup.StateNotDue},
		"done":    {"update expiry.follow_ups set state = 'done'", followup.StateAlready},
		"absent":  {"delete from expiry.follow_ups", followup.StateAbsent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			_, err := w.look.Exec(t.Context(), c.before)
			require.NoError(t, err)
			report, err := w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) {
				t.Error("worked on")
				return followup.Done("sent"), nil
			}).Run(t.Context(), postgres.Cleanup, key)
			require.NoError(t, err)
			require.Equal(t, c.state, report.State)
		})
	}
}

func TestAResultThatComesAfterTheLeaseLapsedIsAnothersToRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hurry := w.runner(func(context.Context, postgres.FollowUp) (followup.Result, error) { return followup.Done("second"), nil })
	report, err := w.runner(func(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
		report, err := hurry.Run(ctx, postgres.Cleanup, key)
		require.NoError(t, err)
		require.Equal(t, followup.StateDone, report.State)
		return followup.Done("first"), nil
	}, func(o *followup.Options) { o.Lease = time.Nanosecond }).Run(t.Context(), postgres.Cleanup, key)
	require.NoError(t, err)
	require.Equal(t, followup.StateHeld, report.State)
	require.Equal(t, "second", w.row(t).Outcome)
}

func TestWithoutADatabaseNothingIsKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.Close()
	_, err := w.runner(nil).Run(t.Context(), postgres.Cleanup, key)
	require.Error(t, err)
}

func TestPausesGrowAndAfterTenFailuresAreAnHour(t *testing.T) {
	t.Parallel()
	var pauses []time.Duration
	for failures := 1; failures <= 11; failures++ {
		pauses = append(pauses, followup.Pause(failures, 0))
	}
	require.Equal(t, []time.Duration{
		15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 4 * time.Minute, 4 * time.Minute, 4 * time.Minute,
		4 * time.Minute, time.Hour, time.Hour,
	}, pauses)
	require.Equal(t, 14_250*time.Millisecond, followup.Pause(1, 0.5))
	rapid.Check(t, func(t *rapid.T) {
		failures := rapid.IntRange(-5, 100_000).Draw(t, "failures")
		jitter := rapid.Float64Range(0, 1).Draw(t, "jitter")
		pause, whole := followup.Pause(failures, jitter), followup.Pause(failures, 0)
		require.LessOrEqual(t, pause, whole)
		require.GreaterOrEqual(t, pause, whole*9/10)
		require.LessOrEqual(t, whole, followup.Pause(failures+1, 0))
	})
}
