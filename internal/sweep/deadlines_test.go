package sweep

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

func TestAnOverdueReservationEndsWithItsFactAndItsCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ago(10 * time.Minute), "status_history": `'[{"status": "active"}]'`, "failure_reason": "'old'"})[0]
	r := w.sweep()
	require.Equal(t, 1, r.Counts["expired"])

	var got struct {
		Status, Detailed, Failure, User string
		Ended                           time.Time
		History                         []map[string]string
	}
	var history string
	require.NoError(t, w.raw.QueryRow(t.Context(), `
		select status, current_detailed_status, failure_reason, user_id, reservation_ended, status_history::text
		from reservations where reservation_id = $1 and failed_at is null and cancelled_at is null`, id).
		Scan(&got.Status, &got.Detailed, &got.Failure, &got.User, &got.Ended, &history))
	require.NoError(t, json.Unmarshal([]byte(history), &got.History))
	require.Equal(t, "expired", got.Status)
	require.Regexp(t, `^expired: its time ended at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$`, got.Detailed)
	require.Equal(t, "old", got.Failure, "ending as agreed is no failure")
	require.True(t, got.Ended.Equal(r.StartedAt))
	require.Len(t, got.History, 2)
	require.Equal(t, "expired", got.History[1]["status"])
	require.Equal(t, got.Detailed, got.History[1]["message"])
	at, err := time.Parse(time.RFC3339Nano, got.History[1]["timestamp"])
	require.NoError(t, err)
	require.True(t, at.Equal(r.StartedAt))

	require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
	var fact event.Ended
	require.NoError(t, json.Unmarshal([]byte(w.text(
		"select data::text from expiry.facts where type = $1 and subject = $2 and sequence = 1", event.ReservationExpired, id)), &fact))
	require.Equal(t, id, fact.ReservationID)
	require.Equal(t, "ada", fact.UserID)
	require.Equal(t, got.Detailed, fact.Reason)
	require.NotNil(t, fact.ExpiresAt)
	require.True(t, fact.EndedAt.Equal(r.StartedAt))

	again := w.sweep()
	require.Zero(t, again.Counts["expired"])
	require.Equal(t, "1", w.text("select count(*)::text from expiry.facts where subject = $1", id))
}

func TestWhichReservationsExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	past, future := ago(time.Hour), ahead(time.Hour)
	for name, tc := range map[string]struct {
		row    row
		master row
		want   string
	}{
		"within the grace period":         {row: row{"expires_at": ago(time.Minute)}, want: "active"},
		"just past the grace period":      {row: row{"expires_at": ago(testGrace + time.Second)}, want: "expired"},
		"running":                         {row: row{"expires_at": future}, want: "active"},
		"no deadline":                     {row: row{"expires_at": "null"}, want: "active"},
		"infinite":                        {row: row{"expires_at": "'-infinity'"}, want: "active"},
		"before the epoch":                {row: row{"expires_at": "'1970-01-01'"}, want: "active"},
		"long before Christ":              {row: row{"expires_at": "'4000-01-01 BC'"}, want: "active"},
		"before it was launched":          {row: row{"expires_at": past, "launched_at": ago(time.Minute)}, want: "active"},
		"all else unknown":                {row: row{"expires_at": past, "launched_at": "null", "created_at": "null", "user_id": "null", "status_history": "null"}, want: "expired"},
		"cancelled by the user":           {row: row{"expires_at": past, "status": "'cancelled'"}, want: "cancelled"},
		"a status of no known kind":       {row: row{"expires_at": past, "status": "'frozen'"}, want: "frozen"},
		"history is an object":            {row: row{"expires_at": past, "status_history": `'{"a": 1}'`}, want: "expired"},
		"history is a string":             {row: row{"expires_at": past, "status_history": `'"[]"'`}, want: "expired"},
		"node of a set that runs on":      {row: row{"expires_at": past}, master: row{"expires_at": future}, want: "active"},
		"node outlives its master":        {row: row{"expires_at": future}, master: row{"expires_at": past}, want: "active"},
		"node and master are over":        {row: row{"expires_at": past}, master: row{"expires_at": ago(2 * time.Hour)}, want: "expired"},
		"master runs on though cancelled": {row: row{"expires_at": past}, master: row{"expires_at": future, "status": "'cancelled'"}, want: "active"},
		"master failed without deadline":  {row: row{"expires_at": past}, master: row{"expires_at": "null", "status": "'failed'"}, want: "expired"},
		"live master without deadline":    {row: row{"expires_at": past}, master: row{"expires_at": "null"}, want: "active"},
		"master row is gone":              {row: row{"expires_at": past, "master_reservation_id": "'gone'"}, want: "expired"},
	} {
		if tc.master != nil {
			tc.row["master_reservation_id"] = quote(w.insert(tc.master)[0])
		}
		tc.row["name"] = quote(name)
		tc.row["reservation_id"] = quote(fmt.Sprintf("%.36s", name))
		tc.row["failure_reason"] = quote(tc.want)
		w.insert(tc.row)
	}
	r := w.sweep()
	require.Empty(t, w.texts("select name || ' is ' || status from reservations where name is not null and status <> failure_reason"))
	require.Equal(t, "0", w.text("select count(*)::text from expiry.follow_ups f join reservations r using (reservation_id) where r.status = 'active'"))

	counts := map[reservation.Anomaly]int{}
	for _, a := range r.Anomalies {
		counts[a.Kind] = a.Count
		require.Len(t, a.ReservationIDs, a.Count)
		require.NotEmpty(t, a.Sentence)
	}
	require.Equal(t, map[reservation.Anomaly]int{
		reservation.DeadlineNull: 2, reservation.DeadlineInfinite: 1, reservation.DeadlineTooOld: 2,
		reservation.DeadlineBeforeLaunched: 1, reservation.MasterDeadlineUnsound: 1,
	}, counts)
}

