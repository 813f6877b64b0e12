package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// components are the real things that the service talks to, as tools/stack starts them.
type components struct {
	dir string            // its own, so that a stack for tests stays as it is
	env map[string]string // what the stack exports
}

// openComponents finds the directory and what runs there already.
func openComponents() (*components, error) {
	dir, err := filepath.Abs(envOr("STACK_DIR", ".stack-demo"))
	if err != nil {
		return nil, fmt.Errorf("find the stack's directory: %w", err)
	}
	return &components{dir: dir}, nil
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// stack runs tools/stack, which says on stderr what it is at.
func (c *components) stack(ctx context.Context, command string) error {
	cmd := exec.CommandContext(ctx, "bin/stack", command)
	cmd.Env = append(os.Environ(), "STACK_DIR="+c.dir, "STACK_WITHOUT=promtool") // which nothing here needs
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it stops what it has begun
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("bring the components %s: %w", command, err)
	}
	return nil
}

// up starts everything anew.
func (c *components) up(ctx context.Context) error {
	if err := c.down(ctx); err != nil {
		return err
	}
	if err := c.stack(ctx, "up"); err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(c.dir, "env"))
	if err != nil {
		return fmt.Errorf("read what the stack exports: %w", err)
	}
	defer func() { _ = file.Close() }()
	c.env = map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		c.env[name] = strings.ReplaceAll(strings.Trim(value, "'"), `'\''`, "'")
	}
	return lines.Err()
}

// down stops everything, the service included.
func (c *components) down(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.dir, "run")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.stack(ctx, "down")
}

// clear is down, and takes away what the demo has written besides, but for the service's log.
func (c *components) clear(ctx context.Context) error {
	if err := os.RemoveAll(c.envFile()); err != nil {
		return fmt.Errorf("remove the environment: %w", err)
	}
	return c.down(ctx)
}

// envFile is the service's environment, to be sourced by people who look further.
func (c *components) envFile() string { return filepath.Join(c.dir, "demo.env") }

// given reports whether a component is not the demo's own and will outlive it.
func (c *components) given(name string) bool { return os.Getenv(name) != "" }

// database is the demo's own in whatever PostgreSQL there is.
const database = "reservation_expiry_demo"

// createDatabase makes it anew and returns its URL past PgBouncer.
func (c *components) createDatabase(ctx context.Context) (string, error) {
	super, err := pgx.Connect(ctx, c.env["STACK_POSTGRES_URL"])
	if err != nil {
		return "", fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer func() { _ = super.Close(context.WithoutCancel(ctx)) }()
	for _, statement := range []string{
		"drop database if exists " + database + " with (force)",
		"create database " + database + " owner " + pgx.Identifier{c.env["POSTGRES_USER"]}.Sanitize(),
	} {
		if _, err := super.Exec(ctx, statement); err != nil {
			return "", fmt.Errorf("make a database: %w", err)
		}
	}
	return c.databaseURL(c.env["POSTGRES_HOST"], c.env["POSTGRES_PORT"]), nil
}

func (c *components) databaseURL(host, port string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(c.env["POSTGRES_USER"], c.env["POSTGRES_PASSWORD"]),
		Host: net.JoinHostPort(host, port), Path: database, RawQuery: "sslmode=disable"}
	return u.String()
}

// adopt has the stack stop a process that the demo has started, as if it were one of its components.
func (c *components) adopt(name string, pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return fmt.Errorf("look at process %d: %w", pid, err)
	}
	// By pid and start time, since process ids are used again. The command, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	text, err := json.Marshal(map[string]any{"pid": pid, "born": fields[19], "signal": syscall.SIGTERM})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "run", name+".json"), text, 0o600); err != nil {
		return fmt.Errorf("record process %d: %w", pid, err)
	}
	return nil
}

// spawn starts a process in a session of its own, which stack down ends, with its output in a file.
func (c *components) spawn(name, log string, environ []string, program string, args ...string) (*exec.Cmd, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = environ, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return cmd, c.adopt(name, cmd.Process.Pid)
}
