package kube

import (
	"context"
	"errors"
	"path"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

const (
	fileTimeout = 15 * time.Second
	// maxFileName leaves room for what is put around it within the 255 bytes of a file's name.
	maxFileName = 200
	// stderrLimit is enough for what went wrong.
	stderrLimit = 4 << 10
)

// exitTaken is the script's code for a name that a directory of the user's has.
const exitTaken = 73

// writeScript writes stdin to the file $2 in the directory $1, if it is $3 bytes long, and removes the other files
// there whose names begin with $4. It may run as root in a home that its user owns, and must not be led elsewhere by
// a symbolic link planted there, now or between two of its steps. Therefore it
//   - finds its tools where the user cannot put any,
//   - writes in a directory of its own, closed to others, after proving that it stands in that one: a user may
//     rename it within the home but not out of it, so that ".." stays the home,
//   - lets the shell create the file (set -C: it must not exist), and renames it without following a link (mv -T).
//
// What others see under the name is the former file or the whole new one. At its end it says so.
const writeScript = `set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
dir=$1 name=$2 size=$3 replaces=$4 own=.$2.new
no() { echo "$2" >&2; exit "$1"; }
umask 022
cd -P -- "$dir"
home=$(pwd -P)
rm -rf -- "./$own"
mkdir -m 700 -- "./$own"
trap 'cd -P -- "$home" && rm -rf -- "./$own"' EXIT
cd -P -- "./$own"
[ "$(pwd -P)" = "${home%/}/$own" ] && [ -O . ] || no 75 "the directory was replaced"
(set -C; cat >"./$name")
[ "$(wc -c <"./$name")" -eq "$size" ] || no 74 "the input was cut short"
[ ! -L "../$name" ] || rm -f -- "../$name"
[ ! -d "../$name" ] || no 73 "$name is a directory"
mv -fT -- "./$name" "../$name"
cd -P -- "$home"
if [ -n "$replaces" ]; then
for old in ./"$replaces"*; do
[ "$old" = "./$name" ] || rm -f -- "$old" 2>/dev/null || :
done
rm -rf -- ./."$replaces"*.new
fi
echo written
`

// WriteFile puts a small file before the user's eyes: all of it or nothing, readable by all, replacing what had the
// name. No value goes through a shell. Writing it again changes nothing; Permanent means that the user has a directory of
// that name, which is not ours to remove.
func (c *Cluster) WriteFile(ctx context.Context, namespace, podName, container string, f pod.File) error {
	t := target{"pods", namespace, podName}
	if !plainName(f.Name) || f.Replaces != "" && !plainName(f.Replaces) || !path.IsAbs(f.Dir) {
		return fault.Errorf(fault.Permanent, "write %q in %q of %s: not a plain file name or not an absolute directory", f.Name, f.Dir, t)
	}
	output, err := c.Exec(ctx, Command{
		Namespace: namespace,
		Pod:       podName,
		Container: container,
		Argv:      []string{"/bin/sh", "-c", writeScript, "sh", f.Dir, f.Name, strconv.Itoa(len(f.Content)), f.Replaces},
		Stdin:     strings.NewReader(f.Content),
		Limit:     stderrLimit,
		Timeout:   fileTimeout,
	})
	if err == nil && string(output.Stdout) == "written\n" {
		return nil
	}
	if err == nil {
		err = errCut
	}
	kind := fault.KindOf(err)
	if failed, ok := errors.AsType[*ExitError](err); ok && failed.Code == exitTaken {
		kind = fault.Permanent
	}
	return fault.Errorf(kind, "write %s: %w", path.Join(f.Dir, f.Name), err)
}

// plainName reports whether s names, or begins the name of, a file in a directory: nothing hidden, no option, no path.
func plainName(s string) bool {
	return s != "" && len(s) <= maxFileName && s[0] != '.' && s[0] != '-' && !strings.ContainsAny(s, "/\x00\n")
}
