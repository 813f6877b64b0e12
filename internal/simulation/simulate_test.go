package simulation

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	seedFlag    = flag.Uint64("seed", 0, "replay this one seed and print its history")
	seedsFlag   = flag.Int("seeds", 0, "run so many seeds; 0: a short sample")
	fromFlag    = flag.Uint64("from", 1, "the first seed")
	workersFlag = flag.Int("workers", 2, "how many seeds at a time, each worker a process with a database of its own")
	workerFlag  = flag.Bool("worker", false, "be one of them")
)

// sample is how many seeds a test run without flags takes.
const sample = 4

// TestSimulation runs seeds and finds every invariant unbroken in each of them.
func TestSimulation(t *testing.T) {
	t.Parallel()
	switch {
	case *seedFlag != 0:
		replay(t, *seedFlag)
	case *workerFlag:
		work(t, os.Stdin, os.NewFile(3, "reports"), run)
	case *seedsFlag != 0:
		many(t, "seeds", seeds(*fromFlag, *seedsFlag), func(r report) { failed(t, r) })
	default:
		fresh := rand.Uint64N(1 << 40)
		t.Logf("a fresh seed: %d", fresh)
		d := newDatabase(t)
		for _, seed := range append(seeds(*fromFlag, sample-1), fresh) {
			failed(t, run(d, seed))
		}
	}
}

func run(d *database, seed uint64) report { return newWorld(d, seed, "").report() }

func seeds(from uint64, n int) (all []uint64) {
	for i := range n {
		all = append(all, from+uint64(i))
	}
	return all
}

// many runs seeds, or what is called so, side by side, and says how far it is. Interrupted, it ends with those that are
// under way; a second time, at once.
func many(t *testing.T, called string, all []uint64, done func(report)) {
	t.Helper()
	ctx, heed := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer heed()
	context.AfterFunc(ctx, heed)
	tally := newTally(called, len(all))
	stop := tally.show(os.Stdout)
	to := make(chan uint64)
	go func() {
		defer close(to)
		for _, seed := range all {
			select {
			case to <- seed:
			case <-ctx.Done():
				return
			}
		}
	}()
	var workers sync.WaitGroup
	for i := range min(*workersFlag, len(all)) {
		workers.Go(func() {
			if err := employ(t.Name(), i, to, func(r report) { tally.add(r); done(r) }); err != nil {
				t.Errorf("worker %d: %v", i, err)
			}
		})
	}
	workers.Wait()
	stop()
	tally.table(os.Stdout)
	if ctx.Err() != nil {
		t.Errorf("interrupted: these are not all %d %s", len(all), called)
	}
}

// failed tells what was broken and how to see it again, and for the first few the history.
func failed(t *testing.T, r report) {
	t.Helper()
	if len(r.Broken) == 0 {
		return
	}
	var text strings.Builder
	if failures.Add(1) <= 3 {
		tell(&text, r.Seed, r.History)
	}
	for _, what := range r.Broken {
		fmt.Fprintf(&text, "seed %d breaks %s\n", r.Seed, what)
	}
	t.Errorf("%sreplay it: make simulate SEED=%d", text.String(), r.Seed)
}

var failures atomic.Int32

// replay runs one seed and prints its history.
func replay(t *testing.T, seed uint64) {
	t.Helper()
	w := newWorld(newDatabase(t), seed, "")
	sums := newTally("seeds", 1)
	sums.add(w.report())
	tell(os.Stdout, seed, w.history)
	sums.table(os.Stdout)
	for _, v := range w.checks.violated {
		t.Errorf("%s: %s", v.invariant, v.what)
	}
}

// tell prints a history.
func tell(to io.Writer, seed uint64, history []string) {
	_, _ = fmt.Fprintf(to, "---- the history of seed %d\n%s\n", seed, strings.Join(history, "\n"))
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
