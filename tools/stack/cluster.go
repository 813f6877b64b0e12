package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// kubernetesVersion is what tools/kube/go.mod requires; generate-gomod.sh there changes both.
const kubernetesVersion = "v1.36.4"

// versionFlags has the linker tell Kubernetes its version; it takes itself for 0.0.0 otherwise.
const versionFlags = "-X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
	" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"

// progressEvery is how often a long build says that it is still at it.
const progressEvery = 15 * time.Second

const pruneAfter = 7 * 24 * time.Hour

// cluster is tools/kube/cmd/devcluster: etcd, kube-apiserver and simulated nodes in one process.
type cluster struct{ bin string }

func (*cluster) name() string { return "kubernetes" }

func (c *cluster) build(ctx context.Context, s *stack) error {
	if os.Getenv("USE_KUBECONFIG") != "" {
		return nil
	}
	if c.bin = os.Getenv("USE_DEVCLUSTER_BIN"); c.bin != "" {
		return nil
	}
	source := filepath.Join(s.repo, "tools", "kube")
	key, err := hashTree(source)
	if err != nil {
		return err
	}
	c.bin = filepath.Join(s.cache, "devcluster-"+kubernetesVersion+"-"+key)
	if _, err := os.Stat(c.bin); err == nil {
		return nil
	}
	s.log.say(c.name(), "building %s (a first build takes 4 to 6 minutes)", kubernetesVersion)
	if err := s.goBuild(ctx, c.name(), source, c.bin+".tmp", versionFlags, "./cmd/devcluster"); err != nil {
		return fmt.Errorf("build devcluster: %w", err)
	}
	if err := os.Rename(c.bin+".tmp", c.bin); err != nil {
		return err
	}
	return s.prune("devcluster-*", c.bin)
}

// prune removes what was built for other versions and not lately; a checkout that still wants it links it again.
func (s *stack) prune(pattern, keep string) error {
	built, err := filepath.Glob(filepath.Join(s.cache, pattern))
	for _, path := range built {
		info, statErr := os.Stat(path)
		if statErr == nil && path != keep && time.Since(info.ModTime()) > pruneAfter {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// runLong runs a command that prints a line for each thing done, and now and then says how many there are.
func (s *stack) runLong(component string, cmd *exec.Cmd) error {
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	begun, done, last := time.Now(), 0, []string{""} // the last lines, in case of failure
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for open := true; open; {
		var line string
		select {
		case line, open = <-lines:
			done++
			last = append(last[max(0, len(last)-15):], line)
		case <-tick.C:
			s.log.say(component, "%d packages in %.0f s, at %s", done, time.Since(begun).Seconds(), last[len(last)-1])
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n  %s", err, strings.Join(last, "\n  "))
	}
	s.log.say(component, "built in %.0f s", time.Since(begun).Seconds())
	return nil
}

// hashTree names a version of a source tree, for this compiler. What is read at run time (YAML) makes no other.
func hashTree(dir string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".yaml") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		fmt.Fprintln(hash, strings.TrimPrefix(path, dir))
		_, err = io.Copy(hash, f)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", dir, err)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:6]), nil
}

func (c *cluster) start(ctx context.Context, s *stack) (*instance, error) {
	if given := os.Getenv("USE_KUBECONFIG"); given != "" {
		s.log.say(c.name(), "using USE_KUBECONFIG %s", given)
		return &instance{Exports: clusterExports(given)}, nil
	}
	dir, err := s.dataDir(c.name())
	if err != nil {
		return nil, err
	}
	s.log.say(c.name(), "starting %s", filepath.Base(c.bin))
	made := filepath.Join(dir, "kubeconfig")
	cmd := exec.Command(c.bin, "--dir", dir, "--audit-log", filepath.Join(s.dir, "logs", "kubernetes-audit.log"))
	in := &instance{Signal: syscall.SIGTERM, Remove: []string{dir}}
	err = s.spawn(ctx, c.name(), cmd, in, func(context.Context) error {
		_, err := os.Stat(made)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := os.Rename(made, s.kubeconfig()); err != nil {
		return nil, fmt.Errorf("publish kubeconfig: %w", err)
	}
	in.Exports = clusterExports(s.kubeconfig())
	return in, nil
}

func clusterExports(kubeconfig string) map[string]string {
	return map[string]string{"KUBECONFIG": kubeconfig, "EKS_CLUSTER_NAME": "devcluster"}
}
