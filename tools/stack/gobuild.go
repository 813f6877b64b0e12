package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
)

// goBuild builds packages of the module in dir. All that is built here and in the Makefile takes the same flags, so
// that what they have in common is compiled once; nothing is debugged here, and DWARF is a sixth of the work. So is the
// compiler's garbage collection, which a process that lives for seconds can do without.
func (s *stack) goBuild(ctx context.Context, component, dir, out, ldflags string, packages ...string) error {
	args := append([]string{"build", "-v", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", strings.TrimSpace("-s -w " + ldflags), "-o", out}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOGC=off", "GOMEMLIMIT=2GiB")
	return s.runLong(component, cmd)
}
