package sweep

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testGrace = 2 * time.Minute

// world is a database of a test's own: the service comes through PgBouncer, users and the test come past it.
type world struct {
	t   *testing.T
	db  *postgres.DB
	raw *pgxpool.Pool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	direct := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, direct), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	raw, err := pgxpool.New(t.Context(), direct)
	require.NoError(t, err)
	t.Cleanup(raw.Close)
	return &world{t: t, db: db, raw: raw}
}

func testOptions() Options {
	return Options{
		Grace: testGrace, WarningMinutes: 30, BrakePercent: 100, Timeout: 30 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
}

func (w *world) sweeper(change ...func(*Options)) *Sweeper {
	opts := testOptions()
	for _, c := range change {
		c(&opts)
	}
	return New(w.db, Outside{}, opts)
}

// sweep runs a sweep that must go well.
func (w *world) sweep() Result {
	w.t.Helper()
	return w.run(w.sweeper(), event.SweepRequest{})
}

func (w *world) run(s *Sweeper, req event.SweepRequest) Result {
	w.t.Helper()
	r, err := s.Sweep(w.t.Context(), event.Ping, req)
	require.NoError(w.t, err)
	require.Empty(w.t, r.Failures)
	require.Equal(w.t, Completed, r.Outcome)
	return r
}

// row is a reservation to insert: column → SQL expression. What is not given is an active reservation's.
type row map[string]string

// ago and ahead are SQL expressions for moments around the database's present.
func ago(d time.Duration) string {
	return fmt.Sprintf("clock_timestamp() - interval '%d microseconds'", d.Microseconds())
}
func ahead(d time.Duration) string { return ago(-d) }

func (w *world) insert(rows ...row) []string {
	w.t.Helper()
	ids := make([]string, len(rows))
	for i, r := range rows {
		columns := row{
			"reservation_id": quote(uuid.NewString()), "user_id": "'ada'", "status": "'active'", "created_at": ago(8 * time.Hour),
			"launched_at": ago(7 * time.Hour), "expires_at": ahead(4 * time.Hour),
		}
		maps.Copy(columns, r)
		var names, values []string
		for column, value := range columns {
			names, values = append(names, column), append(values, value)
		}
		ids[i] = strings.Trim(columns["reservation_id"], "'")
		w.exec("insert into reservations (" + strings.Join(names, ", ") + ") values (" + strings.Join(values, ", ") + ")")
	}
	return ids
}

// insertMany makes n active reservations named prefix-<number>, whose deadlines lie from the given moment on, a second apart.
func (w *world) insertMany(n int, prefix, expiresAt string) {
	w.t.Helper()
	w.exec(fmt.Sprintf(`
		insert into reservations (reservation_id, user_id, status, created_at, launched_at, expires_at)
		select '%s-' || i, 'ada', 'active', clock_timestamp() - interval '60 days', clock_timestamp() - interval '60 days',
		       %s + i * interval '1 second' from generate_series(1, %d) i`, prefix, expiresAt, n))
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.raw.Exec(context.WithoutCancel(w.t.Context()), sql, args...)
	require.NoError(w.t, err)
}

// texts returns the rows of a query of one text column.
func (w *world) texts(sql string, args ...any) []string {
	w.t.Helper()
	rows, err := w.raw.Query(w.t.Context(), sql, args...)
	require.NoError(w.t, err)
	var all []string
	for rows.Next() {
		var text string
		require.NoError(w.t, rows.Scan(&text))
		all = append(all, text)
	}
	require.NoError(w.t, rows.Err())
	return all
}

func (w *world) text(sql string, args ...any) string {
	w.t.Helper()
	all := w.texts(sql, args...)
	require.Len(w.t, all, 1)
	return all[0]
}

func (w *world) status(id string) string {
	w.t.Helper()
	return w.text("select status from reservations where reservation_id = $1", id)
}

// followUps lists "kind key state outcome", in order.
func (w *world) followUps() []string {
	w.t.Helper()
	return w.texts("select concat_ws(' ', kind, key, state, outcome) from expiry.follow_ups order by 1")
}

// warningsOf lists "level state outcome" of the warnings for the present deadline.
func (w *world) warningsOf(id string) []string {
	w.t.Helper()
	return w.texts(`
		select concat_ws(' ', split_part(key, '/', 3), state, outcome)
		from expiry.follow_ups f join reservations r using (reservation_id)
		where kind = 'warning' and reservation_id = $1
		  and split_part(key, '/', 2) = floor(extract(epoch from r.expires_at))::bigint::text
		order by split_part(key, '/', 3)::int`, id)
}

// dump is every row of every table, as text.
func (w *world) dump() string {
	w.t.Helper()
	var out strings.Builder
	tables := w.texts(`
		select schemaname || '.' || tablename from pg_tables where schemaname in ('public', 'expiry') order by 1`)
	require.GreaterOrEqual(w.t, len(tables), 10)
	for _, table := range tables {
		rows := w.texts("select t::text from " + table + " t order by 1")
		fmt.Fprintf(&out, "%s\n%s\n", table, strings.Join(rows, "\n"))
	}
	out.WriteString(strings.Join(w.texts("select last_value::text from pg_sequences where schemaname = 'expiry' and last_value is not null"), "\n"))
	return out.String()
}

// eventually polls until the query answers true.
func (w *world) eventually(sql string, args ...any) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		var yes bool
		return w.raw.QueryRow(w.t.Context(), sql, args...).Scan(&yes) == nil && yes
	}, 20*time.Second, 5*time.Millisecond, "waiting for %s", sql)
}

// actionsOf lists "action" of the planned decisions about a reservation.
func actionsOf(r Result, id string) []Action {
	var out []Action
	for _, d := range r.Planned {
		if d.ReservationID == id {
			out = append(out, d.Action)
		}
	}
	slices.Sort(out)
	return out
}
