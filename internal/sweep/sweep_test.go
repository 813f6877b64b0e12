package sweep

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
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
			if d.Action == Warn {
				require.Regexp(t, `^15-minute warning: its time ends at .* UTC; passed over: \[30\]$`, d.Reason)
			}
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

func TestWhatIsNotSetIsAsItsCommentSays(t *testing.T) {
	t.Parallel()
	o := New(nil, Outside{}, Options{WarningMinutes: 30, LeaseFor: time.Minute}).opts
	require.Equal(t, 20*time.Second, o.RenewEvery)
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, host, o.Holder)
	o = New(nil, Outside{}, Options{WarningMinutes: 30}).opts
	require.Equal(t, []time.Duration{time.Minute, 30 * time.Second, 30 * 24 * time.Hour}, []time.Duration{o.Timeout, o.LeaseFor, o.KeepHistory})
}

func TestASweepThatCannotBeginSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("alter table expiry.sweeps rename to elsewhere")
	_, err := w.sweeper().Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.ErrorContains(t, err, "begin a sweep")
	require.Equal(t, "-infinity", w.text("select expires_at::text from expiry.sweep_lease"), "all or nothing")
}

func TestReservationsThatAreAskedForAndUnknownAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(row{"reservation_id": "'known'", "expires_at": ahead(time.Hour)})
	for _, dryRun := range []bool{true, false} {
		r, err := w.sweeper().Sweep(t.Context(), "test", event.SweepRequest{DryRun: dryRun, ReservationIDs: []string{"KNOWN", "known", "other", "other"}})
		require.NoError(t, err)
		require.Equal(t, Completed, r.Outcome)
		require.Equal(t, []string{"KNOWN", "other"}, r.Unknown)
	}
}
