package simulation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// faults decides what goes wrong.
type faults struct {
	w       *world
	counted map[string]int
	calls   int

	perCall map[string]int // of a service: once in so many calls
	death   int
	race    int
	outages map[string]outage
	denial  denial
	empty   time.Time                                      // when a list of volumes last showed nothing
	behind  *model.EC2                                     // a part of EC2's API that lags behind; nil: none does
	heard   time.Time                                      // when it was as EC2 is
	deaf    bool                                           // everybody reaches that part
	decide  func(p *process, service, what string) outcome // instead of chance; else nil
}

// outage is a time during which every call to a service fails.
type outage struct{ from, to time.Time }

// denial is a time during which calls to a service whose words begin so are refused: a permission was taken away.
type denial struct {
	outage
	service, what string
}

func (o outage) at(t time.Time) bool { return t.After(o.from) && t.Before(o.to) }

// The services that can fail.
const (
	kubernetes = "kubernetes"
	ec2        = "ec2"
	network    = "aws"
	sql        = "database"
	sinks      = "bus"
)

// deniable is what there may be no permission for, by service; empty: for nothing at all.
var deniable = map[string][]string{
	kubernetes: {"", "cluster", "list", "get", "write", "retain", "delete", "force"},
	ec2:        {"", "describe", "find", "list", "create", "detach", "delete", "tag", "untag"},
	network:    {"", "account", "delete", "put"},
	sinks:      {"", "send", "announce"},
}

func newFaults(w *world) *faults {
	f := &faults{w: w, counted: map[string]int{}, perCall: map[string]int{}, outages: map[string]outage{}}
	if w.oneIn(8) {
		return f // a good day
	}
	for _, service := range []string{kubernetes, ec2, network, sql} {
		f.perCall[service] = pick(w, 0, 0, 300, 100, 40, 15)
		if w.oneIn(6) {
			from := w.now().Add(w.between(0, 12*time.Minute))
			f.outages[service] = outage{from, from.Add(w.between(time.Minute, 9*time.Minute))}
		}
	}
	f.perCall[sql] *= 4 // there are many statements
	f.death = pick(w, 0, 0, 1500, 500, 150)
	f.race = pick(w, 0, 400, 150, 60)
	return f
}

// staleFor is how old what EC2 answers may be: AWS has its users count with up to about five minutes until all of its API
// has heard of a change.
const staleFor = 5 * time.Minute

// lag has a part of EC2's API hear of what is there every few minutes only.
func (f *faults) lag() {
	if f.perCall[ec2] > 0 {
		f.behind, f.heard, f.deaf = f.w.outside.EC2.Copy(), f.w.now(), f.w.oneIn(4)
		f.w.in(f.w.between(10*time.Second, staleFor), "lag", f.lag)
	}
}

func (f *faults) stop() {
	f.behind = nil
	f.perCall, f.outages, f.denial, f.death, f.race = map[string]int{}, map[string]outage{}, denial{}, 0, 0
}

func (f *faults) count(what string) { f.counted[what]++ }

// wrong returns how much has gone wrong so far.
func (f *faults) wrong() (n int) {
	for _, times := range f.counted {
		n += times
	}
	return n
}

// outcome is what becomes of a call or statement.
type outcome int

const (
	passes      outcome = iota
	failsBefore         // it has no effect
	failsAfter          // it has its effect, and no answer comes
	diesBefore
	diesAfter
	refused // there is no permission for it
)

// deny has a permission taken away for a while.
func (f *faults) deny() {
	w := f.w
	service, from := pick(w, kubernetes, ec2, network, sinks), w.now().Add(w.between(0, 12*time.Minute))
	f.denial = denial{outage{from, from.Add(w.between(time.Minute, 9*time.Minute))}, service, pick(w, deniable[service]...)}
}

// out reports whether a service has an outage.
func (f *faults) out(service string) bool {
	return f.outages[service].at(f.w.now())
}

// denied reports whether there is no permission for a call.
func (f *faults) denied(service, what string) bool {
	return f.denial.at(f.w.now()) && service == f.denial.service && strings.HasPrefix(what, f.denial.what)
}

