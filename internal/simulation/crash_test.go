package simulation

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	// settles is when the world has come to its end, or nearly so, where nobody dies.
	settles = 25 * time.Minute
	mayTake = 80 * time.Minute
	// restarted is how long after a death the next tick comes: by then the lease of a dead sweep has lapsed.
	restarted = 35 * time.Second
)

// death is where a process dies. The zero value is nowhere.
type death struct {
	call  int
	after bool // it took effect
	kept  bool // in the world in which volumes are kept
}

// A death goes to a worker as a seed.
func (d death) seed() uint64 { return uint64(d.call)<<2 | bit(d.after)<<1 | bit(d.kept) }

func deathOf(seed uint64) death { return death{int(seed >> 2), seed>>1&1 == 1, seed&1 == 1} }

func bit(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}

// TestAProcessMayDieAtEveryCall lets processes bring a world with one reservation of each kind to its end, and counts their
// calls and statements. Then a process dies before each of them, and after each that has an effect; others go on, and must
// bring the world to the very end to which they bring it when nobody dies.
func TestAProcessMayDieAtEveryCall(t *testing.T) {
	t.Parallel()
	if *workerFlag {
		work(t, os.Stdin, os.NewFile(3, "reports"), outlive)
		return
	}
	var lock sync.Mutex
	differ := 0
	judge := func(r report) {
		lock.Lock()
		defer lock.Unlock()
		if len(r.Broken) > 0 {
			differ++
			t.Errorf("%s\nwith its history: go test ./internal/simulation -run %s -seed %d", strings.Join(r.Broken, "\n"), t.Name(), r.Seed)
		}
	}
	d := newDatabase(t)
	if *seedFlag != 0 {
		r := outlive(d, *seedFlag)
		tell(os.Stdout, r.Seed, r.History)
		judge(r)
		return
	}
	calls := map[string]int{}
	var points []uint64
	for _, kept := range []bool{false, true} {
		s := newStage(d, death{kept: kept})
		judge(s.report())
		points = append(points, s.points()...)
		for _, call := range s.made {
			service, _, _ := strings.Cut(call, ":")
			calls[service]++
		}
	}
	picked := stacktest.CrashPoints(t, points, 2)
	if os.Getenv("CRASH_EVERY") == "" {
		for _, seed := range picked {
			judge(outlive(d, seed))
		}
	} else {
		many(t, "crash points", picked, judge)
	}
	t.Logf("calls %v, %d crash points, %d tried in process, %d ended differently", calls, len(points), len(picked), differ)
}

// outlive has a process die, and tells what became of the world.
func outlive(d *database, seed uint64) report { return newStage(d, deathOf(seed)).report() }

// stage is a world with one reservation of each kind, in which nothing goes wrong but that one process dies.
type stage struct {
	*world
	cast  []kind // of people.all
	began time.Time
	first map[string]map[string][]map[string]any // the platform's rows then
	made  []string                               // calls and statements
	dies  death
	died  time.Time
}

func newStage(d *database, dies death) *stage {
	w := newWorld(d, 1, "")
	for seed := uint64(2); w.service.keep != dies.kept; seed++ {
		w = newWorld(d, seed, "")
	}
	s := &stage{world: w, cast: kinds, began: w.now(), dies: dies, first: map[string]map[string][]map[string]any{}}
	w.faults.stop()
	w.faults.decide = s.decide
	w.quiet, w.outside.EC2.Sound = true, true
	w.service.own = true
	w.people.disks = map[disk.Key]*savedDisk{}
	d.run(d.users, "set session_replication_role = replica") // nothing of it was written just now
	if dies.kept {
		s.cast = slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return !k.keeps })
	}
	for _, k := range s.cast {
		k.make(w)
	}
	if !dies.kept {
		makeIdleDisks(w)
	}
	d.run(d.users, "set session_replication_role = origin")
	for _, t := range platformTables {
		s.first[t.name] = s.cells(t)
	}
	return s
}

