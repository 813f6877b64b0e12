package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestWhatThereIsToBeAwakeFor(t *testing.T) {
	t.Parallel()
	const (
		swept   = "insert into expiry.sweeps (sweep_id, trigger, outcome) values (gen_random_uuid(), 'test', 'completed');"
		warning = "insert into expiry.follow_ups (kind, key, subject) values ('warning', 'w', 'r');"
		pause   = "insert into expiry.pause (paused_at, why) values (clock_timestamp(), 'test');"
		fact    = "insert into expiry.facts (fact_id, type, subject, sequence, data) values (gen_random_uuid(), 't', 's', 1, '{}');"
		soon    = "clock_timestamp() + interval '1 minute'"
	)
	for name, c := range map[string]struct {
		given                           string
		work, followUps, leased, sweeps int
	}{
		"nothing was ever swept":               {"", 1, 0, 0, 1},
		"swept a moment ago":                   {swept, 0, 0, 0, 0},
		"swept five minutes ago":               {swept + "update expiry.sweeps set started_at = clock_timestamp() - interval '5 minutes'", 1, 0, 0, 1},
		"a sweep is running":                   {"update expiry.sweep_lease set token = gen_random_uuid(), expires_at = " + soon, 1, 0, 1, 0},
		"a sweep has crashed":                  {"update expiry.sweep_lease set token = gen_random_uuid(), expires_at = clock_timestamp()", 1, 0, 0, 1},
		"a follow-up is due":                   {swept + warning, 1, 1, 0, 0},
		"a follow-up is due later":             {swept + warning + "update expiry.follow_ups set due_at = " + soon, 0, 0, 0, 0},
		"a follow-up was sent a moment ago":    {swept + warning + "update expiry.follow_ups set ask_again_at = " + soon, 0, 0, 0, 0},
		"a follow-up is being worked on":       {swept + warning + "update expiry.follow_ups set lease_expires_at = " + soon, 1, 0, 1, 0},
		"its worker has died":                  {swept + warning + "update expiry.follow_ups set lease_expires_at = clock_timestamp()", 1, 1, 0, 0},
		"a follow-up is done":                  {swept + warning + "update expiry.follow_ups set state = 'done'", 0, 0, 0, 0},
		"a fact that nobody is there to hear":  {swept + fact, 0, 0, 0, 0},
		"a fact is being announced":            {swept + fact + "update expiry.facts set lease_expires_at = " + soon, 1, 0, 1, 0},
		"paused":                               {pause, 0, 0, 0, 0},
		"paused with a follow-up due":          {pause + warning, 1, 1, 0, 0},
		"the pause is over":                    {pause + "update expiry.pause set until = clock_timestamp()", 1, 0, 0, 1},
		"paused with a cleanup that has begun": {pause + "insert into expiry.cleanups (reservation_id, reason) values ('r', 'test')", 1, 0, 0, 1},
		"paused with a cleanup that is done":   {pause + "insert into expiry.cleanups (reservation_id, reason, settled_at) values ('r', 'test', clock_timestamp())", 0, 0, 0, 0},
		"paused with a snapshot under way":     {pause + "insert into expiry.snapshots (intent_id, user_id, disk_name) values (gen_random_uuid(), 'u', 'd')", 1, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := stacktest.Database(t)
			conn := connect(t, url)
			_, err := conn.Exec(t.Context(), c.given)
			require.NoError(t, err)
			var work, followUps, leased, sweeps int
			require.NoError(t, conn.QueryRow(t.Context(), "select work, follow_ups, leased, sweep from expiry.due_work").
				Scan(&work, &followUps, &leased, &sweeps))
			require.Equal(t, []int{c.work, c.followUps, c.leased, c.sweeps}, []int{work, followUps, leased, sweeps})

			due, err := open(t, url).SweepDue(t.Context())
			require.NoError(t, err)
			require.Equal(t, c.sweeps > 0, due)
		})
	}
}
