package simulation

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	seedFlag    = flag.Uint64("seed", 0, "replay this one seed and print its history")
	seedsFlag   = flag.Int("seeds", 0, "run so many seeds; 0: a short sample")
	fromFlag    = flag.Uint64("from", 1, "the first seed")
	workersFlag = flag.Int("workers", 2, "how many seeds at a time, each worker in a database of its own")
)

// sample is how many seeds a test run without flags takes.
const sample = 4

// TestSimulation runs seeds and finds every invariant unbroken in each of them.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if *seedFlag != 0 {
		replay(t, *seedFlag)
		return
	}
	seeds := make(chan uint64)
	n := *seedsFlag
	if n == 0 {
		n = sample
	}
	go func() {
		defer close(seeds)
		for i := range n {
			seed := *fromFlag + uint64(i)
			if *seedsFlag == 0 && i == n-1 {
				seed = rand.Uint64N(1 << 40)
				t.Logf("a fresh seed: %d", seed)
			}
			seeds <- seed
		}
	}()
	tally := newTally(n)
	if *seedsFlag > 0 {
		defer tally.show(os.Stdout)()
		// Most of the work is PostgreSQL's. With more at hand the runtime looks for work more often than it has any.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(1, *workersFlag/2)))
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	}
	var all sync.WaitGroup
	for range min(*workersFlag, n) {
		d := newDatabase(t)
		all.Go(func() {
			for seed := range seeds {
				w := newWorld(d, seed, "")
				w.live()
				tally.add(w)
				if w.checks.broken() {
					failed(t, w)
				}
			}
		})
	}
	all.Wait()
	if *seedsFlag > 0 {
		tally.table(os.Stdout)
	}
}

// failed tells what was broken and how to see it again, and for the first few the history.
func failed(t *testing.T, w *world) {
	t.Helper()
	var text strings.Builder
	if failures.Add(1) <= 3 {
		w.tell(&text)
	}
	for _, v := range w.checks.violated {
		fmt.Fprintf(&text, "seed %d breaks %s: %s\n", w.seed, v.invariant, v.what)
	}
	t.Errorf("%sreplay it: make simulate SEED=%d", text.String(), w.seed)
}

var failures atomic.Int32

// replay runs one seed and prints its history.
func replay(t *testing.T, seed uint64) {
	t.Helper()
	w := newWorld(newDatabase(t), seed, "")
	began := time.Now()
	w.live()
	w.tell(os.Stdout)
	fmt.Printf("seed %d: %d steps, %d calls and statements, %s; %v\n", seed, w.steps, w.faults.calls, time.Since(began).Round(time.Millisecond), w.faults.counted)
	for _, v := range w.checks.violated {
		t.Errorf("%s: %s", v.invariant, v.what)
	}
}

// tell prints the history.
func (w *world) tell(to io.Writer) {
	_, _ = fmt.Fprintf(to, "---- the history of seed %d\n%s\n", w.seed, strings.Join(w.history, "\n"))
}

// TestTheSameSeedIsTheSameHistory compares every line of what happens, one seed being run twice with another in between.
func TestTheSameSeedIsTheSameHistory(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	for _, seed := range []uint64{2, 78} {
		first := newWorld(d, seed, "")
		first.live()
		newWorld(d, seed+1000, "").live()
		second := newWorld(d, seed, "")
		second.live()
		for i, line := range first.history {
			require.Equal(t, line, second.history[min(i, len(second.history)-1)], "line %d of seed %d", i, seed)
		}
		require.Len(t, second.history, len(first.history))
	}
}