// decide has the process die whose turn it is. From then on three ticks are enough.
func (s *stage) decide(p *process, service, what string) outcome {
	if service == sql && p.inTx > 0 && what != "commit" {
		what += inTransaction
	}
	s.made = append(s.made, service+": "+what)
	if len(s.made) != s.dies.call {
		return passes
	}
	s.died = s.now()
	s.faults.count("process: killed at a call")
	for _, r := range s.people.all {
		r.ticks = 0
	}
	s.in(restarted, "tick", func() { s.service.tick(s.service.process("ping")) })
	if s.dies.after {
		return diesAfter
	}
	return diesBefore
}

const inTransaction = " in a transaction"

var (
	// looks have no effect: to die after one is no other world than to die before what comes next.
	looks = regexp.MustCompile(`^(kubernetes: (cluster|get|list)|ec2: (describe|find|list)|aws: account|database: select)`)
	// inside is what is rolled back: to die there is no other world than to die before the commit, or before the transaction.
	inside = regexp.MustCompile(`^database: (begin|.*` + inTransaction + `)$`)
)

// points are where a process may die, each world once: a look that is repeated while a process waits is one. Where
// volumes are kept all goes the same way up to the first snapshot.
func (s *stage) points() (all []uint64) {
	same := s.dies.kept
	for i, call := range s.made {
		if same = same && !strings.HasPrefix(call, "ec2: create snapshot"); same || inside.MatchString(call) || i > 0 && call == s.made[i-1] && looks.MatchString(call) {
			continue
		}
		all = append(all, death{i + 1, false, s.dies.kept}.seed())
		if !looks.MatchString(call) {
			all = append(all, death{i + 1, true, s.dies.kept}.seed())
		}
	}
	return all
}

// report lets the world come to its end, and compares that with how it should be.
func (s *stage) report() report {
	w, end := s.world, ""
	w.in(0, "tick", w.tick)
	for w.now().Sub(s.began) < mayTake && !w.checks.broken() {
		busy := w.checks.busy()
		for w.next(w.now().Add(tickEvery)) && !w.nextIsTick() {
		}
		w.checks.settled(busy || w.checks.busy())
		if w.now().Sub(s.began) < settles {
			continue
		}
		before := end
		if end = s.state(); end == before && len(w.agenda) == 1 && w.now().Sub(s.died) > 2*tickEvery { // all leases of the dead have lapsed
			break
		}
	}
	if !w.checks.broken() {
		w.checks.atTheEnd()
		file := map[bool]string{false: "testdata/settled.txt", true: "testdata/settled_kept.txt"}[s.dies.kept]
		settled, err := os.ReadFile(file)
		w.checks.require("the very end", err == nil && end+"\n" == string(settled), "with a death %s call %d it is not that of %s: %s",
			beforeOrAfter(!s.dies.after), s.dies.call, file, difference(string(settled), end))
		w.checks.require("the simulation itself", s.died.IsZero() == (s.dies.call == 0), "nobody died")
	}
	r := report{Seed: s.dies.seed(), Steps: w.steps, Calls: len(s.made), Faults: w.faults.counted, Checked: w.checks.checked}
	for _, v := range w.checks.violated {
		r.Broken = append(r.Broken, v.invariant+": "+v.what)
	}
	if len(r.Broken) > 0 || *seedFlag != 0 {
		r.History = w.history
	}
	return r
}

// difference shows the lines that only one of two texts has.
func difference(want, got string) string {
	var out strings.Builder
	for _, one := range []struct{ sign, text, other string }{{"-", want, got}, {"+", got, want}} {
		others := strings.Split(one.other, "\n")
		for line := range strings.SplitSeq(strings.TrimSpace(one.text), "\n") {
			if !slices.Contains(others, line) {
				fmt.Fprintf(&out, "\n%s %s", one.sign, line)
			}
		}
	}
	return out.String()
}
