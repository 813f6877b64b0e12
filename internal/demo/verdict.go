package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// judge checks every expectation once more and prints a line for each. It returns how many there are and how many do
// not hold.
func judge(ctx context.Context, out io.Writer, color bool, subjects []*subject) (all, bad int) {
	mark := map[bool]string{true: "✓", false: "✗"}
	if color {
		mark = map[bool]string{true: "\x1b[32m✓\x1b[0m", false: "\x1b[31m✗\x1b[0m"}
	}
	failed := failing(ctx, subjects)
	for _, r := range subjects {
		name := r.title
		if r.ID != "" {
			name += "  (" + r.ID[:8] + ")"
		}
		fmt.Fprintln(out, name)
		for i, c := range r.checks {
			var err error
			if errs := failed[r]; errs != nil {
				err = errs[i]
			}
			all++
			line := "  " + mark[err == nil] + " " + c.what
			if err != nil {
				bad++
				line += ": " + strings.Join(strings.Fields(err.Error()), " ")
			}
			fmt.Fprintln(out, line)
		}
	}
	return all, bad
}
