package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// commands are the programs that a nested module of tools names as its tools, for whoever runs them: nothing is started.
// They come up only where STACK_WITH says so.
type commands struct {
	module  string // its folder
	version string // what its go.mod requires, for people
	takes   string // how long a first build takes
	ldflags string // besides -s -w
	dir     string // where the programs are
}

func (c *commands) name() string { return c.module }

// given names a directory that has them already, such as USE_EVENTING_BIN.
func (c *commands) given() string { return os.Getenv("USE_" + strings.ToUpper(c.module) + "_BIN") }

func (c *commands) build(ctx context.Context, s *stack) error {
	if c.dir = c.given(); c.dir != "" {
		return nil
	}
	source := filepath.Join(s.repo, "tools", c.module)
	key, err := hashTree(source)
	if err != nil {
		return err
	}
	c.dir = filepath.Join(s.cache, c.module+"-"+c.version+"-"+key)
	if _, err := os.Stat(c.dir); err == nil {
		return nil
	}
	s.log.say(c.name(), "building %s (a first build takes %s)", c.version, c.takes)
	if err := os.MkdirAll(c.dir+".tmp", 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := s.goBuild(ctx, c.name(), source, c.dir+".tmp"+string(filepath.Separator), c.ldflags, "tool"); err != nil {
		return fmt.Errorf("build the commands of tools/%s: %w", c.module, err)
	}
	if err := os.Rename(c.dir+".tmp", c.dir); err != nil {
		return fmt.Errorf("keep the commands of tools/%s: %w", c.module, err)
	}
	return s.prune(c.module+"-*", c.dir)
}

func (c *commands) start(context.Context, *stack) (*instance, error) {
	return &instance{Exports: map[string]string{"STACK_" + strings.ToUpper(c.module) + "_BIN": c.dir}}, nil
}
