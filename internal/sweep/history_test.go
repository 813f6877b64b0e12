package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

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
		     (gen_random_uuid(), 'keep, nobody listens', 'b', 1, '{}', ` + old + `, null, 0),
		     (gen_random_uuid(), 'keep, refused', 'c', 1, '{}', ` + old + `, null, 9),
		     (gen_random_uuid(), 'keep, waits behind it', 'c', 2, '{}', ` + old + `, null, 0),
		     (gen_random_uuid(), 'keep, young', 'd', 1, '{}', ` + young + `, now(), 0)`,
		`insert into expiry.fact_sequences values ('a', 1)`,
		`insert into expiry.dead_letters (event_id, event_type, event_source, event, received_at, replayed_at) values
		     ('old', '', '', '{}', ` + old + `, ` + young + `), ('keep', '', '', '{}', ` + young + `, ` + young + `),
		     ('keep, never replayed', '', '', '{}', ` + old + `, null)`,
		`insert into expiry.oom_kills (reservation_id, container_id, finished_at, container, recorded_at) values
		     ('` + live + `', 'keep', now(), '', ` + old + `), ('` + ended + `', 'old', now(), '', ` + old + `), ('gone', 'old', now(), '', ` + old + `)`,
		`insert into expiry.pods (uid, reservation_id, namespace, name, created_at, first_seen_at) values
		     ('keep', '` + live + `', '', '', now(), ` + old + `), ('old', '` + ended + `', '', '', now(), ` + old + `),
		     ('keep, open', 'open', '', '', now(), ` + old + `), ('keep, young', 'gone', '', '', now(), ` + young + `)`,
		`insert into expiry.cleanups (reservation_id, reason, requested_at, settled_at) values
		     ('old', '', ` + old + `, ` + old + `), ('open', '', ` + old + `, null), ('keep', '', ` + old + `, ` + young + `)`,
		`insert into expiry.cleanup_steps (reservation_id, step) values ('old', 'pod'), ('open', 'pod')`,
		`insert into expiry.snapshots (intent_id, snapshot_id, user_id, disk_name, state, settled_at, volume_kept_at) values
		     (gen_random_uuid(), 'old', '', '', 'purged', ` + old + `, null), (gen_random_uuid(), 'keep', '', '', 'purged', ` + young + `, null),
		     (gen_random_uuid(), 'keep, has a volume', '', '', 'purged', ` + old + `, ` + old + `)`,
		`insert into expiry.sweeps (sweep_id, trigger, started_at, outcome) values
		     ('00000000-0000-0000-0000-000000000001', 'old', ` + old + `, 'completed'),
		     ('00000000-0000-0000-0000-000000000002', 'keep', ` + young + `, 'abandoned')`,
		`insert into expiry.fact_sequences values ('00000000-0000-0000-0000-000000000001', 1), ('00000000-0000-0000-0000-000000000002', 1)`,
	} {
		w.exec(statement)
	}
	w.sweep()
	require.Equal(t, []string{"keep", "keep, due"}, w.texts("select key from expiry.follow_ups where key ~ 'keep|old' order by 1"))
	require.Equal(t, []string{"keep, nobody listens", "keep, refused", "keep, waits behind it", "keep, young"},
		w.texts("select type from expiry.facts where type <> $1 order by 1", event.SweepCompleted))
	require.Equal(t, []string{"keep", "keep, never replayed"}, w.texts("select event_id from expiry.dead_letters order by 1"))
	require.Equal(t, []string{"keep"}, w.texts("select container_id from expiry.oom_kills"))
	require.Equal(t, []string{"keep", "keep, open", "keep, young"}, w.texts("select uid from expiry.pods order by 1"))
	require.Equal(t, []string{"keep", "open"}, w.texts("select reservation_id from expiry.cleanups order by 1"))
	require.Equal(t, []string{"open"}, w.texts("select reservation_id from expiry.cleanup_steps"))
	require.Equal(t, []string{"keep", "keep, has a volume"}, w.texts("select snapshot_id from expiry.snapshots order by 1"))
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
