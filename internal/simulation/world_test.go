package simulation

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// world is one seed's: what there is, what happens to it, and what was seen to happen.
type world struct {
	seed    uint64
	rand    *rand.Rand
	data    *database
	outside *model.World
	service *service
	faults  *faults
	bus     bus
	people  people
	checks  *checks

	agenda   []appointment
	order    int
	depth    int // of what happens in the midst of something else
	steps    int
	quiet    bool // nothing goes wrong any more
	history  []string
	sabotage string
	atOnce   func(effect func() error) error // takes every call, where nobody waits for a turn; else nil
}

// appointment is something that will happen.
type appointment struct {
	at    time.Time
	order int
	what  string
	do    func()
}

var dawn = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func newWorld(d *database, seed uint64, sabotage string) *world {
	w := &world{seed: seed, rand: rand.New(rand.NewPCG(seed, 0x5eed)), data: d, sabotage: sabotage}
	start := dawn.Add(time.Duration(w.rand.Int64N(int64(24 * time.Hour)))).Truncate(time.Microsecond)
	w.outside = model.New(start, rand.New(rand.NewPCG(seed, 0xca05)))
	w.faults = newFaults(w)
	w.checks = newChecks(w)
	w.outside.Watch = w.checks.effect
	w.service = newService(w)
	d.begin(w)
	return w
}

func (w *world) now() time.Time { return w.outside.Now().Truncate(time.Microsecond) }

// oneIn is true once in n times, never for 0.
func (w *world) oneIn(n int) bool { return n > 0 && w.rand.IntN(n) == 0 }

func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rand.Int64N(int64((high-low)/time.Millisecond)+1))*time.Millisecond
}

func (w *world) uuid() uuid.UUID {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(w.rand.UintN(256))
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// pick returns one of them.
func pick[T any](w *world, from ...T) T { return from[w.rand.IntN(len(from))] }

// say adds a line to the history. What pgx says of the statements that it keeps is left out: that is another seed's doing.
func (w *world) say(who, format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "failed to deallocate cached statement(s): ", "")
	w.history = append(w.history, fmt.Sprintf("%s %s%-10s %s", w.now().Format("02T15:04:05.000"), strings.Repeat("  ", w.depth), who, text))
}

// in makes an appointment.
func (w *world) in(d time.Duration, what string, do func()) {
	w.order++
	a := appointment{at: w.now().Add(d), order: w.order, what: what, do: do}
	i, _ := slices.BinarySearchFunc(w.agenda, a, func(a, b appointment) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.order, b.order))
	})
	w.agenda = slices.Insert(w.agenda, i, a)
}

// next does what comes next, and reports false where that is later than end, or nothing is to come.
func (w *world) next(end time.Time) bool {
	if len(w.agenda) == 0 || w.agenda[0].at.After(end) || w.checks.broken() {
		return false
	}
	a := w.agenda[0]
	w.agenda = w.agenda[1:]
	if wait := a.at.Sub(w.now()); wait > 0 {
		w.outside.Advance(wait)
	}
	w.steps++
	a.do()
	w.checks.step()
	return true
}

const tickEvery = 5 * time.Minute

// live lets the world go on, with all that goes wrong, and then until everything is settled.
func (w *world) live() {
	w.people.settleIn(w)
	w.faults.lag()
	w.checks.step()
	trouble := w.now().Add(w.between(6*time.Minute, 18*time.Minute))
	w.in(0, "tick", w.tick)
	for w.next(trouble) {
	}
	w.calm()
	w.settle()
}

// tick is the PingSource's, which comes late, twice or not at all.
func (w *world) tick() {
	switch {
	case w.quiet:
		w.service.tick(w.service.process("ping"))
	case w.oneIn(10):
		w.faults.count("bus: tick lost")
		w.say("ping", "lost")
	case w.oneIn(12):
		w.faults.count("bus: tick late")
		w.say("ping", "is late")
		w.in(w.between(10*time.Second, 8*time.Minute), "late tick", func() { w.service.tick(w.service.process("late ping")) })
	default:
		if w.oneIn(12) {
			w.service.rehearse(w.service.process("dry run"))
		}
		w.service.tick(w.service.process("ping"))
		if w.oneIn(12) {
			w.faults.count("bus: tick doubled")
			w.in(w.between(0, 40*time.Second), "second tick", func() { w.service.tick(w.service.process("ping again")) })
		}
	}
	w.in(tickEvery, "tick", w.tick)
}

// calm ends all trouble: what was cut off comes back.
func (w *world) calm() {
	w.quiet = true
	w.people.awayTil, w.people.otherTo, w.people.paused = time.Time{}, time.Time{}, outage{}
	w.outside.Cluster.ReapOrphans()
	w.outside.EC2.Unstick()
	w.outside.EC2.Sound = true
	w.people.clear(w)
	_, _ = w.data.db.Resume(context.Background())
	w.faults.stop()
	w.say("world", "---- nothing goes wrong any more")
}

// meanwhile lets something else happen in the midst of a process' work.
func (w *world) meanwhile(p *process) {
	if w.depth >= 2 {
		return
	}
	w.depth++
	defer func() { w.depth-- }()
	w.faults.count("races: something in between")
	if p.inTx > 0 || w.oneIn(2) {
		w.people.act(w)
		return
	}
	if !w.bus.deliverNow(w) {
		w.service.tick(w.service.process("tick in between"))
	}
}

type processKey struct{}

// process is what works on one delivery. What a dead one does has no effect.
type process struct {
	name  string
	began time.Time
	dead  bool
	inTx  int
	known map[string]bool // what was, when it first asked
	ctx   context.Context
	stop  context.CancelFunc
}

func processOf(ctx context.Context) *process {
	p, _ := ctx.Value(processKey{}).(*process)
	return p
}
