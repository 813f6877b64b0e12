package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// dearest is what a sweep with tracing may take of the time that it takes without.
const dearest = 1.15

// TestTracingCostsASweepLittle compares two processes on databases of the same content, tick by tick in turn, so that
// whatever else the machine does hits both. Each tick has something to do: reservations that end, and their phases.
func TestTracingCostsASweepLittle(t *testing.T) { //nolint:paralleltest // each measurement wants the machine for itself
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	t.Cleanup(sink.Close)
	for _, platform := range []struct{ active, ending, rounds int }{{500, 2, 12}, {10_000, 10, 8}} { //nolint:paralleltest // see above
		t.Run(strconv.Itoa(platform.active)+" active", func(t *testing.T) {
			plain := newBusy(t, platform.active, platform.ending, sink.URL, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
			traced := newBusy(t, platform.active, platform.ending, sink.URL,
				"OTEL_EXPORTER_OTLP_ENDPOINT="+stacktest.Env(t, "STACK_OTLP_URL"), "OTEL_METRICS_EXPORTER=none")
			for range 3 { // connections and caches warm up
				plain.tick()
				traced.tick()
			}
			for _, b := range []*busy{plain, traced} { // else one may have better plans, by chance
				_, err := b.rows.Exec(t.Context(), "analyze")
				require.NoError(t, err)
			}
			var c comparison
			for more := 0; more < 5 && (more == 0 || c.ratio(t) > dearest); more++ { // somebody else was at work
				c.run(plain, traced, platform.rounds)
			}
			require.LessOrEqual(t, c.ratio(t), dearest)
			require.Contains(t, traced.p.log.String(), "trace_id")
			require.NotContains(t, traced.p.log.String(), "telemetry is lost", "it did send its spans")
			require.Equal(t, traced.ticks*platform.ending, traced.ended())
		})
	}
}

// comparison has the times of ticks without tracing and with it.
type comparison struct{ without, with []time.Duration }

// run adds rounds. Whoever comes second in one finds the machine warmer.
func (c *comparison) run(plain, traced *busy, rounds int) {
	for round := range rounds {
		if round%2 == 0 {
			c.without, c.with = append(c.without, plain.tick()), append(c.with, traced.tick())
		} else {
			c.with, c.without = append(c.with, traced.tick()), append(c.without, plain.tick())
		}
	}
}

// ratio is what a tick with tracing takes of the time of one without.
func (c *comparison) ratio(t *testing.T) float64 {
	t.Helper()
	with, without := undisturbed(c.with), undisturbed(c.without)
	ratio := float64(with) / float64(without)
	t.Logf("a sweep takes %s without tracing and %s with it: ×%.3f, after %d rounds", without, with, ratio, len(c.with))
	return ratio
}

// undisturbed is the mean of the five fastest: the others met somebody else on the machine. The more there are, the
// nearer are both sides to what they take alone, so that more rounds do not help what is too slow.
func undisturbed(times []time.Duration) (mean time.Duration) {
	slices.Sort(times)
	const n = 5
	for _, d := range times[:n] {
		mean += d / n
	}
	return mean
}

// busy is a process with so many active reservations, of which some end at each tick. They are young: that no pod of
// theirs is there is not looked into, since the client's own rate limit would decide how long that takes.
type busy struct {
	t      *testing.T
	p      *process
	rows   *pgxpool.Pool
	ending int
	ticks  int
}

func newBusy(t *testing.T, active, ending int, sink string, more ...string) *busy {
	t.Helper()
	database := stacktest.Database(t)
	rows, err := pgxpool.New(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(rows.Close)
	_, err = rows.Exec(context.WithoutCancel(t.Context()), `
		insert into reservations (reservation_id, user_id, gpu_type, status, created_at, launched_at, expires_at)
		select gen_random_uuid()::text, 'ada', 'h100', 'active', clock_timestamp() - interval '8 hours', clock_timestamp() - interval '1 minute',
		       clock_timestamp() + interval '8 hours' from generate_series(1, $1::int)`, active)
	require.NoError(t, err)
	_, err = rows.Exec(context.WithoutCancel(t.Context()), `
		insert into expiry.traces (reservation_id, stage, written) select reservation_id, 2, '{queued}' from reservations`) // long since
	require.NoError(t, err)
	environ := append(stacktest.AWS(t).Environ(), "KUBECONFIG="+stacktest.Env(t, "KUBECONFIG"), "HOME="+t.TempDir(), "K_SINK="+sink,
		"BRAKE_PERCENT=100", "MISSING_CONFIRM=12h", "GRACE_PERIOD_SECONDS=0")
	return &busy{t: t, p: startProcess(t, database, append(environ, more...)...), rows: rows, ending: ending}
}

// tick lets some reservations' time be over and returns how long the tick took.
func (b *busy) tick() time.Duration {
	b.t.Helper()
	_, err := b.rows.Exec(b.t.Context(), `
		update reservations set expires_at = launched_at + interval '1 second'
		where reservation_id in (select reservation_id from reservations where status = 'active' order by reservation_id limit $1)`, b.ending)
	require.NoError(b.t, err)
	b.ticks++
	began := time.Now()
	require.Equal(b.t, http.StatusAccepted, b.p.post(b.t, "/", binary(event.Ping), "").StatusCode)
	return time.Since(began)
}

// ended returns how many reservations have.
func (b *busy) ended() (n int) {
	b.t.Helper()
	require.NoError(b.t, b.rows.QueryRow(b.t.Context(), "select count(*) from reservations where status = 'expired'").Scan(&n))
	return n
}
