package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// ran is what became of a command that ran as a process of its own.
type ran struct {
	code     int
	out, err string
}

// command runs this test binary as the command, in an environment of nothing but what is given.
func command(t *testing.T, environ []string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append([]string{asCommand + "=1", "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, environ...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return ran{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// login is the environment that leads to a database.
func login(t *testing.T, database string) []string {
	t.Helper()
	db, err := url.Parse(database)
	require.NoError(t, err)
	password, _ := db.User.Password()
	return []string{
		"POSTGRES_HOST=" + db.Hostname(), "POSTGRES_PORT=" + db.Port(), "POSTGRES_USER=" + db.User.Username(),
		"POSTGRES_PASSWORD=" + password, "POSTGRES_DB=" + db.Path[1:],
	}
}

// base is a database with what commands see of it.
type base struct {
	t       *testing.T
	environ []string
	rows    *pgxpool.Pool
	db      *postgres.DB
}

func newBase(t *testing.T) *base {
	t.Helper()
	database := stacktest.Database(t)
	rows, err := pgxpool.New(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(rows.Close)
	db, err := postgres.Open(t.Context(), database, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return &base{t: t, environ: login(t, database), rows: rows, db: db}
}

func (b *base) exec(statement string, args ...any) {
	b.t.Helper()
	_, err := b.rows.Exec(b.t.Context(), statement, args...)
	require.NoError(b.t, err)
}

// reservation makes an active one whose time ends after so long, and returns its id.
func (b *base) reservation(left time.Duration) string {
	b.t.Helper()
	id := uuid.NewString()
	b.exec(`
		insert into reservations (reservation_id, user_id, status, created_at, launched_at, expires_at)
		values ($1, 'ada', 'active', now() - interval '9 hours', now() - interval '9 hours', now() + $2::interval)`, id, left)
	return id
}

func (b *base) text(query string, args ...any) string {
	b.t.Helper()
	var text string
	require.NoError(b.t, b.rows.QueryRow(b.t.Context(), query, args...).Scan(&text))
	return text
}

// dump is every row of every table.
func (b *base) dump() string {
	b.t.Helper()
	var out strings.Builder
	for table := range strings.FieldsSeq(b.text(`
		select string_agg(format('%I.%I', schemaname, tablename), ' ' order by 1) from pg_tables where schemaname in ('public', 'expiry')`)) {
		fmt.Fprintln(&out, table, b.text("select coalesce(string_agg(t::text, E'\\n' order by t::text), '') from "+table+" t"))
	}
	return out.String()
}

// run runs a command that must end so.
func (b *base) run(code int, args ...string) ran {
	b.t.Helper()
	r := command(b.t, b.environ, args...)
	require.Equal(b.t, code, r.code, "%v\n%s%s", args, r.out, r.err)
	require.NotContains(b.t, r.out+r.err, stacktest.Env(b.t, "POSTGRES_PASSWORD"))
	return r
}

// withWorld adds what a sweep needs: the stack's cluster and an account of its own.
func (b *base) withWorld(more ...string) {
	b.t.Helper()
	b.environ = append(append(b.environ, stacktest.AWS(b.t).Environ()...), "KUBECONFIG="+stacktest.Env(b.t, "KUBECONFIG"))
	b.environ = append(b.environ, more...)
}

// complaint is the one line that a command which did not work leaves on standard error, below its log.
func complaint(t *testing.T, r ran) string {
	t.Helper()
	var said []string
	for line := range strings.Lines(r.err) {
		if !strings.HasPrefix(line, "{") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	require.Len(t, said, 1, r.err)
	require.True(t, strings.HasPrefix(said[0], "reservation-expiry: "), said[0])
	return said[0]
}

func TestOneLineNamesEveryVariableThatACommandMisses(t *testing.T) {
	t.Parallel()
	const database = "POSTGRES_DB is missing; POSTGRES_HOST is missing; POSTGRES_PASSWORD is missing; POSTGRES_USER is missing"
	const everything = "AWS_REGION is missing; EKS_CLUSTER_NAME is missing, and there is neither an in-cluster account nor KUBECONFIG; " + database
	for args, want := range map[string]string{
		"": everything, "serve": everything, "sweep": everything, "sweep --dry-run": everything,
		"migrate": database, "status": database, "explain x": database, "pause --why because": database, "resume": database,
		"dead-letters": database, "dead-letters list": database, "dead-letters replay 1": database,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			r := command(t, nil, strings.Fields(args)...)
			require.Equal(t, 2, r.code)
			require.Empty(t, r.out)
			require.Equal(t, "reservation-expiry: environment: "+want+"\n", r.err)
		})
	}
}

func TestWrongArgumentsEndWith2AndSayWhatIsRight(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"sweeep":                   `unknown command "sweeep": did you mean sweep? (see reservation-expiry --help)`,
		"explain":                  "accepts 1 arg(s), received 0 (usage: reservation-expiry explain RESERVATION_ID [flags])",
		"status now":               `unknown command "now" for "reservation-expiry status" (usage: reservation-expiry status [flags])`,
		"status --watch":           "unknown flag: --watch (see reservation-expiry status --help)",
		"status -o yaml":           `invalid argument "yaml" for "-o, --output" flag: must be table or json (see reservation-expiry status --help)`,
		"pause":                    "say why: whoever finds it paused will ask (--why TEXT)",
		"pause --why x --for 0s":   "--for must be longer than nothing",
		"pause --why x --for -2h":  "--for must be longer than nothing",
		"dead-letters replay":      "accepts 1 arg(s), received 0 (usage: reservation-expiry dead-letters replay ID [flags])",
		"dead-letters replay one":  `"one" is no dead letter's id: dead-letters lists them`,
		"dead-letters --limit 0":   "--limit must be 1 or more",
		"sweep --follow-ups=later": `invalid argument "later" for "--follow-ups" flag: time: invalid duration "later" (see reservation-expiry sweep --help)`,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			r := command(t, nil, strings.Fields(args)...)
			require.Equal(t, 2, r.code)
			require.Equal(t, "reservation-expiry: "+want+"\n", r.err)
		})
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		require.NotEmpty(t, c.Short, c.CommandPath())
		require.NotNil(t, c.RunE, c.CommandPath())
		require.NotNil(t, c.Args, c.CommandPath())
		for line := range strings.Lines(c.Long) {
			require.LessOrEqual(t, len(strings.TrimRight(line, "\n")), 80, line)
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot(shell{}))
	r := command(t, nil, "--help")
	require.Zero(t, r.code)
	require.Empty(t, r.err)
	for _, name := range []string{"serve", "migrate", "sweep", "explain", "status", "pause", "resume", "dead-letters", "Exit codes"} {
		require.Contains(t, r.out, name)
	}
	require.Equal(t, ran{0, "reservation-expiry dev\n", ""}, command(t, nil, "version"))
	require.Equal(t, ran{0, "reservation-expiry dev\n", ""}, command(t, nil, "--version"))
}

func TestMigrateSaysWhatItDidAndTheOthersThatItIsNeeded(t *testing.T) {
	t.Parallel()
	b := &base{t: t, environ: login(t, stacktest.EmptyDatabase(t))}
	for _, args := range [][]string{{"status"}, {"explain", "x"}, {"pause", "--why", "x"}, {"resume"}, {"dead-letters"}, {"dead-letters", "replay", "1"}} {
		require.Equal(t, "reservation-expiry: schema expiry is missing or out of date: run `reservation-expiry migrate`", complaint(t, b.run(1, args...)))
	}
	require.Regexp(t, `^schema expiry: applied 00001_expiry\.sql in \S+\n(schema expiry: applied \S+ in \S+\n)*$`, b.run(0, "migrate").out)
	require.Equal(t, "schema expiry: up to date\n", b.run(0, "migrate").out)
	require.Regexp(t, `^platform tables: applied \S+ in \S+\nschema expiry: up to date\n$`, b.run(0, "migrate", "--platform-tables").out)
	require.Equal(t, "platform tables: up to date\nschema expiry: up to date\n", b.run(0, "migrate", "--platform-tables").out)
	require.Contains(t, b.run(0, "status").out, "there never was one")
}

func TestADatabaseThatCannotBeUsedIsNamedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	for change, want := range map[string]string{
		"POSTGRES_PORT=1": "connection refused", "POSTGRES_DB=nowhere": `database "nowhere" does not exist`,
		"POSTGRES_PASSWORD=wrong-password": "password authentication failed",
	} {
		for _, args := range [][]string{{"status"}, {"migrate"}, {"sweep"}} {
			environ := append(append([]string{}, b.environ...), "AWS_REGION=us-east-1", "EKS_CLUSTER_NAME=none", change)
			r := command(t, environ, args...)
			require.Equal(t, 1, r.code, "%v %s", args, r.err)
			said := complaint(t, r)
			require.Contains(t, said, "check the POSTGRES_ variables")
			require.Contains(t, said, want)
			require.NotContains(t, r.err, "wrong-password")
		}
	}
}

func TestADryRunPrintsWhatASweepWouldDoAndChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	// Somebody collects telemetry, of which rows remember what was sent.
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(collector.Close)
	b.withWorld("OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
	overdue, warned, quiet := b.reservation(-time.Hour), b.reservation(10*time.Minute), b.reservation(5*time.Hour)
	b.exec("update reservations set expires_at = null where reservation_id = $1", b.reservation(time.Hour))
	cancelled := b.reservation(time.Hour)
	b.exec("update reservations set status = 'cancelled' where reservation_id = $1", cancelled)
	_, err := b.db.StoreDeadLetter(t.Context(), postgres.DeadLetter{EventID: "e", EventType: "t", EventSource: "s", Event: "{}"})
	require.NoError(t, err)
	before := b.dump()
	require.Contains(t, before, overdue)

	r := b.run(0, "sweep", "--dry-run")
	require.Regexp(t, overdue+` +expire +expired: its time ended at `, r.out)
	require.Regexp(t, warned+` +warn +15-minute warning: .*passed over: \[30\]`, r.out)
	require.Regexp(t, cancelled+` +clean up +`, r.out)
	require.Contains(t, r.out, "left alone  1: expires_at is NULL")
	require.Contains(t, r.out, "nothing was changed")
	require.NotContains(t, r.out, quiet)

	var result struct {
		DryRun  bool                             `json:"dryRun"`
		Planned []struct{ ReservationID string } `json:"planned"`
	}
	require.NoError(t, json.Unmarshal([]byte(b.run(0, "sweep", "--dry-run", "-o", "json", "--reservation", overdue[:13]).out), &result))
	require.True(t, result.DryRun)
	require.Equal(t, []struct{ ReservationID string }{{overdue}}, result.Planned, "only the one that was asked for")
	require.Contains(t, complaint(t, b.run(1, "sweep", "--dry-run", "--reservation", "nobody")), `there is no reservation "nobody"`)
	require.Equal(t, before, b.dump())
}

func TestASweepFromTheShellCarriesOutWhatFollows(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	var mu sync.Mutex
	var facts []string
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e struct{ Type string }
		if json.NewDecoder(r.Body).Decode(&e) == nil {
			mu.Lock()
			defer mu.Unlock()
			facts = append(facts, e.Type)
		}
	}))
	t.Cleanup(sink.Close)
	b.withWorld("FACTS_SINK=" + sink.URL)
	cluster := stacktest.Kubernetes(t)
	warned, overdue := b.reservation(10*time.Minute), b.reservation(-time.Hour)
	for _, id := range []string{warned, overdue} {
		cluster.CreatePod("gpu-dev-"+id[:8], func(p *corev1.Pod) { p.Labels = map[string]string{"user-id": "ada"} })
		b.exec("update reservations set namespace = $2, created_at = now() - interval '1 minute', launched_at = null where reservation_id = $1", id, cluster.Namespace)
	}
	b.exec("update reservations set created_at = now() - interval '2 hours' where reservation_id = $1", overdue)

	r := b.run(0, "sweep", "-o", "json")
	var view report.Swept
	require.NoError(t, json.Unmarshal([]byte(r.out), &view))
	require.Equal(t, "shell", view.Trigger)
	require.Empty(t, view.Failures)
	var carried []string
	for _, f := range view.FollowUps {
		carried = append(carried, fmt.Sprintf("%s %s", f.Kind, f.State))
	}
	require.Subset(t, carried, []string{"warning done", "cleanup done", "availability.update done"})
	require.Contains(t, cluster.Files("gpu-dev-"+warned[:8]), "WARN_EXPIRES_IN_15MIN.txt")
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Equal(t, "nothing_to_keep", b.text("select outcome from expiry.cleanups where reservation_id = $1", overdue))
	require.Equal(t, "0", b.text("select count(*)::text from expiry.facts where published_at is null"))
	require.Equal(t, len(facts), view.Announced)
	require.Subset(t, facts, []string{event.ReservationExpired, event.ReservationWarned, event.ReservationCleanedUp, event.SweepCompleted})

	explained := b.run(0, "explain", "gpu-dev-"+overdue[:8]).out
	require.Regexp(t, `ended .*by this service: expired: its time ended`, explained)
	require.Contains(t, explained, "it is cleaned up: there was no volume")
	require.Regexp(t, `pod +done `, explained)
	explained = b.run(0, "explain", warned[:9]).out
	require.Regexp(t, `30 min .*passed over`, explained)
	require.Regexp(t, `15 min .*sent +written`, explained)
	require.Regexp(t, `in \S+ \S+ \(\S+ UTC\) +5-minute warning`, explained)

	status := b.run(0, "status").out
	require.Regexp(t, `shell +completed +.*expired 1, .*warnings requested 1`, status)
	require.Regexp(t, `reservations +1 active, 1 ended`, status)
	require.Regexp(t, `outbox +empty`, status)
}

