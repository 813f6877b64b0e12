package postgres_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// additions are the statements that no older binary's SQL can stumble over: it names neither the new tables nor the new
// columns, and leaves them out of what it inserts. A unique index or a check on a table that stands is none of them.
var additions = []*regexp.Regexp{
	regexp.MustCompile(`^create table expiry\.`),
	regexp.MustCompile(`^create view expiry\.`),
	regexp.MustCompile(`^create index `),
	regexp.MustCompile(`^alter table expiry\.\w+ add column \w+ [a-z]+(, add column \w+ [a-z]+)*$`),
	regexp.MustCompile(`^alter table expiry\.\w+ add column \w+ \w+ not null default [^,]+$`),
}

func added(statement string) bool {
	for _, addition := range additions {
		if addition.MatchString(statement) {
			return true
		}
	}
	return false
}

func TestAMigrationOnlyAddsToWhatTheBinaryBeforeItUses(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("migrations/expiry/*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	seen := 0
	for _, file := range files[1:] { // the first finds nothing
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, statement := range upward(t, string(text)) {
			seen++
			require.True(t, added(statement), "%s: %s", file, statement)
		}
	}
	require.NotZero(t, seen)
	for _, change := range []string{
		"drop index expiry.dead_letters_of_event", "drop table expiry.pause", "create or replace view expiry.due_work as select 1",
		"create unique index i on expiry.facts (subject)", "alter table expiry.facts drop column attempts",
		"alter table expiry.facts rename column attempts to tries", "alter table expiry.facts add column a text not null",
		"alter table expiry.facts add column a text, drop column attempts", "alter table expiry.facts add check (attempts < 9)",
		"update expiry.facts set attempts = 0",
	} {
		require.False(t, added(change), change)
	}
}

// upward returns the statements of a migration's Up part, each on one line and without comments.
func upward(t *testing.T, text string) (statements []string) {
	t.Helper()
	_, up, ok := strings.Cut(text, "-- +goose Up\n")
	require.True(t, ok)
	up, _, ok = strings.Cut(up, "-- +goose Down\n")
	require.True(t, ok)
	up = regexp.MustCompile(`--.*`).ReplaceAllString(up, "")
	for statement := range strings.SplitSeq(up, ";") {
		if statement = strings.Join(strings.Fields(statement), " "); statement != "" {
			statements = append(statements, statement)
		}
	}
	return statements
}
