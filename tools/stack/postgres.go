package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	oldestPostgres = 15
	ownerRole      = "reservation_expiry"         // no superuser, owner of the database: migrates
	serviceRole    = "reservation_expiry_service" // what the service logs in as: has what it was granted, and no more
	serviceDB      = "gpudev"
)

// postgres is a throw-away cluster: nothing is synced to disk, and it goes with the stack.
type postgres struct{ bin string }

func (*postgres) name() string { return "postgres" }

func (p *postgres) build(ctx context.Context, s *stack) error {
	if os.Getenv("USE_POSTGRES_URL") != "" {
		return nil
	}
	if p.bin = os.Getenv("USE_POSTGRES_BIN"); p.bin != "" {
		return nil
	}
	if p.bin = findPostgres(ctx); p.bin != "" {
		return nil
	}
	if err := s.aptInstall(ctx, p.name(), "postgresql-"+strconv.Itoa(oldestPostgres)); err != nil {
		return err
	}
	if p.bin = findPostgres(ctx); p.bin == "" {
		return errors.New("postgresql is installed, but initdb is not to be found: name its directory in USE_POSTGRES_BIN")
	}
	return nil
}

// findPostgres looks in PATH and where Debian keeps the server programs, the newest first.
func findPostgres(ctx context.Context) string {
	var candidates []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		candidates = append(candidates, filepath.Dir(initdb))
	}
	for version := 30; version >= oldestPostgres; version-- {
		candidates = append(candidates, fmt.Sprintf("/usr/lib/postgresql/%d/bin", version))
	}
	for _, dir := range candidates {
		out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
		if err != nil {
			continue
		}
		var major int
		if _, err := fmt.Sscanf(string(out), "postgres (PostgreSQL) %d", &major); err == nil && major >= oldestPostgres {
			return dir
		}
	}
	return ""
}

func (p *postgres) start(ctx context.Context, s *stack) (*instance, error) {
	if given := os.Getenv("USE_POSTGRES_URL"); given != "" {
		s.log.say(p.name(), "using USE_POSTGRES_URL")
		return p.prepare(ctx, given, &instance{})
	}
	account, err := unprivileged()
	if err != nil {
		return nil, err
	}
	// Not below the stack's directory: the account must reach it, and a socket's path may have 107 bytes only.
	home, err := account.tempDir("stack-postgres-")
	if err != nil {
		return nil, err
	}
	in := &instance{Signal: syscall.SIGINT, Remove: []string{home}}
	password := rand.Text()
	if err := p.initdb(ctx, account, home, password); err != nil {
		return nil, errors.Join(err, os.RemoveAll(home))
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.log.say(p.name(), "starting %s on port %d as user %s", p.bin, port, account.name)
	cmd := account.command(home, filepath.Join(p.bin, "postgres"), "-D", filepath.Join(home, "data"), "-F",
		"-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprintf("port=%d", port), "-c", "unix_socket_directories="+home,
		"-c", "max_connections=500", "-c", "wal_level=minimal", "-c", "max_wal_senders=0",
		"-c", "synchronous_commit=off", "-c", "wal_writer_delay=10s", "-c", "wal_writer_flush_after=0",
		"-c", "full_page_writes=off", "-c", "timezone=UTC",
		// A database lives for seconds: nothing in it is worth tidying.
		"-c", "autovacuum=off", "-c", "bgwriter_lru_maxpages=0", "-c", "update_process_title=off")
	super := postgresURL("postgres", password, port, "postgres").String()
	err = s.spawn(ctx, p.name(), cmd, in, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, super)
		if err == nil {
			err = conn.Close(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.prepare(ctx, super, in)
}

func (p *postgres) initdb(ctx context.Context, account account, home, password string) error {
	passwordFile := filepath.Join(home, "password")
	if err := os.WriteFile(passwordFile, []byte(password), 0o644); err != nil { // home itself is closed to others
		return fmt.Errorf("write password: %w", err)
	}
	// SCRAM's thousands of rounds for each connection would be a third of the tests' work, with the race detector on.
	cmd := account.command(home, filepath.Join(p.bin, "initdb"), "-D", filepath.Join(home, "data"), "--no-sync",
		"-U", "postgres", "-A", "md5", "--pwfile", passwordFile, "-E", "UTF8", "--locale=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return ctx.Err()
}

// prepare makes both roles and the database and exports how to reach them.
func (p *postgres) prepare(ctx context.Context, super string, in *instance) (*instance, error) {
	conn, err := pgx.Connect(ctx, super)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	password := rand.Text()
	if in.PID == 0 {
		// Another stack may share a given server: a password that follows from its URL is the same for all.
		password = "given-" + conn.Config().Password
	}
	for _, step := range []struct{ exists, create string }{
		{"select from pg_roles where rolname = '" + ownerRole + "'", "create role " + ownerRole + " login password '" + password + "'"},
		{"select from pg_roles where rolname = '" + serviceRole + "'", "create role " + serviceRole + " login password '" + password + "'"},
		{"select from pg_database where datname = '" + serviceDB + "'", "create database " + serviceDB + " owner " + ownerRole},
		// Tests, which are the owner, look who waits for a lock.
		{"select where pg_has_role('" + ownerRole + "', 'pg_read_all_stats', 'member')", "grant pg_read_all_stats to " + ownerRole},
	} {
		found, err := conn.Exec(ctx, step.exists)
		if err == nil && found.RowsAffected() == 0 {
			_, err = conn.Exec(ctx, step.create)
		}
		if err != nil {
			return nil, fmt.Errorf("prepare the database: %w", err)
		}
	}
	port := strconv.Itoa(int(conn.Config().Port))
	in.Exports = map[string]string{
		"POSTGRES_HOST":      conn.Config().Host,
		"POSTGRES_PORT":      port,
		"POSTGRES_USER":      ownerRole,
		"POSTGRES_PASSWORD":  password,
		"POSTGRES_DB":        serviceDB,
		"STACK_POSTGRES_URL": super,
	}
	return in, nil
}

func postgresURL(user, password string, port int, database string) *url.URL {
	return &url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password), Path: database,
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), RawQuery: "sslmode=disable",
	}
}

// freePort finds a port that nobody listens on; that it stays so until it is used cannot be promised.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// aptInstall installs a Debian package, which only root can.
func (s *stack) aptInstall(ctx context.Context, component, pkg string) error {
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%s is not installed: install it (on Debian: apt-get install %s)", component, pkg)
	}
	s.apt.Lock()
	defer s.apt.Unlock()
	s.log.say(component, "installing the Debian package %s", pkg)
	begun := time.Now()
	for _, args := range [][]string{{"update"}, {"install", "--yes", "--no-install-recommends", pkg}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
		}
	}
	s.log.say(component, "installed %s in %.0f s", pkg, time.Since(begun).Seconds())
	return nil
}