func TestAnomaliesAreCountedAndOnlyTheFirstAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insertMany(50, "odd", "null::timestamptz")
	r := w.sweep()
	require.Len(t, r.Anomalies, 1)
	require.Equal(t, 50, r.Anomalies[0].Count)
	require.Len(t, r.Anomalies[0].ReservationIDs, anomalyIDs)
}

func TestARowThatThePlatformRefusesToChangeDelaysNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insertMany(40, "due", ago(time.Hour))
	w.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`)
	w.exec(`create trigger refuse before update on reservations for each row when (old.reservation_id in ('due-7', 'due-8')) execute function refuse()`)
	r, err := w.sweeper().Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Partial, r.Outcome)
	require.Equal(t, 38, r.Counts["expired"])
	require.Len(t, r.Failures, 1)
	require.Equal(t, "deadlines", r.Failures[0].Part)
	require.Equal(t, []string{"due-7", "due-8"}, w.texts("select reservation_id from reservations where status = 'active' order by 1"))
}

func TestARowInSomebodysHandsIsLeftForTheNextTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	extended, other := w.insert(row{"expires_at": ago(time.Hour)})[0], w.insert(row{"expires_at": ago(time.Hour)})[0]
	node := w.insert(row{"expires_at": ago(time.Hour), "master_reservation_id": quote(extended)})[0]
	tx, err := w.raw.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "update reservations set expires_at = clock_timestamp() + interval '1 hour' where reservation_id = $1", extended)
	require.NoError(t, err)

	r := w.sweep()
	require.Equal(t, 1, r.Counts["expired"])
	require.Equal(t, 2, r.Counts["expiriesOvertaken"], "the row, and the node whose master it is")
	require.Equal(t, "expired", w.status(other))

	require.NoError(t, tx.Commit(t.Context()))
	require.Zero(t, w.sweep().Counts["expired"])
	require.Equal(t, "active", w.status(extended))
	require.Equal(t, "active", w.status(node))
}

func TestALockThatOnlyRefersToTheRowIsNoObstacle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ago(time.Hour)})[0]
	tx, err := w.raw.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "insert into disks (disk_name, user_id, reservation_id) values ('d', 'ada', $1)", id)
	require.NoError(t, err)
	require.Equal(t, 1, w.sweep().Counts["expired"])
	require.NoError(t, tx.Rollback(t.Context()))
}

func TestTenThousandActiveReservationsWithNothingDueTakeWellUnderASecond(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insertMany(10_000, "run", ahead(24*time.Hour))
	w.exec("update reservations set master_reservation_id = 'run-1' where reservation_id like 'run-%00'")
	w.exec("analyze reservations")
	best := time.Hour // of several: other tests run beside this one
	for range 5 {
		r := w.sweep()
		require.Zero(t, r.Counts["expired"])
		if took := r.FinishedAt.Sub(r.StartedAt); took < best {
			best = took
			t.Logf("10,000 active, nothing due: %s, by part in ms %v", took, r.Durations)
		}
	}
	require.Less(t, best, time.Second)
}

func TestThousandsOfEndingsAtOnce(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1_500, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.insertMany(n, "due", ago(48*time.Hour))
			w.insertMany(n, "run", ahead(48*time.Hour))
			w.exec("analyze reservations")
			r := w.run(w.sweeper(func(o *Options) { o.Timeout = 5 * time.Minute }), event.SweepRequest{}) // beside other tests
			t.Logf("%d endings: %s, by part in ms %v", n, r.FinishedAt.Sub(r.StartedAt), r.Durations)
			require.Equal(t, n, r.Counts["expired"])
			require.Equal(t, fmt.Sprint(n), w.text("select count(*)::text from expiry.facts where type = $1 and sequence = 1", event.ReservationExpired))
			require.Equal(t, fmt.Sprint(n), w.text("select count(*)::text from expiry.follow_ups where kind = 'cleanup' and state = 'due'"))
			require.Equal(t, fmt.Sprint(n), w.text("select count(*)::text from reservations where status = 'active' and reservation_id like 'run-%'"))
		})
	}
}

func TestAReservationThatComesBackToLifeGetsANewCleanupWhenItEndsAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ago(time.Hour)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'first', clock_timestamp(), 'released')", id)
	w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject, state, outcome, finished_at) values ('cleanup', $1, $1, $1, 'done', 'released', clock_timestamp())", id)
	w.sweep()
	require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
	c, _, err := w.db.LoadCleanup(t.Context(), id)
	require.NoError(t, err)
	require.True(t, c.EndedAgain)
}
