package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// promtool tests the alert rules. It is no server: it only has to be there.
type promtool struct{ bin string }

func (*promtool) name() string { return "promtool" }

func (p *promtool) build(ctx context.Context, s *stack) error {
	if p.bin = os.Getenv("USE_PROMTOOL_BIN"); p.bin != "" {
		return nil
	}
	if path, err := exec.LookPath("promtool"); err == nil {
		p.bin = path
		return nil
	}
	p.bin = filepath.Join(s.cache, "promtool")
	if _, err := os.Stat(p.bin); err == nil {
		return nil
	}
	return p.unpack(ctx, s)
}

// unpack takes promtool out of Debian's package, which is not installed: that would start a Prometheus.
func (p *promtool) unpack(ctx context.Context, s *stack) error {
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", s.cache, err)
	}
	dir, err := os.MkdirTemp(s.cache, "promtool-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s.apt.Lock()
	defer s.apt.Unlock()
	s.log.say(p.name(), "unpacking it from the Debian package prometheus")
	run := func(program string, args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", program, args[0], err, out)
		}
		return nil
	}
	if err = run("apt-get", "download", "prometheus"); err != nil && os.Geteuid() == 0 { // no lists yet
		if err = run("apt-get", "update"); err == nil {
			err = run("apt-get", "download", "prometheus")
		}
	}
	if err != nil {
		return fmt.Errorf("name a promtool in USE_PROMTOOL_BIN, since it cannot be had: %w", err)
	}
	packages, err := filepath.Glob(filepath.Join(dir, "prometheus_*.deb"))
	if err != nil || len(packages) != 1 {
		return errors.New("apt-get download left no package")
	}
	if err := run("dpkg-deb", "-x", packages[0], dir); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "usr", "bin", "promtool"), p.bin); err != nil {
		return fmt.Errorf("keep promtool: %w", err)
	}
	return nil
}

func (p *promtool) start(context.Context, *stack) (*instance, error) {
	return &instance{Exports: map[string]string{"STACK_PROMTOOL": p.bin}}, nil
}
