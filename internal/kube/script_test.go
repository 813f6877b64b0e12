package kube

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// runWrite runs the script as a container would, with the machine's own shell and tools.
//
// On success, and then only, it must say so.
func runWrite(t *testing.T, dir, name, content, replaces string, size int) (stderr string, code int) {
	t.Helper()
	return runScript(t, writeScript, dir, name, content, replaces, size)
}

func runScript(t *testing.T, script, dir, name, content, replaces string, size int) (stderr string, code int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/bin/sh", "-c", "umask 077\n"+script, "sh", dir, name, strconv.Itoa(size), replaces)
	c.Stdin = strings.NewReader(content)
	var said, out strings.Builder
	c.Stdout, c.Stderr = &said, &out
	err := c.Run()
	if c.ProcessState == nil {
		require.NoError(t, err)
	}
	require.Equal(t, err == nil, said.String() == "written\n")
	return out.String(), c.ProcessState.ExitCode()
}

func put(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// holds reports the names in the directory, each with what it holds.
func holds(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	found := map[string]string{}
	for _, e := range entries {
		if e.Type().IsRegular() {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			found[e.Name()] = string(content)
		} else {
			found[e.Name()] = e.Type().String()
		}
	}
	return found
}

func TestWriteScriptReplacesTheFileAndTheOlderOnes(t *testing.T) {
	t.Parallel()
	home := filepath.Join(t.TempDir(), "a home; with $(odd) 'letters'")
	put(t, filepath.Join(home, "WARN_EXPIRES_IN_30MIN.txt"), "old")
	put(t, filepath.Join(home, "WARN_EXPIRES_IN_15MIN.txt"), "older of the same name")
	put(t, filepath.Join(home, "WARN_own directory", "kept"), "the user's")
	put(t, filepath.Join(home, ".WARN_EXPIRES_IN_30MIN.txt.new", "WARN_EXPIRES_IN_30MIN.txt"), "left by a writer that died")
	put(t, filepath.Join(home, ".WARN_EXPIRES_IN_15MIN.txt.new", "WARN_EXPIRES_IN_15MIN.txt"), "left by a writer that died")
	put(t, filepath.Join(home, "notes.txt"), "the user's")
	content := "ends soon\n$HOME `id` \x00 é\n"
	stderr, code := runWrite(t, home, "WARN_EXPIRES_IN_15MIN.txt", content, "WARN_", len(content))
	require.Zero(t, code, stderr)
	require.Empty(t, stderr)
	require.Equal(t, map[string]string{
		"WARN_EXPIRES_IN_15MIN.txt": content,
		"WARN_own directory":        "d---------",
		"notes.txt":                 "the user's",
	}, holds(t, home))
	info, err := os.Stat(filepath.Join(home, "WARN_EXPIRES_IN_15MIN.txt"))
	require.NoError(t, err)
	require.Equal(t, "-rw-r--r--", info.Mode().String())
}

func TestWriteScriptLeavesTheOthersWhereNoneAreToGo(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	put(t, filepath.Join(home, "WARN_EXPIRES_IN_30MIN.txt"), "old")
	stderr, code := runWrite(t, home, "OOM_DETECTED.txt", "", "", 0)
	require.Zero(t, code, stderr)
	require.Equal(t, map[string]string{"WARN_EXPIRES_IN_30MIN.txt": "old", "OOM_DETECTED.txt": ""}, holds(t, home))
}

func TestWriteScriptPutsNothingWhereInputWasCutShort(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	put(t, filepath.Join(home, "WARN_5.txt"), "old")
	_, code := runWrite(t, home, "WARN_5.txt", "only ha", "WARN_", len("only half of it"))
	require.Equal(t, 74, code)
	require.Equal(t, map[string]string{"WARN_5.txt": "old"}, holds(t, home))
}

func TestWriteScriptReplacesLinksAndFollowsNone(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]string{"to a file": "secret", "to a directory": "etc", "to nothing": "nothing"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			home := filepath.Join(root, "home")
			put(t, filepath.Join(home, "notes.txt"), "the user's")
			put(t, filepath.Join(root, "secret"), "not yours")
			put(t, filepath.Join(root, "etc", "WARN_x"), "not yours")
			for _, link := range []string{"WARN_5.txt", "WARN_15.txt", ".WARN_5.txt.new", ".WARN_15.txt.new"} {
				require.NoError(t, os.Symlink(filepath.Join(root, target), filepath.Join(home, link)))
			}
			stderr, code := runWrite(t, home, "WARN_5.txt", "new", "WARN_", 3)
			require.Zero(t, code, stderr)
			require.Equal(t, map[string]string{"WARN_5.txt": "new", "notes.txt": "the user's"}, holds(t, home))
			require.Equal(t, map[string]string{"WARN_x": "not yours"}, holds(t, filepath.Join(root, "etc")))
			require.Equal(t, map[string]string{"home": "d---------", "etc": "d---------", "secret": "not yours"}, holds(t, root))
		})
	}
}

