package stacktest

import (
	"os"
	"strconv"
	"testing"
)

// CrashPoints picks at which of its calls a process is to die: a sample, or every so-manieth if CRASH_EVERY says so.
// make crashtest tries them all.
func CrashPoints[T any](t testing.TB, points []T, sample int) []T {
	t.Helper()
	every := max(1, len(points)/sample)
	if given := os.Getenv("CRASH_EVERY"); given != "" {
		n, err := strconv.Atoi(given)
		if err != nil || n < 1 {
			t.Fatalf("CRASH_EVERY is %q, and must be a number from 1 on", given)
		}
		every = n
	}
	var picked []T
	for i := every / 2; i < len(points); i += every {
		picked = append(picked, points[i])
	}
	return picked
}
