package followup

import "time"

const (
	firstPause = 15 * time.Second
	// longestPause is under the five minutes between two ticks, so that each of them finds the work due.
	longestPause = 4 * time.Minute
	// StuckAfter is the number of failures in a row after which work counts as stuck. It goes on, at StuckPause.
	StuckAfter = 10
	// StuckPause lies between two tries of work that is stuck.
	StuckPause = time.Hour
)

// Pause returns how long to wait after the given number of failures in a row before trying again: doubling up to
// four minutes, hourly from the tenth on. Jitter, in [0, 1), takes off up to a tenth, so that what failed together
// does not come back together.
func Pause(failures int, jitter float64) time.Duration {
	pause := longestPause
	switch {
	case failures >= StuckAfter:
		pause = StuckPause
	case failures <= 4: // the fourth doubling is the longest pause
		pause = firstPause << max(failures-1, 0)
	}
	return pause - time.Duration(jitter*float64(pause)/10)
}
