package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// component is one part of the stack, and one file of this package.
type component interface {
	name() string
	// build makes everything that start needs exist on this machine; what is there already costs nothing.
	build(ctx context.Context, s *stack) error
	// start starts the component, waits until it answers, and tells what to remember of it.
	start(ctx context.Context, s *stack) (*instance, error)
}

// chains lists all components but those that STACK_WITHOUT names, and those commands that STACK_WITH names: each chain
// comes up in order, the chains side by side.
func chains() [][]component {
	all := [][]component{
		{&postgres{}, &pgBouncer{}, &promtool{}}, // one after the other also for apt-get
		{&cluster{}},
		{&aws{}},
		{&jaeger{}},
	}
	without := strings.Fields(os.Getenv("STACK_WITHOUT"))
	for i, chain := range all {
		all[i] = slices.DeleteFunc(chain, func(c component) bool { return slices.Contains(without, c.name()) })
	}
	with := strings.Fields(os.Getenv("STACK_WITH"))
	for _, c := range []*commands{
		{module: "eventing", version: "v0.47.0", takes: "4 to 5 minutes"},
		{module: "serving", version: "v0.42.2", takes: "2 to 3 minutes"},
		{module: "node", version: kubernetesVersion, takes: "5 to 7 minutes", ldflags: versionFlags},
		{module: "keda", version: "v2.21.0", takes: "7 to 8 minutes"},
	} {
		if slices.Contains(with, c.module) {
			all = append(all, []component{c})
		}
	}
	return all
}

// stack is one set of running components and the directory that knows of them.
type stack struct {
	dir   string // absolute
	repo  string
	cache string // what is built once per user and version
	log   *progress

	apt       sync.Mutex // one apt-get at a time
	mu        sync.Mutex
	instances map[string]*instance
}

// openStack opens the stack in a directory, relative to the repository; there may be nothing in it yet.
func openStack(dir string) (*stack, error) {
	repo, err := findRepository()
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache directory: %w", err)
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(repo, dir)
	}
	s := &stack{dir: dir, repo: repo, cache: filepath.Join(cache, "reservation-expiry"), log: newProgress(os.Stderr)}
	s.instances, err = loadInstances(s.runDir())
	return s, err
}

// findRepository walks up from the working directory, so that the program runs from anywhere in the checkout.
func findRepository() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, statErr := os.Stat(filepath.Join(dir, "tools", "kube", "go.mod")); statErr == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not inside the repository")
		}
	}
	return "", err
}

func (s *stack) runDir() string     { return filepath.Join(s.dir, "run") }
func (s *stack) envFile() string    { return filepath.Join(s.dir, "env") }
func (s *stack) kubeconfig() string { return filepath.Join(s.dir, "kubeconfig") }
func (s *stack) logFile(component string) string {
	return filepath.Join(s.dir, "logs", component+".log")
}

// dataDir makes an empty directory for a component; it is removed with its instance.
func (s *stack) dataDir(component string) (string, error) {
	dir := filepath.Join(s.dir, "data", component)
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear %s: %w", dir, err)
	}
	return dir, os.MkdirAll(dir, 0o755)
}

func (s *stack) up(ctx context.Context) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	group, ctx := errgroup.WithContext(ctx)
	for _, chain := range chains() {
		group.Go(func() error {
			anew := false // what comes later in a chain knows the addresses of what came before
			for _, c := range chain {
				started, err := s.bringUp(ctx, c, anew)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name(), err)
				}
				anew = anew || started
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	s.log.say("stack", "up: source %s", s.envFile())
	return nil
}

func (s *stack) bringUp(ctx context.Context, c component, anew bool) (started bool, err error) {
	if old := s.instance(c.name()); old != nil {
		switch running := old.running(); {
		case !running:
			s.log.say(c.name(), "has died, starting it anew")
		case len(old.Exports) == 0:
			s.log.say(c.name(), "was left half started, starting it anew")
		case !anew:
			s.log.say(c.name(), "already up")
			return false, nil
		}
		if err := old.stop(ctx); err != nil {
			return false, err
		}
	}
	if err := c.build(ctx, s); err != nil {
		return false, err
	}
	in, err := c.start(ctx, s)
	if err != nil {
		return false, err
	}
	return true, s.remember(c.name(), in)
}

func (s *stack) build(ctx context.Context) error {
	for _, chain := range chains() {
		for _, c := range chain {
			if err := c.build(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", c.name(), err)
			}
		}
	}
	s.log.say("stack", "everything is built")
	return nil
}

// down stops what runs, even if it was never brought up whole, and removes the directory.
func (s *stack) down(ctx context.Context) error {
	if _, err := os.Stat(s.dir); errors.Is(err, os.ErrNotExist) {
		s.log.say("stack", "nothing is up")
		return nil
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	var group errgroup.Group
	for name, in := range s.instances {
		group.Go(func() error {
			if err := in.stop(ctx); err != nil {
				return fmt.Errorf("stop %s: %w", name, err)
			}
			s.log.say(name, "stopped")
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	// One by one: whoever points STACK_DIR at a directory of his own keeps what else is in it.
	for _, ours := range []string{"run", "logs", "data", "env", "kubeconfig", "lock"} {
		if err := os.RemoveAll(filepath.Join(s.dir, ours)); err != nil {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	if err := os.Remove(s.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove state: %w", err)
	}
	s.log.say("stack", "down")
	return nil
}

// lock keeps two launchers from starting or stopping the same stack at once.
func (s *stack) lock() (unlock func(), err error) {
	for _, dir := range []string{s.runDir(), filepath.Join(s.dir, "logs"), s.cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		s.log.say("stack", "waiting for another stack up or down on %s", s.dir)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, fmt.Errorf("lock %s: %w", s.dir, err)
		}
	}
	s.instances, err = loadInstances(s.runDir())
	return func() { _ = f.Close() }, err
}
