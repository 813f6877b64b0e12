// Package stacktest gives tests what they need of the real components that `make stack-up` starts: a database, a
// namespace, an AWS account of their own each, so that all tests run side by side.
package stacktest

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const notUp = "the stack is not up: run make stack-up and source .stack/env"

// Env returns what the stack exports under a name; without a stack the test fails.
// Only the stack's own file counts, never the environment: that KUBECONFIG may be of a cluster that matters.
func Env(t testing.TB, name string) string {
	t.Helper()
	exports, err := readExports()
	if err != nil {
		t.Fatalf("%s (%v)", notUp, err)
	}
	value, ok := exports[name]
	if !ok {
		t.Fatalf("%s (%s is not exported)", notUp, name)
	}
	return value
}

// Environ returns everything the stack exports, as os/exec wants it for a child process.
func Environ(t testing.TB) []string {
	t.Helper()
	exports, err := readExports()
	if err != nil {
		t.Fatalf("%s (%v)", notUp, err)
	}
	var all []string
	for name, value := range exports {
		all = append(all, name+"="+value)
	}
	return all
}

var readExports = sync.OnceValues(func() (map[string]string, error) {
	dir := os.Getenv("STACK_DIR")
	if dir == "" {
		root, err := repository()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(root, ".stack")
	}
	file, err := os.Open(filepath.Join(dir, "env"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	exports := map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		exports[name] = strings.ReplaceAll(strings.Trim(value, "'"), `'\''`, "'")
	}
	return exports, lines.Err()
})

// repository walks up from the working directory, which for tests is their package's.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "internal", "stacktest")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not inside the repository")
		}
		dir = filepath.Dir(dir)
	}
}
