package main

import (
	"context"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

func TestAStackComesUpOnceAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "stack")
	env := bringUp(t, dir)
	require.Equal(t, dir, env["STACK_DIR"])
	for _, url := range []string{env["STACK_POSTGRES_URL"], env["STACK_PGBOUNCER_URL"]} {
		conn, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
	}
	require.FileExists(t, env["KUBECONFIG"])

	before, err := loadInstances(filepath.Join(dir, "run"))
	require.NoError(t, err)
	require.Equal(t, env, bringUp(t, dir))
	after, err := loadInstances(filepath.Join(dir, "run"))
	require.NoError(t, err)
	require.Equal(t, before, after, "nothing was started again")

	tearDown(t, dir)
	require.NoDirExists(t, dir)
	for name, in := range before {
		require.True(t, in.PID == 0 || !in.running(), "%s still runs", name)
		for _, data := range in.Remove {
			require.NoDirExists(t, data)
		}
	}
	tearDown(t, dir)
}

func TestWhatHasDiedIsStartedAnewWithWhatDependsOnIt(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "stack")
	before := bringUp(t, dir)
	instances, err := loadInstances(filepath.Join(dir, "run"))
	require.NoError(t, err)
	require.NoError(t, instances["postgres"].stop(t.Context()))

	after := bringUp(t, dir)
	require.NotEqual(t, before["STACK_PGBOUNCER_URL"], after["STACK_PGBOUNCER_URL"])
	require.Equal(t, before["AWS_ENDPOINT_URL"], after["AWS_ENDPOINT_URL"])
	conn, err := pgx.Connect(t.Context(), after["STACK_PGBOUNCER_URL"])
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

func TestGivenComponentsAreUsedAndNotStarted(t *testing.T) { //nolint:paralleltest // sets the environment
	given := bringUp(t, filepath.Join(t.TempDir(), "given"))
	for use, export := range map[string]string{
		"USE_POSTGRES_URL": "STACK_POSTGRES_URL", "USE_PGBOUNCER_URL": "STACK_PGBOUNCER_URL",
		"USE_KUBECONFIG": "KUBECONFIG", "USE_AWS_ENDPOINT": "AWS_ENDPOINT_URL",
		"USE_JAEGER_QUERY_URL": "JAEGER_QUERY_URL", "USE_OTLP_URL": "STACK_OTLP_URL",
	} {
		t.Setenv(use, given[export])
	}
	dir := filepath.Join(t.TempDir(), "user")
	env := bringUp(t, dir)
	for _, export := range []string{"STACK_POSTGRES_URL", "STACK_PGBOUNCER_URL", "KUBECONFIG", "AWS_ENDPOINT_URL", "POSTGRES_PORT"} {
		require.Equal(t, given[export], env[export])
	}
	instances, err := loadInstances(filepath.Join(dir, "run"))
	require.NoError(t, err)
	for name, in := range instances {
		require.Zero(t, in.PID, name)
	}
	tearDown(t, dir)
	conn, err := pgx.Connect(context.Background(), given["STACK_PGBOUNCER_URL"])
	require.NoError(t, err, "what was given stays up")
	require.NoError(t, conn.Close(t.Context()))
}

// bringUp runs `stack up` for a directory and returns what a shell has after sourcing its env file.
func bringUp(t *testing.T, dir string) map[string]string {
	t.Helper()
	s, err := openStack(dir)
	require.NoError(t, err)
	t.Cleanup(func() { tearDown(t, dir) })
	require.NoError(t, s.up(t.Context()))
	out, err := exec.CommandContext(t.Context(), "env", "-i", "sh", "-c", ". "+filepath.Join(dir, "env")+" && env").Output()
	require.NoError(t, err)
	env := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
	}
	maps.DeleteFunc(env, func(name, _ string) bool { return name == "PWD" || name == "_" || name == "SHLVL" || name == "OLDPWD" })
	return env
}

func tearDown(t *testing.T, dir string) {
	t.Helper()
	s, err := openStack(dir)
	require.NoError(t, err)
	require.NoError(t, s.down(context.Background()))
}
