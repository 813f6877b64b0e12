//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// unpacked returns a folder in which some Debian packages are unpacked. They are not installed: that would start what
// runs as a service, and leave it behind. That they cannot be had fails the test: the machine may well allow a node.
func unpacked(t *testing.T, packages ...string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	dir := filepath.Join(cache, "reservation-expiry", "debian-node")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	download := filepath.Join(t.TempDir(), "packages")
	root := filepath.Join(download, "root")
	require.NoError(t, os.MkdirAll(root, 0o755))
	say(t, "the node: unpacking the Debian packages %s", strings.Join(packages, ", "))
	get := func() error { return in(download, "apt-get", append([]string{"download"}, packages...)...) }
	if err := get(); err != nil { // no lists yet
		require.NoError(t, in(download, "apt-get", "update"))
		require.NoError(t, get())
	}
	files, err := filepath.Glob(filepath.Join(download, "*.deb"))
	require.NoError(t, err)
	for _, file := range files {
		require.NoError(t, in(download, "dpkg-deb", "-x", file, root))
	}
	require.NoError(t, in(download, "mv", root, dir))
	return dir
}

func in(dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return nil
}