// draw decides about one call.
func (f *faults) draw(p *process, service, what string) outcome {
	f.calls++
	if f.decide != nil {
		return f.decide(p, service, what)
	}
	w := f.w
	if f.out(service) {
		f.count(service + ": out")
		return failsBefore
	}
	if f.denied(service, what) {
		f.count(service + ": denied")
		return refused
	}
	if w.oneIn(f.death) {
		f.count("process: killed at a call")
		return pick(w, diesBefore, diesAfter)
	}
	if w.oneIn(f.perCall[service]) {
		return pick(w, failsBefore, failsAfter)
	}
	return passes
}

var errDead = fault.Errorf(fault.Transient, "the process is dead")

// call is one call to the outside. effect is what it does there.
func (w *world) call(ctx context.Context, service, what string, effect func() error) error {
	if w.atOnce != nil {
		return w.atOnce(effect)
	}
	p := processOf(ctx)
	if p.dead {
		return errDead
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if w.oneIn(3) { // whenever time has passed the database is told
		w.outside.Advance(w.between(time.Millisecond, 120*time.Millisecond))
	}
	if w.oneIn(w.faults.race) {
		w.meanwhile(p)
	}
	switch o := w.faults.draw(p, service, what); o {
	case diesBefore, diesAfter:
		if o == diesAfter {
			_ = effect()
		}
		p.dead = true
		w.say(p.name, "%s: %s — KILLED %s it", service, what, beforeOrAfter(o == diesBefore))
		return errDead
	case refused:
		return w.answer(p, service, what, fault.Errorf(fault.Permanent, "%s: simulated access denied", what))
	case failsBefore, failsAfter:
		kind := "error"
		if w.oneIn(3) {
			kind = "time-out"
			w.outside.Advance(w.between(5*time.Second, 15*time.Second))
		} else if w.oneIn(3) {
			kind = "throttled"
			o = failsBefore
		}
		if o == failsAfter {
			_ = effect() // how it went nobody hears
		}
		w.faults.count(fmt.Sprintf("%s: %s %s", service, kind, beforeOrAfter(o == failsBefore)))
		return w.answer(p, service, what, fault.Errorf(fault.Transient, "%s: simulated %s %s it took effect", what, kind, beforeOrAfter(o == failsBefore)))
	}
	if w.oneIn(w.faults.death) { // a SIGTERM: it may record how far it is
		w.faults.count("process: interrupted")
		w.say(p.name, "INTERRUPTED")
		p.stop()
	}
	return w.answer(p, service, what, effect())
}

func beforeOrAfter(before bool) string {
	if before {
		return "before"
	}
	return "after"
}

func (w *world) answer(p *process, service, what string, err error) error {
	result := "ok"
	if err != nil {
		result = fmt.Sprintf("%s: %v", fault.KindOf(err), err)
	}
	line := fmt.Sprintf("%s: %s → %s", service, what, result)
	if n := len(w.history); n > 0 && len(w.history[n-1]) > len(line) && w.history[n-1][len(w.history[n-1])-len(line):] == line {
		return err // the same once more, while it waits
	}
	w.say(p.name, "%s", line)
	return err
}

// statement decides about one statement of a process'.
func (w *world) statement(ctx context.Context, p *process, word string) outcome {
	if p.dead {
		return failsBefore
	}
	if ctx.Err() != nil {
		return passes // it fails by itself
	}
	if p.inTx == 0 && word != "commit" && w.oneIn(w.faults.race*3) {
		w.meanwhile(p)
	}
	o := w.faults.draw(p, sql, word)
	switch o {
	case diesBefore, diesAfter:
		w.say(p.name, "KILLED %s a statement: %s", beforeOrAfter(o == diesBefore), word)
		p.dead = true
		if o == diesAfter && word != "begin" {
			return failsAfter
		}
		return failsBefore
	case failsBefore, failsAfter:
		if word == "begin" {
			o = failsBefore
		}
		if w.faults.out(sql) {
			break
		}
		w.faults.count(fmt.Sprintf("%s: %s fails %s", sql, kindOfStatement(word), beforeOrAfter(o == failsBefore)))
		w.say(p.name, "database: %s fails %s it took effect", word, beforeOrAfter(o == failsBefore))
	}
	return o
}

func kindOfStatement(word string) string {
	switch word {
	case "begin", "commit":
		return word
	}
	return "statement"
}

// errLost is what a sender hears of a bus that is not to be reached.
var errLost = errors.New("the sink is not to be reached")
