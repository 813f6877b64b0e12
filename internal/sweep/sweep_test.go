package sweep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// populate makes one reservation for each decision that the database alone leads to.
func (w *world) populate() (overdue, near, preparing, queued string) {
	w.t.Helper()
	ids := w.insert(
		row{"expires_at": ago(time.Hour)},
		row{"expires_at": ahead(14 * time.Minute)},
		row{"expires_at": "null"},
		row{"expires_at": ahead(5 * time.Hour)})
	stuck := w.untouched(
		row{"status": "'preparing'", "created_at": ago(2 * time.Hour)},
		row{"status": "'queued'", "created_at": ago(50 * time.Hour)})
	w.exec(`insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('warning', 'gone/1/5', 'gone', 'gone')`)
	return ids[0], ids[1], stuck[0], stuck[1]
}

func TestASweepRecordsAndAnnouncesWhatItDid(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	r := w.sweep()
	want := map[string]int{
		"expired": 1, "expiriesOvertaken": 0, "warningsRequested": 1, "warningsVoided": 1,
		"stuckFailed": 1, "stuckCancelled": 1, "stuckOvertaken": 0, "rowsForgotten": 0,
	}
	for what, n := range want {
		require.Equal(t, n, r.Counts[what], what)
	}

	rows, err := w.db.Sweeps(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	row := rows[0]
	require.Equal(t, r.SweepID, row.SweepID.String())
	require.Equal(t, event.Ping, row.Trigger)
	require.True(t, row.StartedAt.Equal(r.StartedAt))
	require.True(t, row.FinishedAt.Equal(r.FinishedAt))
	require.Equal(t, "completed", row.Outcome)
	require.Equal(t, r.Counts, row.Counts)
	require.Empty(t, row.Failures)
	require.False(t, row.Braked)
	require.False(t, row.Paused)
	require.Equal(t, r.Durations, row.Durations)
	var brake Brake
	require.NoError(t, json.Unmarshal(row.Brake, &brake))
	require.Equal(t, *r.Brake, brake)
	require.Equal(t, 4, brake.Active)
	require.Equal(t, 1, brake.Overdue)
	require.Contains(t, string(row.Anomalies), `"deadline_null"`)

	var fact event.Sweep
	data := w.text("select data::text from expiry.facts where type = $1 and subject = $2 and sequence = 1", event.SweepCompleted, r.SweepID)
	require.NoError(t, event.ValidateData(event.SweepCompleted, []byte(data)))
	require.NoError(t, json.Unmarshal([]byte(data), &fact))
	require.Equal(t, event.Sweep{
		SweepID: r.SweepID, Trigger: event.Ping, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, Outcome: "completed", Counts: r.Counts,
	}, fact)
	for _, typ := range []string{event.ReservationExpired, event.ReservationFailed, event.ReservationCancelled} {
		require.NoError(t, event.ValidateData(typ, []byte(w.text("select data::text from expiry.facts where type = $1", typ))))
	}
	require.Equal(t, "true", w.text("select (token is null and expires_at = '-infinity')::text from expiry.sweep_lease"))
}

func TestADryRunSaysWhatASweepWouldDoAndChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	overdue, near, preparing, queued := w.populate()
	before := w.dump()
	s := w.sweeper()
	for range 2 {
		r := w.run(s, event.SweepRequest{DryRun: true})
		require.Empty(t, r.SweepID)
		require.Len(t, r.Planned, 4)
		for id, action := range map[string]Action{overdue: Expire, near: Warn, preparing: Fail, queued: Cancel} {
			require.Equal(t, []Action{action}, actionsOf(r, id))
		}
		for _, d := range r.Planned {
			require.NotEmpty(t, d.Reason)
		}
		require.Len(t, r.Anomalies, 1)
		require.Equal(t, before, w.dump())
	}
	lease := w.lease()
	require.NotEmpty(t, w.run(s, event.SweepRequest{DryRun: true}).Planned, "it needs no lease")
	_, err := w.db.FinishSweep(t.Context(), lease, postgres.SweepEnd{Outcome: "completed"})
	require.NoError(t, err)

	r := w.sweep()
	require.Equal(t, 4, r.Counts["expired"]+r.Counts["warningsRequested"]+r.Counts["stuckFailed"]+r.Counts["stuckCancelled"], "as it said")
}

func TestWithoutALeaseNothingCanBeWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	before := w.dump()
	p := w.sweeper().newPass(postgres.SweepLease{}, observation{Observation: postgres.Observation{Now: time.Now()}}, nil)
	p.brake.input.Percent = 100
	tried := 0
	for _, pt := range w.sweeper().parts {
		pl, err := pt.plan(t.Context(), p)
		require.NoError(t, err)
		if pl.apply != nil {
			_, err = pl.apply(t.Context())
			require.ErrorIs(t, err, postgres.ErrLeaseLost, pt.name)
			tried++
		}
	}
	require.GreaterOrEqual(t, tried, 4)
	require.Equal(t, before, w.dump())
}

func TestASweepOfSomeReservationsTouchesNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	overdue, near, preparing, _ := w.populate()
	r := w.run(w.sweeper(), event.SweepRequest{ReservationIDs: []string{overdue, preparing, "unknown"}})
	require.Equal(t, 1, r.Counts["expired"])
	require.Equal(t, 1, r.Counts["stuckFailed"])
	require.NotContains(t, r.Counts, "stuckCancelled")
	require.Zero(t, r.Counts["warningsRequested"])
	require.Zero(t, r.Counts["warningsVoided"])
	require.Empty(t, r.Anomalies)
	require.NotContains(t, r.Durations, "history")

	r = w.run(w.sweeper(), event.SweepRequest{ReservationIDs: []string{near}})
	require.Equal(t, 1, r.Counts["warningsRequested"])
}

func TestWhilePausedNothingNewIsDecided(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	pause, err := w.db.Pause(t.Context(), "the cluster is being upgraded", 0)
	require.NoError(t, err)
	require.Nil(t, pause.Until)
	begun := 0
	carryOn := part{name: "begun", plan: func(context.Context, *pass) (plan, error) { begun++; return plan{}, nil }}

	followUps := w.followUps()
	r := w.run(before(w.sweeper(), carryOn), event.SweepRequest{})
	require.NotNil(t, r.Paused)
	require.Equal(t, "the cluster is being upgraded", r.Paused.Why)
	require.Equal(t, followUps, w.followUps())
	require.Equal(t, 1, begun)
	require.Equal(t, "true", w.text("select paused::text from expiry.sweeps"))
	require.Contains(t, w.text("select data::text from expiry.facts"), `"paused": true`)

	f, err := w.sweeper().Forecast(t.Context())
	require.NoError(t, err)
	require.Equal(t, Forecast{Expire: 1, Fail: 1, Cancel: 1, Brake: f.Brake}, f)
	require.Equal(t, 3, f.Ending())

	was, err := w.db.Resume(t.Context())
	require.NoError(t, err)
	require.True(t, was)
	require.Equal(t, f.Ending(), func() int {
		r := w.sweep()
		return r.Counts["expired"] + r.Counts["stuckFailed"] + r.Counts["stuckCancelled"]
	}())
	was, err = w.db.Resume(t.Context())
	require.NoError(t, err)
	require.False(t, was)
}

func TestAPauseEndsByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 2 { // pausing again replaces the first
		p, err := w.db.Pause(t.Context(), "for lunch", time.Hour)
		require.NoError(t, err)
		require.Equal(t, time.Hour, p.Until.Sub(p.At).Round(time.Second))
	}
	paused, err := w.db.Paused(t.Context())
	require.NoError(t, err)
	require.Equal(t, "for lunch", paused.Why)
	require.NotNil(t, w.sweep().Paused)
	w.exec("update expiry.pause set until = clock_timestamp()")
	paused, err = w.db.Paused(t.Context())
	require.NoError(t, err)
	require.Nil(t, paused)
	require.Nil(t, w.sweep().Paused)
	was, err := w.db.Resume(t.Context())
	require.NoError(t, err)
	require.False(t, was, "it was over already")
}

