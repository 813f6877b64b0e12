package reservation

import "time"

// StuckAfter is how many failures in a row make a piece of work stuck: it is shown as such, and goes on hourly.
const StuckAfter = 10

const (
	firstPause   = 20 * time.Second
	longestPause = 10 * time.Minute // two ticks: work goes on soon after whatever held it back has passed
	stuckPause   = time.Hour
)

// NextPause returns how long to wait after a number of failures in a row (1 for the first), and whether the work is
// stuck. Pauses double from 20 s to 10 min; from the tenth failure on they last an hour. jitter, in [0, 1), shortens
// each by up to a quarter, so that what failed together does not come back together.
func NextPause(failures int, jitter float64) (pause time.Duration, stuck bool) {
	if failures >= StuckAfter {
		return shorten(stuckPause, jitter), true
	}
	pause = firstPause
	for range failures - 1 {
		pause = min(2*pause, longestPause)
	}
	return shorten(pause, jitter), false
}

func shorten(d time.Duration, jitter float64) time.Duration {
	return d - time.Duration(float64(d)*min(max(jitter, 0), 1)/4)
}
