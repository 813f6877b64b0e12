package waterfall

import (
	"slices"
	"time"
)

// share is the most of the width that a stretch of time gets in which nothing begins or ends.
const share = 0.25

// scale maps times to columns in proportion, except that it cuts long idle stretches short: a day of use would
// leave no room for the minutes of cleanup after it.
type scale struct {
	at   []time.Time // moments at which something begins or ends, in order
	pos  []float64   // the column of each
	cuts []bool      // cuts[i]: the stretch from at[i] to at[i+1] is cut short
}

func newScale(moments []time.Time, width int) scale {
	at := slices.Clone(moments)
	slices.SortFunc(at, time.Time.Compare)
	at = slices.CompactFunc(at, time.Time.Equal)
	s := scale{at: at, pos: make([]float64, len(at)), cuts: make([]bool, len(at))}
	gaps := make([]float64, max(len(at)-1, 0))
	for i := range gaps {
		gaps[i] = at[i+1].Sub(at[i]).Seconds()
	}
	limit := longest(gaps)
	var total float64
	for i, gap := range gaps {
		s.cuts[i] = gap > limit
		gaps[i] = min(gap, limit)
		total += gaps[i]
	}
	sum := 0.0
	for i, gap := range gaps {
		sum += gap
		s.pos[i+1] = sum / total * float64(width)
	}
	return s
}

// longest finds the length to which gaps are cut, so that none takes more than its share of what remains.
func longest(gaps []float64) float64 {
	if len(gaps) == 0 {
		return 0
	}
	longestFirst := slices.Sorted(slices.Values(gaps))
	slices.Reverse(longestFirst)
	room := 1 / max(share, 1.5/float64(len(gaps))) // a few gaps must be allowed larger shares
	var rest float64
	for _, gap := range gaps {
		rest += gap
	}
	// With the k longest cut to x, all together take k*x + rest, of which x shall be the share.
	for k, gap := range longestFirst {
		if x := rest / (room - float64(k)); gap <= x {
			return x
		}
		rest -= gap
	}
	return longestFirst[0]
}

// column returns where a moment is drawn, from 0 to the width.
func (s scale) column(t time.Time) float64 {
	if len(s.at) == 0 {
		return 0
	}
	i, found := slices.BinarySearchFunc(s.at, t, time.Time.Compare)
	switch {
	case found:
		return s.pos[i]
	case i == 0:
		return 0
	case i == len(s.at):
		return s.pos[i-1]
	}
	part := float64(t.Sub(s.at[i-1])) / float64(s.at[i].Sub(s.at[i-1]))
	return s.pos[i-1] + part*(s.pos[i]-s.pos[i-1])
}

// cut reports whether a column lies in a stretch that is cut short.
func (s scale) cut(column float64) bool {
	i, _ := slices.BinarySearch(s.pos, column)
	return i > 0 && i < len(s.at) && s.cuts[i-1]
}
