package postgres_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestTheServiceMayDoWhatItDoesAndNothingElse(t *testing.T) {
	t.Parallel()
	owner := stacktest.Database(t)
	_, err := connect(t, owner).Exec(t.Context(), `
		insert into reservations (reservation_id, status) values ('r', 'active');
		insert into disks (disk_name, user_id) values ('d', 'u');
		insert into domain_mappings (domain_name, reservation_id) values ('n', 'r');
		insert into alb_target_groups (reservation_id) values ('r')`)
	require.NoError(t, err)
	conn := connect(t, stacktest.AsService(t, owner))
	for statement, allowed := range map[string]bool{
		"update reservations set status = 'expired' where reservation_id = 'r'":                                    true,
		"update reservations set expires_at = now()":                                                               false,
		"update reservations set user_id = 'eve'":                                                                  false,
		"delete from reservations":                                                                                 false,
		"insert into reservations (reservation_id) values ('x')":                                                   false,
		"select github_user from reservations":                                                                     false,
		"select 1 from reservations where reservation_id = 'r' for no key update":                                  true,
		"update disks set in_use = false":                                                                          true,
		"update disks set is_deleted = true":                                                                       false,
		"update disks set user_id = 'eve'":                                                                         false,
		"delete from disks":                                                                                        false,
		"insert into disks (disk_name, user_id) values ('d', 'eve')":                                               false,
		"select 1 from domain_mappings where domain_name = 'n' for update":                                         true,
		"delete from domain_mappings where domain_name = 'n' and reservation_id = 'r'":                             true,
		"update domain_mappings set reservation_id = 'x'":                                                          false,
		"update domain_mappings set node_ip = '192.0.2.1'":                                                         false,
		"select 1 from alb_target_groups where reservation_id = 'r' for update":                                    true,
		"delete from alb_target_groups where reservation_id = 'r'":                                                 true,
		"update alb_target_groups set jupyter_rule_arn = 'x'":                                                      false,
		"truncate domain_mappings":                                                                                 false,
		"insert into expiry.pause (paused_at, why) values (now(), 'test')":                                         true,
		"delete from expiry.pause":                                                                                 true,
		"select work from expiry.due_work":                                                                         true,
		"select max(version_id) from expiry.schema_version":                                                        true,
		"insert into expiry.schema_version (version_id, is_applied) values (9999, true)":                           false,
		"drop table expiry.pause":                                                                                  false,
		"create table expiry.mine ()":                                                                              false,
		"alter table expiry.sweeps add column mine text":                                                           false,
		"insert into expiry.dead_letters (event_id, event_type, event_source, event) values ('i', 't', 's', '{}')": true,
	} {
		_, err := conn.Exec(t.Context(), statement)
		if allowed {
			require.NoError(t, err, statement)
		} else {
			require.ErrorContains(t, err, "42501", statement)
		}
	}
}

func TestATableThatALaterMigrationAddsIsGrantedAtOnce(t *testing.T) {
	t.Parallel()
	owner := stacktest.Database(t)
	conn := connect(t, stacktest.AsService(t, owner))
	_, err := connect(t, owner).Exec(t.Context(), "create table expiry.later (n int)")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "insert into expiry.later values (1)")
	require.NoError(t, err)
}

