package simulation

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// tally adds up what seeds were about.
type tally struct {
	called              string // what is counted
	mu                  sync.Mutex
	of, seeds, broken   int
	steps, calls, fault int
	faults, checked     map[string]int
	began               time.Time
}

func newTally(called string, of int) *tally {
	return &tally{called: called, of: of, faults: map[string]int{}, checked: map[string]int{}, began: time.Now()}
}

// report is what becomes of one seed.
type report struct {
	Seed            uint64
	Steps, Calls    int
	Faults, Checked map[string]int
	Broken          []string // what, by invariant
	History         []string // where something is
}

// report lets a world go by.
func (w *world) report() report {
	w.live()
	r := report{Seed: w.seed, Steps: w.steps, Calls: w.faults.calls, Faults: w.faults.counted, Checked: w.checks.checked}
	for _, v := range w.checks.violated {
		r.Broken, r.History = append(r.Broken, v.invariant+": "+v.what), w.history
	}
	return r
}

func (t *tally) add(r report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeds++
	t.steps += r.Steps
	t.calls += r.Calls
	if len(r.Broken) > 0 {
		t.broken++
	}
	for what, n := range r.Faults {
		t.faults[what] += n
		t.fault += n
	}
	for invariant, n := range r.Checked {
		t.checked[invariant] += n
	}
}

// show says every few seconds how far it is, until the function that it returns is called.
func (t *tally) show(to io.Writer) (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		ticker := time.NewTicker(10 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			t.mu.Lock()
			took := time.Since(t.began)
			rate := float64(t.seeds) / took.Seconds()
			left := time.Duration(float64(t.of-t.seeds) / max(rate, 0.01) * float64(time.Second))
			_, _ = fmt.Fprintf(to, "%7d of %d %s  %5.1f/s  %s left  %d steps  %d faults  %d broken\n",
				t.seeds, t.of, t.called, rate, left.Round(time.Second), t.steps, t.fault, t.broken)
			t.mu.Unlock()
		}
	})
	return func() {
		close(done)
		all.Wait()
	}
}

// table prints the sums.
func (t *tally) table(to io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	took := time.Since(t.began)
	_, _ = fmt.Fprintf(to, "\n%d %s in %s, %.1f a second; %d broken\n%d steps, %d calls and statements, %d faults\n\n",
		t.seeds, t.called, took.Round(time.Second), float64(t.seeds)/took.Seconds(), t.broken, t.steps, t.calls, t.fault)
	for _, what := range slices.Sorted(maps.Keys(t.faults)) {
		_, _ = fmt.Fprintf(to, "  %-44s %9d\n", what, t.faults[what])
	}
	_, _ = fmt.Fprintln(to)
	for _, invariant := range invariants {
		_, _ = fmt.Fprintf(to, "  %-34s checked %9d times\n", invariant, t.checked[invariant])
	}
}