// Somebody who owns the home acts just before or just after one of the script's steps.
func TestWriteScriptIsNotLedAstrayBetweenItsSteps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tool, before, after string
		code                int
		home                map[string]string
	}{
		"its directory becomes a link": {tool: "mkdir", after: "mv .WARN_5.txt.new moved; ln -s ../outside .WARN_5.txt.new", code: 75,
			home: map[string]string{"moved": "d---------"}},
		"its directory becomes a link to an empty one": {tool: "mkdir", after: "mv .WARN_5.txt.new moved; ln -s ../outside/empty .WARN_5.txt.new", code: 75,
			home: map[string]string{"moved": "d---------"}},
		"its directory vanishes": {tool: "mkdir", after: "rmdir .WARN_5.txt.new", code: 2, home: map[string]string{}},
		"its directory is renamed while it writes": {tool: "wc", before: "mv .WARN_5.txt.new moved",
			home: map[string]string{"WARN_5.txt": "new", "moved": "d---------"}},
		"its directory is closed to others": {tool: "mv", before: "[ $(stat -c %a .WARN_5.txt.new) = 700 ] || touch it_is_open",
			home: map[string]string{"WARN_5.txt": "new"}},
		"the name becomes a link to a directory": {tool: "mv", before: "ln -s ../outside/empty WARN_5.txt",
			home: map[string]string{"WARN_5.txt": "new"}},
		"the name becomes a link to a file": {tool: "mv", before: "ln -s ../outside/WARN_x WARN_5.txt",
			home: map[string]string{"WARN_5.txt": "new"}},
		"the name becomes a directory": {tool: "mv", before: "mkdir WARN_5.txt", code: 1,
			home: map[string]string{"WARN_5.txt": "d---------"}},
		"an older file becomes a link": {tool: "mv", after: "ln -s ../outside/WARN_x WARN_30.txt; ln -s ../outside WARN_60.txt",
			home: map[string]string{"WARN_5.txt": "new"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			home := filepath.Join(root, "home")
			require.NoError(t, os.MkdirAll(home, 0o755))
			require.NoError(t, os.MkdirAll(filepath.Join(root, "outside", "empty"), 0o755))
			put(t, filepath.Join(root, "outside", "WARN_x"), "not yours")
			wrapper := fmt.Sprintf("#!/bin/sh\nPATH=/usr/bin:/bin\n(cd %q; %s)\n%s \"$@\"\ncode=$?\n(cd %q; %s)\nexit $code\n",
				home, cmp.Or(c.before, ":"), c.tool, home, cmp.Or(c.after, ":"))
			tools := filepath.Join(root, "tools")
			put(t, filepath.Join(tools, c.tool), wrapper)
			require.NoError(t, os.Chmod(filepath.Join(tools, c.tool), 0o755))
			script := strings.Replace(writeScript, "PATH=", "PATH="+tools+":", 1)

			stderr, code := runScript(t, script, home, "WARN_5.txt", "new", "WARN_", 3)
			require.Equal(t, c.code, code, stderr)
			require.Equal(t, c.home, holds(t, home))
			require.Equal(t, map[string]string{"WARN_x": "not yours", "empty": "d---------"}, holds(t, filepath.Join(root, "outside")))
			require.Empty(t, holds(t, filepath.Join(root, "outside", "empty")))
			require.Equal(t, map[string]string{"home": "d---------", "outside": "d---------", "tools": "d---------"}, holds(t, root))
		})
	}
}

func TestWriteScriptRefusesToReplaceADirectory(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	put(t, filepath.Join(home, "WARN_5.txt", "work"), "the user's")
	stderr, code := runWrite(t, home, "WARN_5.txt", "new", "WARN_", 3)
	require.Equal(t, exitTaken, code)
	require.Equal(t, "WARN_5.txt is a directory\n", stderr)
	require.Equal(t, map[string]string{"WARN_5.txt": "d---------"}, holds(t, home))
	require.Equal(t, map[string]string{"work": "the user's"}, holds(t, filepath.Join(home, "WARN_5.txt")))
}

func TestWriteScriptFailsWhereThereIsNoHome(t *testing.T) {
	t.Parallel()
	_, code := runWrite(t, filepath.Join(t.TempDir(), "none"), "WARN_5.txt", "new", "WARN_", 3)
	require.NotZero(t, code)
	require.NotEqual(t, exitTaken, code, "it may be there later")
}

func TestTreeScriptFindsThreeLevels(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	home := filepath.Join(root, "home")
	put(t, filepath.Join(home, "b", "c", "d", "too deep"), "")
	put(t, filepath.Join(home, "a\nb"), "")
	put(t, filepath.Join(root, "elsewhere", "private"), "")
	require.NoError(t, os.Symlink(filepath.Join(root, "elsewhere"), filepath.Join(home, "link")))
	output, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", treeScript, "sh", home, "1000").Output()
	require.NoError(t, err)
	names, whole := foundNames(output)
	require.True(t, whole)
	require.Equal(t, []string{".", "./a\nb", "./b", "./link", "./b/c", "./b/c/d"}, names)

	output, err = exec.CommandContext(t.Context(), "/bin/sh", "-c", treeScript, "sh", filepath.Join(root, "none"), "1000").Output()
	require.Error(t, err)
	require.Empty(t, output)
}
