package simulation

import (
	"context"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// database is a real one whose clock is the simulation's: in schema sim, which comes before pg_catalog in its search
// path, clock_timestamp() reads a sequence, which knows no transactions. It goes from seed to seed, emptied in between.
type database struct {
	t     testing.TB
	url   string
	db    *postgres.DB
	users *pgx.Conn // the platform and its users
	broom *pgx.Conn // empties all tables, without a trigger being told
	tidy  string    // takes away what is left of the rows
	world *world    // the present seed's

	clock  time.Time             // what the database is to take for now
	told   time.Time             // what it does take for now
	open   *line                 // whose transaction has yet to be committed, before anything else is sent
	inside bool                  // a statement of the simulation's own
	wrote  map[*pgx.Conn]writing // in a transaction that is open
	texts  map[string]writing    // by statements' texts
	now    writing               // by the statement that runs
	dirty  writing               // and committed, and the checks have not seen it
	writes int                   // of the service's, so far
	status map[string]string     // of each reservation by now, until something is committed; nil: has to be read
	worlds int                   // so far
}

// tidyEvery is after how many worlds their dead rows go. Each time all plans are made anew.
const tidyEvery = 25

const simSchema = `
create schema sim;
create unlogged sequence sim.clock;
select setval('sim.clock', 1);
create function sim.clock_timestamp() returns timestamptz language sql volatile as
    $$ select timestamptz 'epoch' + pg_sequence_last_value('sim.clock') * interval '1 microsecond' $$;
create unlogged sequence sim.ids;
create function sim.gen_random_uuid() returns uuid language sql volatile as
    $$ select lpad(to_hex(nextval('sim.ids')), 32, '0')::uuid $$;
create table sim.audit (
    n bigint generated always as identity primary key, at timestamptz, who text, what text, id text, old_row json, new_row json
);
`

// unlogged takes from the tables what brings them back after a crash: those first to which none that has it refers.
const unlogged = `
do $$ declare one regclass; begin
    loop
        select c.oid into one from pg_class c
        where c.relkind = 'r' and c.relpersistence = 'p' and c.relnamespace in ('public'::regnamespace, 'expiry'::regnamespace, 'sim'::regnamespace)
          and not exists (select from pg_constraint f join pg_class o on o.oid = f.conrelid
                          where f.contype = 'f' and f.confrelid = c.oid and f.conrelid <> c.oid and o.relpersistence = 'p')
        limit 1;
        exit when not found;
        execute format('alter table %s set unlogged', one);
    end loop;
end $$;
`

// audited has every change of a table's rows logged, with those of the columns that the checks look at.
func audited(table, id string, columns ...string) string {
	seen := func(row string) string {
		var pairs []string
		for _, c := range columns {
			pairs = append(pairs, fmt.Sprintf("'%s', %s.%[1]s", c, row))
		}
		return "json_build_object(" + strings.Join(pairs, ", ") + ")"
	}
	return fmt.Sprintf(`
create function sim.audit_%[1]s() returns trigger language plpgsql as $$ begin
    insert into sim.audit (at, who, what, id, old_row, new_row)
    values (clock_timestamp(), current_setting('sim.who', true), '%[1]s', coalesce(new.%[2]s, old.%[2]s),
            case when tg_op <> 'INSERT' then %[3]s end, case when tg_op <> 'DELETE' then %[4]s end);
    return null;
end $$;
create trigger audit after insert or update or delete on %[1]s for each row execute function sim.audit_%[1]s();
`, table, id, seen("old"), seen("new"))
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	ctx := context.Background()
	super, err := url.Parse(stacktest.Env(t, "STACK_POSTGRES_URL"))
	require.NoError(t, err)
	server, err := pgx.Connect(ctx, super.String())
	require.NoError(t, err)
	name := fmt.Sprintf("simulation_%d", time.Now().UnixNano())
	_, err = server.Exec(ctx, "create database "+name)
	require.NoError(t, err)
	var socket string
	require.NoError(t, server.QueryRow(ctx, "select split_part(current_setting('unix_socket_directories'), ',', 1)").Scan(&socket))
	t.Cleanup(func() {
		_, err := server.Exec(ctx, "drop database "+name+" with (force)")
		require.NoError(t, err)
		require.NoError(t, server.Close(ctx))
	})
	super.Path = "/" + name
	d := &database{t: t, url: super.String(), wrote: map[*pgx.Conn]writing{}, texts: map[string]writing{}}
	if bySocket := d.bySocket(super, socket); bySocket != "" {
		d.url = bySocket
	}
	setup, err := pgx.Connect(ctx, d.url)
	require.NoError(t, err)
	d.run(setup, simSchema)
	for _, setting := range []string{
		"search_path = public, sim, pg_catalog", "jit = off", "plan_cache_mode = force_generic_plan",
		"lock_timeout = '20ms'", "timezone = 'UTC'", "track_activities = off", "track_counts = off", "update_process_title = off",
	} {
		d.run(setup, "alter database "+name+" set "+setting)
	}
	require.NoError(t, setup.Close(ctx))
	require.NoError(t, postgres.MigratePlatformTables(ctx, d.url))
	require.NoError(t, postgres.Migrate(ctx, d.url))
	d.users, d.broom = d.connect(), d.connect()
	d.run(d.users, audited("reservations", "reservation_id", "status", "expires_at", "current_detailed_status")+
		audited("disks", "disk_id", "user_id", "disk_name", "in_use", "reservation_id", "pending_snapshot_count", "snapshot_count")+
		"set sim.who = 'user'")
	var tables []string
	sweep := ""
	for _, table := range column[string](d, `
		select format('%I.%I', schemaname, tablename) from pg_tables
		where schemaname in ('public', 'expiry') and tablename not in ('schema_version', 'platform_tables_version', 'migration_lock', 'sweep_lease')
		   or schemaname = 'sim' order by 1`) {
		tables = append(tables, table)
		sweep += "delete from " + table + ";"
		d.run(d.users, "alter table "+table+" set (autovacuum_enabled = off)")
	}
	d.run(d.users, unlogged)
	d.run(d.broom, "set session_replication_role = replica; create procedure sim.reset() language plpgsql as $$ begin "+sweep+`
		update expiry.sweep_lease set token = null, holder = null, expires_at = '-infinity';
		perform setval('sim.ids', 1, false);
	end $$`)
	d.tidy = "vacuum " + strings.Join(tables, ", ")
	d.db, err = postgres.Open(ctx, d.url, postgres.Options{Tracer: d, MaxConns: 8, Configure: func(c *pgxpool.Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // how long one took is no part of a history
		d.dial(c.ConnConfig)
	}})
	require.NoError(t, err)
	t.Cleanup(d.db.Close)
	return d
}

func (d *database) connect() *pgx.Conn {
	d.t.Helper()
	config, err := pgx.ParseConfig(d.url)
	require.NoError(d.t, err)
	d.dial(config)
	conn, err := pgx.ConnectConfig(context.Background(), config)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// bySocket is the database's address past TCP, empty where that leads nowhere.
func (d *database) bySocket(super *url.URL, socket string) string {
	local := *super
	query := local.Query()
	query.Set("host", socket)
	query.Set("port", super.Port())
	local.Host, local.RawQuery = "", query.Encode()
	conn, err := pgx.Connect(context.Background(), local.String())
	if err != nil {
		return ""
	}
	_ = conn.Close(context.Background())
	return local.String()
}

// run runs statements of the simulation's own.
func (d *database) run(conn *pgx.Conn, statements string) {
	d.t.Helper()
	if _, err := conn.PgConn().Exec(context.Background(), statements).ReadAll(); err != nil {
		d.amiss(fmt.Errorf("%s: %w", statements, err))
	}
}

// begin empties the database for a world.
func (d *database) begin(w *world) {
	d.world, d.status = w, nil
	d.run(d.broom, "call sim.reset()")
	if d.worlds++; d.worlds%tidyEvery == 0 {
		d.run(d.broom, d.tidy)
	}
}

// tell has the next statement let the database know the time.
func (d *database) tell() {
	if d.world != nil {
		d.clock = d.world.now()
	}
}

// TraceQueryStart is called before each statement of the service's. It is where the database fails and processes die:
// a context that has ended keeps the statement from being sent.
func (d *database) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if d.inside || d.world == nil {
		return ctx
	}
	word, _, _ := strings.Cut(strings.TrimSpace(data.SQL), " ")
	p := processOf(ctx)
	if p == nil || word == "rollback" {
		if p != nil {
			p.inTx--
		}
		return ctx
	}
	if word == "begin" && (p.dead || d.world.faults.out(sql) || !d.world.oneIn(20)) {
		p.inTx++ // that a begin fails costs the connection and all that was prepared on it: mostly what comes next does
		return ctx
	}
	verdict := d.world.statement(ctx, p, word)
	if !p.dead && word != "begin" && word != "commit" && (word != "select" || strings.Contains(data.SQL, "clock")) {
		d.tell() // the others do not ask
	}
	d.now = d.writingOf(data.SQL, word)
	switch word {
	case "begin":
		if verdict == passes {
			p.inTx++
		}
	case "commit":
		p.inTx--
	}
	if verdict == passes {
		return ctx
	}
	d.inside = true
	d.changed(writing{true, true})
	defer func() { d.inside = false }()
	switch {
	case word == "commit" && verdict == failsAfter:
		d.run(conn, "commit")
	case word == "commit":
		d.run(conn, "rollback")
	case word != "begin" && verdict == failsAfter && conn.PgConn().TxStatus() == 'I':
		if _, err := conn.Exec(context.WithoutCancel(ctx), data.SQL, data.Args...); err != nil {
			d.world.say("database", "it would have failed anyway: %v", err)
		}
	}
	over, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
	cancel()
	return over
}

// TraceQueryEnd is called after each statement of the service's.
func (d *database) TraceQueryEnd(_ context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	if data.CommandTag.RowsAffected() > 0 && !data.CommandTag.Select() {
		d.writes++
	}
	switch {
	case data.CommandTag.String() == "COMMIT":
		d.changed(d.wrote[conn])
		delete(d.wrote, conn)
	case data.CommandTag.String() == "ROLLBACK":
		delete(d.wrote, conn)
	case data.CommandTag.RowsAffected() > 0 && conn.PgConn().TxStatus() == 'I':
		d.changed(d.now)
	case data.CommandTag.RowsAffected() > 0:
		wrote := d.wrote[conn]
		wrote.add(d.now)
		d.wrote[conn] = wrote
	}
}

// writing is what a statement may have changed.
type writing struct{ rows, followUps bool }

// platformWrite is a statement that changes rows which the checks look at.
var platformWrite = regexp.MustCompile(`\b(insert into|update|delete from) (reservations|disks)\b`)

// writingOf is what a statement may change, by its text.
func (d *database) writingOf(sql, word string) writing {
	if word == "select" {
		return writing{}
	}
	what, known := d.texts[sql]
	if !known {
		what = writing{platformWrite.MatchString(sql), strings.Contains(sql, "follow_ups")}
		d.texts[sql] = what
	}
	return what
}

// changed notes that something was committed.
func (d *database) changed(what writing) {
	d.dirty.add(what)
	if what.rows {
		d.status = nil
	}
}

func (w *writing) add(o writing) { w.rows, w.followUps = w.rows || o.rows, w.followUps || o.followUps }

// read runs a query of the simulation's own and collects the rows that it returns.
func read[T any](d *database, query string, args ...any) []T {
	return collect(d, pgx.RowToStructByPos[T], query, args)
}

// column is read for a query of one column.
func column[T any](d *database, query string, args ...any) []T {
	return collect(d, pgx.RowTo[T], query, args)
}

func collect[T any](d *database, scan pgx.RowToFunc[T], query string, args []any) []T {
	rows, err := d.users.Query(context.Background(), query, args...)
	var all []T
	if err == nil {
		all, err = pgx.CollectRows(rows, scan)
	}
	if err != nil {
		d.amiss(fmt.Errorf("%s: %w", query, err))
	}
	return all
}

// amiss ends a world in which the simulation itself has failed. It may be called on a goroutine of the service's.
func (d *database) amiss(err error) {
	if d.world == nil {
		d.t.Error(err)
		return
	}
	d.world.checks.require("the simulation itself", false, "%v", err)
}

// platform has the platform write something in one transaction; false where it would have to wait for a lock.
func (d *database) platform(statements ...statement) bool {
	d.t.Helper()
	d.tell()
	batch := &pgx.Batch{}
	for _, s := range statements {
		batch.Queue(s.sql, s.args...)
	}
	d.changed(writing{rows: true})
	err := d.users.SendBatch(context.Background(), batch).Close()
	if err != nil && strings.Contains(err.Error(), "55P03") {
		return false
	}
	if err != nil {
		d.amiss(err)
	}
	return err == nil
}

type statement struct {
	sql  string
	args []any
}
