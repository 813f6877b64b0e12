package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stopTime is how long a component may take to end by itself before it is killed.
const stopTime = 10 * time.Second

// instance is a started component as the next launcher finds it in run/<component>.json.
type instance struct {
	PID     int               `json:"pid,omitempty"`     // none: the component was given, not started
	Born    string            `json:"born,omitempty"`    // the process' start time, since ids are used again
	Signal  syscall.Signal    `json:"signal,omitempty"`  // asks it to end at once
	Remove  []string          `json:"remove,omitempty"`  // directories that go with it
	Exports map[string]string `json:"exports,omitempty"` // environment of its users
}

func loadInstances(dir string) (map[string]*instance, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	all := map[string]*instance{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read instance: %w", err)
		}
		in := &instance{}
		if err := json.Unmarshal(text, in); err != nil {
			return nil, fmt.Errorf("read instance %s: %w", file, err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = in
	}
	return all, nil
}

func (s *stack) instance(name string) *instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instances[name]
}

// remember records a started component and makes its exports part of the env file.
func (s *stack) remember(name string, in *instance) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[name] = in
	text, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return fmt.Errorf("encode instance: %w", err)
	}
	if err := replaceFile(filepath.Join(s.runDir(), name+".json"), text); err != nil {
		return err
	}
	if len(in.Exports) == 0 {
		return nil
	}
	var env bytes.Buffer
	fmt.Fprintf(&env, "export STACK_DIR=%s\n", shellQuote(s.dir))
	for _, name := range slices.Sorted(maps.Keys(s.instances)) {
		exports := s.instances[name].Exports
		for _, key := range slices.Sorted(maps.Keys(exports)) {
			fmt.Fprintf(&env, "export %s=%s\n", key, shellQuote(exports[key]))
		}
	}
	return replaceFile(s.envFile(), env.Bytes())
}

func shellQuote(value string) string {
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".tmp", content, 0o600); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// spawn starts a component in a session of its own, so that it outlives this program, and waits until ready answers
// nil. A component that ends or does not get ready leaves no process behind.
func (s *stack) spawn(ctx context.Context, name string, cmd *exec.Cmd, in *instance, ready func(context.Context) error) error {
	log, err := os.Create(s.logFile(name))
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	in.PID = cmd.Process.Pid
	in.Born, _ = born(in.PID)
	// Recorded before it is ready: if this program dies now, down still finds the process.
	if err := s.remember(name, &instance{PID: in.PID, Born: in.Born, Signal: in.Signal, Remove: in.Remove}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		lastErr := ready(ctx)
		if lastErr == nil {
			return nil
		}
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("exit status 0")
			}
			return fmt.Errorf("ended before it was ready: %w\n%s", err, s.logTail(name))
		case <-ctx.Done():
			_ = in.stop(context.WithoutCancel(ctx))
			return fmt.Errorf("not ready: %w\n%s", lastErr, s.logTail(name))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func (s *stack) logTail(name string) string {
	text, _ := os.ReadFile(s.logFile(name))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-10):], "\n  ") + "\n  (" + s.logFile(name) + ")"
}

// running says whether the process is there and the same that was started; a given component always is.
func (in *instance) running() bool {
	if in.PID == 0 {
		return true
	}
	started, alive := born(in.PID)
	return alive && started == in.Born
}

// stop ends the process and everything in its group and removes its directories.
func (in *instance) stop(ctx context.Context) error {
	if in.PID != 0 && in.running() {
		_ = syscall.Kill(in.PID, in.Signal)
		for deadline := time.Now().Add(stopTime); in.running() && time.Now().Before(deadline); {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		if in.running() {
			_ = syscall.Kill(-in.PID, syscall.SIGKILL)
		}
	}
	for _, dir := range in.Remove {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove data: %w", err)
		}
	}
	return nil
}

// born reads a process' start time from /proc; a process that only waits to be reaped is not alive.
func born(pid int) (startTime string, alive bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	// The command, in parentheses, may hold anything: count fields from behind it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, start = 0, 19
	return fields[start], fields[state] != "Z"
}
