package postgres_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// warningDue writes an active reservation and a warning of it under lease.
func warningDue(t *testing.T, db *postgres.DB, level int) (f postgres.FollowUp, deadline time.Time) {
	t.Helper()
	exec(t, db, `insert into reservations (reservation_id, user_id, status, created_at, expires_at)
		values ('r', 'alice', 'active', now() - interval '1 hour', date_trunc('second', now()) + interval '20 minutes')
		on conflict do nothing`)
	s, found, err := db.LoadWarningSubject(t.Context(), "r")
	require.NoError(t, err)
	require.True(t, found)
	require.Empty(t, s.Anomaly)
	f = postgres.FollowUp{Kind: postgres.Warning, Key: event.WarningKey("r", s.Deadline, level), ReservationID: "r", Subject: "r"}
	request(t, db, f)
	return claim(t, db, f, live), s.Deadline
}

func TestOfAReservationWhoseRowIsGoneItIsRememberedWhoseItWas(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	exec(t, db, "insert into expiry.traces (reservation_id, user_id, gpu_type, status) values ('seen', 'alice', 'h100', 'active')")
	for id, want := range map[string]reservation.Reservation{
		"seen":  {ID: "seen", UserID: "alice", GPUType: "h100", Status: reservation.Active},
		"never": {ID: "never"},
	} {
		s, found, err := db.LoadWarningSubject(t.Context(), id)
		require.NoError(t, err)
		require.False(t, found)
		require.Equal(t, want, s.Reservation)
	}
}

func TestAWarningIsAboutTheDiskThatTheReservationHoldsWhereItsRowNamesNone(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	exec(t, db, "insert into reservations (reservation_id, user_id, status) values ('r', 'alice', 'active')")
	exec(t, db, `insert into disks (disk_name, user_id, in_use, reservation_id)
		values ('held', 'alice', true, 'r'), ('former', 'alice', false, 'r'), ('free', 'alice', true, null)`)
	named := func() string {
		s, found, err := db.LoadWarningSubject(t.Context(), "r")
		require.NoError(t, err)
		require.True(t, found)
		return s.DiskName
	}
	require.Equal(t, "held", named())
	exec(t, db, "update reservations set disk_name = 'other'")
	require.Equal(t, "other", named())
	exec(t, db, "update reservations set disk_name = null")
	exec(t, db, "update disks set in_use = false")
	require.Empty(t, named())
}

func TestAWarningIsRecordedInThePlatformsFormatWhateverTheColumnHolds(t *testing.T) {
	t.Parallel()
	for before, want := range map[string]string{
		`null`:  `{"30min_warning_sent": true}`,
		`'{}'`:  `{"30min_warning_sent": true}`,
		`'[]'`:  `{"30min_warning_sent": true}`,
		`'"x"'`: `{"30min_warning_sent": true}`,
		`'17'`:  `{"30min_warning_sent": true}`,
		`'{"15min_warning_sent": true, "note": {"a": [1]}}'`: `{"note": {"a": [1]}, "30min_warning_sent": true}`,
	} {
		t.Run(before, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				f, deadline := warningDue(t, db, 30)
				exec(t, db, "update reservations set warnings_sent = "+before)
				sent, err := db.RecordWarningSent(t.Context(), f, deadline, 30)
				require.NoError(t, err)
				require.True(t, sent)
				require.JSONEq(t, want, text(t, db, "select warnings_sent::text from reservations"))
				require.Equal(t, "t", text(t, db, "select left((last_warning_time between extract(epoch from now()) - 60 and extract(epoch from now()))::text, 1) from reservations"))
				require.Equal(t, "done/sent", text(t, db, "select state || '/' || outcome from expiry.follow_ups"))
				require.JSONEq(t, `[{"type": "`+event.ReservationWarned+`", "level": 30}]`,
					text(t, db, "select jsonb_agg(jsonb_build_object('type', type, 'level', data -> 'levelMinutes'))::text from expiry.facts"))
			})
		})
	}
}

func TestEachLevelSentForADeadlineKeepsItsFlag(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		for _, level := range []int{30, 15} {
			f, deadline := warningDue(t, db, level)
			sent, err := db.RecordWarningSent(t.Context(), f, deadline, reservation.Level(level))
			require.NoError(t, err)
			require.True(t, sent)
		}
		require.JSONEq(t, `{"30min_warning_sent": true, "15min_warning_sent": true}`, text(t, db, "select warnings_sent::text from reservations"))

		exec(t, db, "update reservations set expires_at = expires_at + interval '1 hour'")
		f, deadline := warningDue(t, db, 5)
		sent, err := db.RecordWarningSent(t.Context(), f, deadline, 5)
		require.NoError(t, err)
		require.True(t, sent)
		require.JSONEq(t, `{"5min_warning_sent": true}`, text(t, db, "select warnings_sent::text from reservations"), "an extension re-arms")
	})
}

func TestAWarningThatHasBecomeUntrueIsNotRecorded(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]string{
		"extended":           "update reservations set expires_at = expires_at + interval '1 microsecond'",
		"cancelled":          "update reservations set status = 'cancelled'",
		"without a deadline": "update reservations set expires_at = null",
		"gone":               "delete from reservations",
		"its set's master extended": `insert into reservations (reservation_id, status, created_at, expires_at)
			select 'm', 'active', created_at, expires_at + interval '1 hour' from reservations;
			update reservations set master_reservation_id = 'm' where reservation_id = 'r'`,
		"done by another delivery": "update expiry.follow_ups set lease_token = gen_random_uuid()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWays(t, func(t *testing.T, db *postgres.DB) {
				f, deadline := warningDue(t, db, 30)
				for statement := range strings.SplitSeq(meanwhile, ";") {
					exec(t, db, statement)
				}
				sent, err := db.RecordWarningSent(t.Context(), f, deadline, 30)
				require.NoError(t, err)
				require.False(t, sent)
				require.Equal(t, "0", text(t, db, "select count(*)::text from reservations where warnings_sent <> '{}' or last_warning_time is not null"))
				require.Equal(t, "0", text(t, db, "select count(*)::text from expiry.facts"))
				require.Equal(t, "due", text(t, db, "select state from expiry.follow_ups"))
			})
		})
	}
}

func TestTheNewestOutOfMemoryKillIsTheOneToTellOf(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		_, found, err := db.NewestOOMKill(t.Context(), "r")
		require.NoError(t, err)
		require.False(t, found)
		exec(t, db, `insert into expiry.oom_kills (reservation_id, container_id, finished_at, container)
			values ('r', 'c1', '2026-01-01 10:00Z', 'gpu-dev'), ('r', 'c2', '2026-01-01 11:00Z', 'side'), ('q', 'c3', '2026-01-02 11:00Z', 'gpu-dev')`)
		kill, found, err := db.NewestOOMKill(t.Context(), "r")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "side", kill.Container)
		require.True(t, kill.FinishedAt.Equal(time.Date(2026, 1, 1, 11, 0, 0, 0, time.UTC)))
	})
}
