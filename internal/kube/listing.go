package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/pod"
)

const (
	listingTimeout = 15 * time.Second
	// listingBytes holds MaxListing names of three parts of 255 bytes each.
	listingBytes = 1 << 20
)

// Both scripts stay on the directory's own file system, which is the disk, and follow no link. find comes level by
// level, so that one full directory cannot crowd out the rest, begins with "." itself, without which it did not run, and
// ends with an empty name.
const (
	sizeScript = `PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd -P -- "$1" && du -shx .
`
	treeScript = `PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd -P -- "$1" || exit 1
{
for depth in 0 1 2 3; do
find . -xdev -mindepth "$depth" -maxdepth "$depth" -print0 | LC_ALL=C sort -z
done
printf '\0'
} | head -c "$2"
`
)

// RunListing returns what the directory holds, in at most 15 s. Its two halves are found side by side: with an error the
// listing still has the half that could be told.
func (c *Cluster) RunListing(ctx context.Context, namespace, podName, container, dir string) (pod.Listing, error) {
	run := func(script string, limit int) (Output, error) {
		return c.Exec(ctx, Command{
			Namespace: namespace,
			Pod:       podName,
			Container: container,
			Argv:      []string{"/bin/sh", "-c", script, "sh", dir, strconv.Itoa(listingBytes)},
			Limit:     limit,
			Timeout:   listingTimeout,
		})
	}
	var listing pod.Listing
	var noSize, noTree error
	var both sync.WaitGroup
	both.Go(func() {
		// Files that vanish under du, or that it may not read, make it fail after it has said what it could.
		output, err := run(sizeScript, stderrLimit)
		if said := string(output.Stdout); strings.HasSuffix(said, "\n") {
			listing.Size = disk.SizeText(said)
		}
		if listing.Size == "" {
			noSize = fmt.Errorf("size of %s: %w", dir, why(err, output))
		}
	})
	both.Go(func() {
		output, err := run(treeScript, listingBytes)
		names, whole := foundNames(output.Stdout)
		cut := !whole && len(output.Stdout) < listingBytes
		if err != nil || len(names) == 0 || cut {
			noTree = fmt.Errorf("tree of %s: %w", dir, why(err, output))
			return
		}
		listing.Tree, listing.Truncated = tree(names[1:], whole)
	})
	both.Wait()
	return listing, errors.Join(noSize, noTree)
}

// why returns the error, or what is known instead where the command itself claims to have succeeded.
func why(err error, output Output) error {
	if err == nil {
		err = fmt.Errorf("%w: %q", errCut, output.Stderr)
	}
	return err
}

// foundNames splits what find wrote, dropping a last name cut in two; whole is true if all of it is there. There are
// none if it does not begin with the directory itself.
func foundNames(output []byte) (names []string, whole bool) {
	text, whole := strings.CutSuffix(string(output), "\x00\x00")
	if !whole {
		text = text[:max(strings.LastIndexByte(text, 0), 0)]
	}
	if names = strings.Split(text, "\x00"); names[0] != "." {
		return nil, false
	}
	return names, whole
}

// tree draws names, given level by level, as an indented tree of at most MaxListing lines, the deepest left out first.
func tree(names []string, whole bool) (text string, truncated bool) {
	truncated = !whole || len(names) > pod.MaxListing
	if truncated {
		names = names[:min(len(names), pod.MaxListing-1)]
	}
	paths := make([][]string, 0, len(names))
	for _, name := range names {
		paths = append(paths, strings.Split(strings.TrimPrefix(name, "./"), "/"))
	}
	slices.SortFunc(paths, slices.Compare[[]string])
	var b strings.Builder
	for _, p := range paths {
		b.WriteString(strings.Repeat("  ", len(p)-1))
		b.WriteString(printable(p[len(p)-1]))
		b.WriteByte('\n')
	}
	if truncated {
		b.WriteString("… and more\n")
	}
	return b.String(), truncated
}

// printable keeps a name to one line that a terminal only shows.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(name, "\uFFFD"))
}