// Two roles may own what there is, and neither may grant the other's.
func TestEachOwnerGrantsItsOwn(t *testing.T) {
	t.Parallel()
	platform := stacktest.EmptyDatabase(t)
	super := connect(t, at(t, stacktest.Env(t, "STACK_POSTGRES_URL"), platform, nil))
	run := func(c *pgx.Conn, statements string) {
		t.Helper()
		_, err := c.PgConn().Exec(t.Context(), statements).ReadAll()
		require.NoError(t, err, statements)
	}
	const name = "the owner of a schema"
	role := pgx.Identifier{name}.Sanitize()
	run(super, "drop role if exists "+role+"; create role "+role+" login password 'test'")
	t.Cleanup(func() {
		_, _ = super.Exec(context.Background(), "drop owned by "+role+" cascade")
		_, _ = super.Exec(context.Background(), "drop role "+role)
	})
	require.NoError(t, postgres.MigratePlatformTables(t.Context(), platform))
	run(super, "drop schema expiry cascade; grant create on database "+pgx.Identifier{super.Config().Database}.Sanitize()+" to "+role)
	schema := at(t, platform, platform, url.UserPassword(name, "test"))
	require.NoError(t, postgres.Migrate(t.Context(), schema))

	service := stacktest.ServiceRole(t)
	var left []string
	note := func(whose string) { left = append(left, whose) }
	require.NoError(t, postgres.Grant(t.Context(), platform, service, note))
	require.NoError(t, postgres.Grant(t.Context(), schema, service, note))
	require.Equal(t, []string{"schema expiry", "the platform's tables"}, left)
	require.ErrorContains(t, postgres.Grant(t.Context(), stacktest.AsService(t, platform), service), "only the owner")

	conn := connect(t, stacktest.AsService(t, platform))
	run(connect(t, schema), "create table expiry.later (n int)")
	run(conn, "select reservation_id from reservations; insert into expiry.later values (1)")

	// Nor has a superuser's run to do with whose the tables are.
	run(super, "alter default privileges for role "+role+" in schema expiry revoke all on tables from "+service)
	run(super, regexp.MustCompile(`(?m)^(\\|select coalesce).*$`).ReplaceAllString(postgres.Grants(service), ""))
	run(connect(t, schema), "create table expiry.latest (n int)")
	run(conn, "insert into expiry.latest values (1)")
}

// at returns the address of another's database, as who is given, else as the address says.
func at(t *testing.T, address, database string, who *url.Userinfo) string {
	t.Helper()
	to, err := url.Parse(address)
	require.NoError(t, err)
	other, err := url.Parse(database)
	require.NoError(t, err)
	to.Path = other.Path
	if who != nil {
		to.User = who
	}
	return to.String()
}

func TestGrantsMayBeRunAgainAndNameTheRoleSafely(t *testing.T) {
	t.Parallel()
	owner := stacktest.Database(t)
	stacktest.AsService(t, owner)
	stacktest.AsService(t, owner)
	require.ErrorContains(t, postgres.Grant(t.Context(), owner, `no"such; drop table reservations`), `role "no"such; drop table reservations" does not exist`)
	require.Equal(t, 0, count(t, open(t, owner), "select count(*) from reservations"))
}

// Statements of branches that no test comes to are held to this: a column of the platform's that this package never
// names need not be read, and one that it names must be.
func TestWhatIsReadIsWhatTheStatementsName(t *testing.T) {
	t.Parallel()
	named := wordsOfStatements(t)
	conn := connect(t, stacktest.AsService(t, stacktest.Database(t)))
	rows, err := conn.Query(t.Context(), `
		select c.relname || '.' || a.attname, a.attname, has_column_privilege(c.oid, a.attnum, 'select, update')
		from pg_attribute a join pg_class c on c.oid = a.attrelid
		where c.relname in ('reservations', 'disks') and c.relnamespace = 'public'::regnamespace and a.attnum > 0`)
	require.NoError(t, err)
	// Words that mean something else where they occur.
	elsewhere := map[string]bool{"reservations.warning": true}
	var full, column string
	var granted bool
	seen := 0
	_, err = pgx.ForEachRow(rows, []any{&full, &column, &granted}, func() error {
		seen++
		require.Equal(t, named[column] && !elsewhere[full], granted, full)
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, seen, 50)
}

// wordsOfStatements are the words of this package's texts, but for those that grant.
func wordsOfStatements(t *testing.T) map[string]bool {
	t.Helper()
	words, word := map[string]bool{}, regexp.MustCompile(`[a-z][a-z0-9_]*`)
	files, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range files {
		name := entry.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || name == "grants.go" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING {
				value, err := strconv.Unquote(text.Value)
				require.NoError(t, err)
				for _, w := range word.FindAllString(value, -1) {
					words[w] = true
				}
			}
			return true
		})
	}
	return words
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}