func TestTheBrake(t *testing.T) {
	t.Parallel()
	missing := func(n int, allowed *int) part {
		return part{name: "missing", new: true, plan: func(_ context.Context, p *pass) (plan, error) {
			*allowed = p.brake.pods(0, n)
			return plan{}, nil
		}}
	}
	for name, tc := range map[string]struct {
		active, overdue, missing int
		skew                     time.Duration
		expired, allowed         int
		state                    reservation.BrakeState
	}{
		"few end":                                  {active: 100, overdue: 10, missing: 10, expired: 10, allowed: 10, state: reservation.BrakeReleased},
		"too many together":                        {active: 100, overdue: 11, missing: 10, expired: 11, allowed: 0, state: reservation.BrakeMissing},
		"many deadlines alone":                     {active: 100, overdue: 90, expired: 90, state: reservation.BrakeReleased},
		"many deadlines and the clocks disagree":   {active: 100, overdue: 90, missing: 1, skew: 61 * time.Second, state: reservation.BrakeAll},
		"many deadlines and the clock lags behind": {active: 100, overdue: 90, skew: -61 * time.Second, state: reservation.BrakeAll},
		"the clocks disagree a little":             {active: 100, overdue: 90, skew: 55 * time.Second, expired: 90, state: reservation.BrakeReleased},
		"few deadlines and the clocks disagree":    {active: 100, overdue: 20, skew: time.Hour, expired: 20, state: reservation.BrakeReleased},
		"a small platform":                         {active: 6, overdue: 3, missing: 2, expired: 3, allowed: 2, state: reservation.BrakeReleased},
		"one too many on a small platform":         {active: 7, overdue: 3, missing: 3, expired: 3, allowed: 0, state: reservation.BrakeMissing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.insertMany(tc.overdue, "due", "active", ago(time.Hour))
			w.insertMany(tc.active-tc.overdue, "run", "active", ahead(time.Hour))
			s := w.sweeper(func(o *Options) {
				o.BrakePercent, o.BrakeMin = 20, 5
				o.Now = func() time.Time { return time.Now().Add(-tc.skew) }
			})
			var allowed int
			s.parts = append(s.parts, missing(tc.missing, &allowed))
			r := w.run(s, event.SweepRequest{})
			require.Equal(t, tc.expired, r.Counts["expired"])
			require.Equal(t, tc.allowed, allowed)
			require.Equal(t, tc.state, r.Brake.State)
			require.Equal(t, tc.state != reservation.BrakeReleased, r.Brake.Reason != "" && r.Brake.Engaged())
			require.Equal(t, fmt.Sprint(r.Brake.Engaged()), w.text("select braked::text from expiry.sweeps"))
			require.InDelta(t, tc.skew.Seconds(), r.Brake.ClockSkewSeconds, 5)
			if tc.state == reservation.BrakeAll {
				require.Equal(t, tc.overdue, r.Counts["expiriesHeldBack"])
				require.Empty(t, w.followUps())
			}
		})
	}
}

func TestOnePartsFailureStopsNoOther(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		plan func(ctx context.Context, p *pass) (plan, error)
		want string
	}{
		"an error": {func(context.Context, *pass) (plan, error) { return plan{}, errors.New("the API is away\x00") }, "the API is away"},
		"a panic":  {func(context.Context, *pass) (plan, error) { panic("nil map") }, "panic: nil map"},
		"a late one": {func(context.Context, *pass) (plan, error) {
			return plan{apply: func(context.Context) (done, error) { panic("while applying") }}, nil
		}, "panic: while applying"},
		"one that hangs until told": {func(ctx context.Context, _ *pass) (plan, error) {
			<-ctx.Done()
			return plan{}, fmt.Errorf("list pods: %w", ctx.Err())
		}, "its share of the sweep's time is over"},
		"one with much to say": {func(context.Context, *pass) (plan, error) { return plan{}, errors.New(strings.Repeat("é", 5_000)) }, strings.Repeat("é", errorMost) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.populate()
			s := before(w.sweeper(func(o *Options) { o.Timeout = 4 * time.Second }), part{name: "bad", plan: tc.plan})
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
	s := before(w.sweeper(func(o *Options) { o.Timeout = 4 * time.Second }), g.part())
	began := time.Now()
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Less(t, time.Since(began), 4*time.Second)
	require.Equal(t, Partial, r.Outcome)
	require.Contains(t, r.Failures[0].Error, "does not stop")
	require.Equal(t, 1, r.Counts["expired"])
}

func TestWhatDoesNotFitIsFoundByTheNextTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.populate()
	s := w.sweeper(func(o *Options) { o.Timeout = time.Second })
	for range 3 { // at the end: the parts before it are decided first
		s.parts = append(s.parts, part{name: "slow", plan: func(ctx context.Context, _ *pass) (plan, error) {
			<-ctx.Done()
			return plan{}, ctx.Err()
		}})
	}
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Partial, r.Outcome)
	require.Equal(t, 1, r.Counts["expired"])
	require.Len(t, r.Failures, 3)
	require.Less(t, r.FinishedAt.Sub(r.StartedAt), 3*time.Second)
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

func TestASweepThatCannotBeginSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("drop table expiry.sweeps")
	_, err := w.sweeper().Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.ErrorContains(t, err, "begin a sweep")
	require.Equal(t, "-infinity", w.text("select expires_at::text from expiry.sweep_lease"), "all or nothing")
}

func TestHistoryIsForgottenWhenItIsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	live := w.insert(row{})[0]
	ended := w.insert(row{"status": "'expired'", "reservation_ended": ago(60 * 24 * time.Hour)})[0]
	old, young := "clock_timestamp() - interval '31 days'", "clock_timestamp() - interval '29 days'"
	for _, statement := range []string{
		`insert into expiry.follow_ups (kind, key, subject, state, finished_at) values
		     ('cleanup', 'old', '', 'done', ` + old + `), ('cleanup', 'keep', '', 'done', ` + young + `)`,
		`insert into expiry.follow_ups (kind, key, subject, created_at) values ('cleanup', 'keep, due', '', ` + old + `)`,
		`insert into expiry.facts (fact_id, type, subject, sequence, data, occurred_at, published_at, attempts) values
		     (gen_random_uuid(), 'old, told', 'a', 1, '{}', ` + old + `, ` + young + `, 3),
		     (gen_random_uuid(), 'old, nobody listens', 'b', 1, '{}', ` + old + `, null, 0),
		     (gen_random_uuid(), 'keep, refused', 'c', 1, '{}', ` + old + `, null, 9),
		     (gen_random_uuid(), 'keep, waits behind it', 'c', 2, '{}', ` + old + `, null, 0),
		     (gen_random_uuid(), 'keep, young', 'd', 1, '{}', ` + young + `, now(), 0)`,
		`insert into expiry.fact_sequences values ('a', 1)`,
		`insert into expiry.dead_letters (event_id, event_type, event_source, event, received_at) values
		     ('old', '', '', '{}', ` + old + `), ('keep', '', '', '{}', ` + young + `)`,
		`insert into expiry.oom_kills (reservation_id, container_id, finished_at, container, recorded_at) values
		     ('` + live + `', 'keep', now(), '', ` + old + `), ('` + ended + `', 'old', now(), '', ` + old + `), ('gone', 'old', now(), '', ` + old + `)`,
		`insert into expiry.pods (uid, reservation_id, namespace, name, created_at, first_seen_at) values
		     ('keep', '` + live + `', '', '', now(), ` + old + `), ('old', '` + ended + `', '', '', now(), ` + old + `),
		     ('keep, open', 'open', '', '', now(), ` + old + `), ('keep, young', 'gone', '', '', now(), ` + young + `)`,
		`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at) values
		     ('old', '', ` + old + `, ` + old + `), ('open', '', ` + old + `, null), ('keep', '', ` + old + `, ` + young + `)`,
		`insert into expiry.cleanup_steps (reservation_id, step) values ('old', 'pod'), ('open', 'pod')`,
		`insert into expiry.sweeps (sweep_id, trigger, started_at, outcome) values
		     ('00000000-0000-0000-0000-000000000001', 'old', ` + old + `, 'completed'),
		     ('00000000-0000-0000-0000-000000000002', 'keep', ` + young + `, 'abandoned')`,
		`insert into expiry.fact_sequences values ('00000000-0000-0000-0000-000000000001', 1), ('00000000-0000-0000-0000-000000000002', 1)`,
	} {
		w.exec(statement)
	}
	w.sweep()
	require.Equal(t, []string{"keep", "keep, due"}, w.texts("select key from expiry.follow_ups where key ~ 'keep|old' order by 1"))
	require.Equal(t, []string{"keep, refused", "keep, waits behind it", "keep, young"},
		w.texts("select type from expiry.facts where type <> $1 order by 1", event.SweepCompleted))
	require.Equal(t, []string{"keep"}, w.texts("select event_id from expiry.dead_letters"))
	require.Equal(t, []string{"keep"}, w.texts("select container_id from expiry.oom_kills"))
	require.Equal(t, []string{"keep", "keep, open", "keep, young"}, w.texts("select uid from expiry.pods order by 1"))
	require.Equal(t, []string{"keep", "open"}, w.texts("select reservation_id from expiry.cleanups order by 1"))
	require.Equal(t, []string{"open"}, w.texts("select reservation_id from expiry.cleanup_steps"))
	require.Equal(t, []string{"keep"}, w.texts("select trigger from expiry.sweeps where trigger <> $1", event.Ping))
	require.Equal(t, []string{"00000000-0000-0000-0000-000000000002", "a"}, w.texts("select subject from expiry.fact_sequences where subject ~ '^0000|^a$' order by 1"))
}

func TestABacklogOfHistoryIsWorkedOffTickByTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`insert into expiry.sweeps (sweep_id, trigger, started_at, outcome)
		select gen_random_uuid(), 'old', clock_timestamp() - interval '40 days', 'completed' from generate_series(1, 2500)`)
	for _, left := range []string{"1500", "500", "0"} {
		w.sweep()
		require.Equal(t, left, w.text("select count(*)::text from expiry.sweeps where trigger = 'old'"))
	}
}