func TestASweepOfWhichAPartFailedEndsWith1AndSaysWhich(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld("FACTS_SINK=http://127.0.0.1:1/")
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{
		"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}]}`), 0o600))
	b.environ = append(b.environ, "KUBECONFIG="+kubeconfig)
	overdue := b.reservation(-time.Hour)

	r := b.run(1, "sweep")
	require.Regexp(t, `^reservation-expiry: the sweep is partial; .*pods: .*connection refused`, complaint(t, r))
	require.Contains(t, r.out, overdue, "what was decided is printed all the same")
	require.Regexp(t, `outcome +partial`, r.out)
	require.Regexp(t, `failed +pods: `, r.out)
	require.Regexp(t, `cleanup +`+overdue+` +failed, looked at again in `, r.out)
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.NotEqual(t, "0", b.text("select count(*)::text from expiry.facts where published_at is null"), "they stay recorded")

	status := b.run(0, "status").out
	require.Regexp(t, `last sweep +partial`, status)
	require.Regexp(t, `cleanups +1 unfinished`, status)
	require.Regexp(t, `outbox +\d facts not announced.*failing: .*connection refused`, status)
	require.Regexp(t, overdue+` .*failed once: `, status)
}

func TestWhereAnotherSweepRunsNothingIsDone(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld()
	overdue := b.reservation(-time.Hour)
	b.exec("update expiry.sweep_lease set token = gen_random_uuid(), expires_at = now() + interval '1 hour'")
	require.Equal(t, "Nothing was done: another sweep is running.\n", b.run(0, "sweep").out)
	require.Equal(t, "active", b.text("select status from reservations where reservation_id = $1", overdue))
}

func TestWhatTheTimeForFollowUpsDoesNotAllowStaysDue(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld()
	overdue := b.reservation(-time.Hour)
	r := b.run(0, "sweep", "--follow-ups", "0s")
	require.Regexp(t, `still due +the time for follow-ups`, r.out)
	require.Equal(t, "due", b.text("select state from expiry.follow_ups where kind = 'cleanup' and reservation_id = $1", overdue))
	require.Regexp(t, `cleanups +1 unfinished`, b.run(0, "status").out)
	require.Regexp(t, `now +cleanup goes on +it was just asked for`, b.run(0, "explain", overdue).out)
}

func TestExplainTellsUnknownFromAmbiguous(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	require.Equal(t, `reservation-expiry: there is no reservation "nobody": give its id, the beginning of it, or its pod's name`,
		complaint(t, b.run(1, "explain", "nobody")))
	b.exec("insert into reservations (reservation_id, status) select 'twin-' || i, 'active' from generate_series(1, 7) i")
	require.Equal(t, `reservation-expiry: "twin" may be any of twin-1, twin-2, twin-3, twin-4, twin-5, …: give more of the id`,
		complaint(t, b.run(1, "explain", "twin")))
	require.Regexp(t, `deadline +unknown: expires_at is NULL`, b.run(0, "explain", "twin-1").out)
	var view report.Explanation
	require.NoError(t, json.Unmarshal([]byte(b.run(0, "explain", "twin-2", "-o", "json").out), &view))
	require.Equal(t, "twin-2", view.ReservationID)
	require.NotEmpty(t, view.Next)
}

func TestPauseHoldsDecisionsAndResumeSaysHowManyWillEnd(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld("BRAKE_PERCENT=20", "BRAKE_MIN=0")
	overdue := b.reservation(-time.Hour)
	b.reservation(5 * time.Hour)
	require.Regexp(t, `next tick +1 reservation will end: 1 will expire`, b.run(0, "status").out)

	r := b.run(0, "pause", "--why", "EKS upgrade", "--for", "2h")
	require.Regexp(t, `^Paused until .* UTC, for 2h: EKS upgrade\.\nOnce resumed, 1 reservation will end: 1 will expire\.\n`+
		`The brake: it would end 1 of 2 active reservations at once .*so they end\.\n$`, r.out)
	status := b.run(0, "status").out
	require.Regexp(t, `paused +since .*, in (2h|1h 59m): EKS upgrade`, status)
	require.Regexp(t, `next tick +once resumed, 1 reservation will end`, status)
	require.Regexp(t, `paused +since .*EKS upgrade`, b.run(0, "sweep").out)
	require.Equal(t, "active", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Contains(t, b.run(0, "explain", overdue).out, "while paused nothing new is decided")

	require.Regexp(t, `^Paused until resumed: longer\.`, b.run(0, "pause", "--why", "longer").out, "the second replaces the first")
	require.Regexp(t, `^Resumed\.\nAt the next tick 1 reservation will end: 1 will expire\.\nThe brake: `, b.run(0, "resume").out)
	require.Regexp(t, `^It was not paused\.\nAt the next tick 1 reservation will end`, b.run(0, "resume").out)
	b.run(0, "sweep", "--follow-ups", "0s")
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Equal(t, "It was not paused.\nAt the next tick no reservation will end.\n", b.run(0, "resume").out)
}

func TestDeadLettersAreListedAndSentAgain(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	require.Equal(t, "There are no dead letters.\n", b.run(0, "dead-letters").out)
	require.JSONEq(t, `[]`, string(mustField(t, b.run(0, "dead-letters", "list", "-o", "json").out, "newest")))
	letter := func(id, eventType string) int64 {
		stored, err := b.db.StoreDeadLetter(t.Context(), postgres.DeadLetter{
			EventID: id, EventType: eventType, EventSource: "//test", EventSubject: "it", ErrorCode: "503", ErrorData: "shutting down",
			Event: fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"//test","type":%q}`, id, eventType),
		})
		require.NoError(t, err)
		return stored
	}
	ping, stray := letter("1", event.Ping), letter("2", "com.example.stray")
	require.Regexp(t, fmt.Sprintf(`(?s)%d +.*com\.example\.stray +it +no +503, shutting down\n%d +.*dev\.knative\.sources\.ping`, stray, ping), b.run(0, "dead-letters").out)
	require.Regexp(t, `dead letters +2 to be looked at`, b.run(0, "status").out)
	require.Contains(t, complaint(t, b.run(1, "dead-letters", "replay", "99")), "there is no dead letter 99")

	// To a sink that takes it, to one that does not, to nobody, and to the service itself.
	var answer atomic.Int32
	answer.Store(http.StatusAccepted)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(answer.Load())) }))
	t.Cleanup(sink.Close)
	direct := b.environ
	b.environ = append(append([]string{}, direct...), "K_SINK="+sink.URL)
	replay := func(id int64) []string { return []string{"dead-letters", "replay", fmt.Sprint(id)} }
	require.Equal(t, fmt.Sprintf("Dead letter %d was taken by K_SINK at %s: 202 Accepted\n", ping, strings.TrimPrefix(sink.URL, "http://")), b.run(0, replay(ping)...).out)
	require.Regexp(t, `dead letters +1 to be looked at`, b.run(0, "status").out)
	answer.Store(http.StatusTeapot)
	require.Contains(t, complaint(t, b.run(1, replay(stray)...)), "the sink answered 418 I'm a teapot")
	b.environ = append(append([]string{}, direct...), "PORT=1")
	require.Regexp(t, `connection refused.*: the service itself at 127\.0\.0\.1:1 did not answer$`, complaint(t, b.run(1, replay(stray)...)))

	p := startProcess(t, b.rows.Config().ConnString())
	b.environ = append(append([]string{}, direct...), "SELF_URL="+p.url)
	r := b.run(0, replay(ping)...)
	require.Regexp(t, `^Dead letter \d was taken by the service itself at \S+: 200 OK\n\{.*"outcome":`, r.out)
	require.Contains(t, complaint(t, b.run(1, replay(stray)...)), `"error":"events of type \"com.example.stray\" are not taken"`)
}

func mustField(t *testing.T, text, field string) json.RawMessage {
	t.Helper()
	var object map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(text), &object))
	return object[field]
}
