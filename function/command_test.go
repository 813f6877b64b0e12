package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
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
	cmd.Env = append(asCommand("HOME=/nonexistent"), environ...)
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
	t        *testing.T
	database string
	environ  []string
	rows     *pgxpool.Pool
	db       *postgres.DB
}

func newBase(t *testing.T) *base {
	t.Helper()
	return newBaseOn(t, stacktest.Database(t))
}

func newBaseOn(t *testing.T, database string) *base {
	t.Helper()
	rows, err := pgxpool.New(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(rows.Close)
	db, err := postgres.Open(t.Context(), database, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return &base{t: t, database: database, environ: login(t, stacktest.AsService(t, database)), rows: rows, db: db}
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
			environ := append(login(t, b.database), "AWS_REGION=us-east-1", "EKS_CLUSTER_NAME=none", change)
			r := command(t, environ, args...)
			require.Equal(t, 1, r.code, "%v %s", args, r.err)
			said := complaint(t, r)
			require.Contains(t, said, "check the POSTGRES_ variables")
			require.Contains(t, said, want)
			require.NotContains(t, r.err, "wrong-password")
		}
	}
}
