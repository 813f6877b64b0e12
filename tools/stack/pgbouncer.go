package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// pgBouncer stands before PostgreSQL in transaction mode, for any database, with the same names and passwords. The
// service comes through it.
type pgBouncer struct{ bin string }

func (*pgBouncer) name() string { return "pgbouncer" }

func (p *pgBouncer) build(ctx context.Context, s *stack) error {
	if os.Getenv("USE_PGBOUNCER_URL") != "" {
		return nil
	}
	if p.bin = os.Getenv("USE_PGBOUNCER_BIN"); p.bin != "" {
		return nil
	}
	if p.bin = findPgBouncer(); p.bin != "" {
		return nil
	}
	if err := s.aptInstall(ctx, p.name(), "pgbouncer"); err != nil {
		return err
	}
	if p.bin = findPgBouncer(); p.bin == "" {
		return errors.New("pgbouncer is installed, but not to be found: name it in USE_PGBOUNCER_BIN")
	}
	return nil
}

func findPgBouncer() string {
	for _, candidate := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} { // sbin is not in everybody's PATH
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	return ""
}

// The pool keeps few server connections and lets go of them soon, since every test has a database of its own.
const pgBouncerConfig = `[databases]
* = host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
pool_mode = transaction
auth_type = md5
auth_file = %s
max_client_conn = 1000
default_pool_size = 10
server_idle_timeout = 5
log_connections = 0
log_disconnections = 0
ignore_startup_parameters = extra_float_digits
`

func (p *pgBouncer) start(ctx context.Context, s *stack) (*instance, error) {
	server := s.instance("postgres").Exports
	if given := os.Getenv("USE_PGBOUNCER_URL"); given != "" {
		s.log.say(p.name(), "using USE_PGBOUNCER_URL")
		pooled, err := url.Parse(given)
		if err != nil {
			return nil, errors.New("USE_PGBOUNCER_URL is no URL") // the parser's own message quotes the password
		}
		return &instance{Exports: pgBouncerExports(pooled, server["POSTGRES_PASSWORD"])}, nil
	}
	behind, err := pgx.ParseConfig(server["STACK_POSTGRES_URL"])
	if err != nil {
		return nil, fmt.Errorf("read the PostgreSQL URL: %w", err)
	}
	account, err := unprivileged()
	if err != nil {
		return nil, err
	}
	home, err := account.tempDir("stack-pgbouncer-")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	users, config := filepath.Join(home, "users.txt"), filepath.Join(home, "pgbouncer.ini")
	for file, text := range map[string]string{
		users:  fmt.Sprintf("%q %q\n%q %[4]q\n%[5]q %[4]q\n", behind.User, behind.Password, ownerRole, server["POSTGRES_PASSWORD"], serviceRole),
		config: fmt.Sprintf(pgBouncerConfig, behind.Host, behind.Port, port, users),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil { // home itself is closed to others
			return nil, fmt.Errorf("write configuration: %w", err)
		}
	}
	s.log.say(p.name(), "starting %s on port %d", p.bin, port)
	pooled := postgresURL(ownerRole, server["POSTGRES_PASSWORD"], port, server["POSTGRES_DB"])
	in := &instance{Signal: syscall.SIGTERM, Remove: []string{home}}
	err = s.spawn(ctx, p.name(), account.command(home, p.bin, config), in, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, pooled.String())
		if err == nil {
			err = conn.Close(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	in.Exports = pgBouncerExports(pooled, server["POSTGRES_PASSWORD"])
	return in, nil
}

// pgBouncerExports say how the tables' owner comes through it, and how the service does.
func pgBouncerExports(owner *url.URL, servicePassword string) map[string]string {
	service := *owner
	service.User = url.UserPassword(serviceRole, servicePassword)
	return map[string]string{"STACK_PGBOUNCER_URL": owner.String(), "STACK_SERVICE_URL": service.String()}
}
