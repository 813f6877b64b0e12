package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestTreeIsIndentedAndInOrder(t *testing.T) {
	t.Parallel()
	// As find gives them: level by level. "a-b" sorts between "a" and "a/c" by bytes, but not in a tree.
	text, truncated := tree([]string{"./a", "./a-b", "./z", "./a/c", "./z/y", "./z/y/x"}, true)
	require.Equal(t, "a\n  c\na-b\nz\n  y\n    x\n", text)
	require.False(t, truncated)
}

func TestTreeShowsNamesOnOneLine(t *testing.T) {
	t.Parallel()
	text, _ := tree([]string{"./two\nlines", "./\x1b[31mred", "./caf\xe9", "./été 日本"}, true)
	require.Equal(t, "?[31mred\ncaf\uFFFD\ntwo?lines\nété 日本\n", text)
}

func TestTreeLeavesOutTheDeepest(t *testing.T) {
	t.Parallel()
	names := []string{"./full", "./last"}
	for i := range pod.MaxListing {
		names = append(names, fmt.Sprintf("./full/%04d", i))
	}
	text, truncated := tree(names, true)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	require.True(t, truncated)
	require.Len(t, lines, pod.MaxListing)
	require.Contains(t, lines, "last")
	require.Equal(t, "… and more", lines[len(lines)-1])

	text, truncated = tree(names[:pod.MaxListing], true)
	require.False(t, truncated)
	require.Len(t, strings.Split(strings.TrimSuffix(text, "\n"), "\n"), pod.MaxListing)

	_, truncated = tree(names[:3], false)
	require.True(t, truncated, "find's output was cut")
}

func TestFoundNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		output string
		names  []string
		whole  bool
	}{
		"nothing: it did not run":   {"", nil, false},
		"an error in place of it":   {"find: not found\n", nil, false},
		"an empty directory":        {".\x00\x00", []string{"."}, true},
		"names":                     {".\x00./a\x00./b\x00\x00", []string{".", "./a", "./b"}, true},
		"cut before the end":        {".\x00./a\x00./b\x00", []string{".", "./a", "./b"}, false},
		"cut in a name":             {".\x00./a\x00./b", []string{".", "./a"}, false},
		"only the directory itself": {".\x00", []string{"."}, false},
		"cut in the first":          {".", nil, false},
		"nothing but an end":        {"\x00\x00", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			names, whole := foundNames([]byte(c.output))
			require.Equal(t, c.names, names)
			require.Equal(t, c.whole, whole)
		})
	}
}

func TestTreeHoldsItsLimitWhateverIsFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		output := rapid.SliceOf(rapid.SampledFrom([]byte("./a\n\x00\xff"))).Draw(t, "output")
		names, whole := foundNames(append([]byte(".\x00"), output...))
		require.NotEmpty(t, names)
		text, _ := tree(names[1:], whole)
		require.LessOrEqual(t, strings.Count(text, "\n"), pod.MaxListing)
	})
}

func TestKeptKeepsTheFirstBytesAndNeverFails(t *testing.T) {
	t.Parallel()
	k := newKept(5)
	for _, s := range []string{"abc", "", "de", "", "fgh"} {
		n, err := k.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
		require.Equal(t, s == "fgh", k.truncated())
	}
	require.Equal(t, "abcde", string(k.bytes()))
}
