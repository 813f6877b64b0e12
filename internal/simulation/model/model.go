// Package model is a small world outside of the database: a Kubernetes cluster, EC2 and the other services of AWS, as
// far as this service talks to them. It answers as the real adapters do, with the same kinds of error, and lets time
// pass by a clock that its user moves: pods take time to stop, snapshots to complete, volumes to detach and to go.
//
// It never fails by itself. Who uses it decides which calls fail. It also knows what nobody can ask for: when a process
// last wrote to a volume, and what a snapshot holds. It is not safe for concurrent use.
package model

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// World is a cluster and an AWS account that share a clock.
type World struct {
	Cluster *Cluster
	EC2     *EC2
	Network *Network

	now   time.Time
	rand  *rand.Rand
	later []later
	count uint64 // of ids
	order int

	// Watch is told of every effect before it takes place; nil: nobody watches.
	Watch func(Effect)
}

// Effect is something that is about to be taken away.
type Effect struct {
	What     string // "delete pod", "delete volume", …
	Name     string
	Owner    string // the reservation to which it really belongs; empty where it belongs to none
	Pod      *Pod
	Volume   *Volume
	Snapshot *Snapshot
	File     *pod.File
}

// later is something that will happen by itself.
type later struct {
	at    time.Time
	order int
	do    func()
}

// New makes a world without anything in it; how long things take comes from rand.
func New(now time.Time, random *rand.Rand) *World {
	w := &World{now: now, rand: random}
	w.Cluster = newCluster(w)
	w.EC2 = &EC2{w: w, volumes: map[string]*Volume{}, snapshots: map[string]*Snapshot{}, instances: map[string]*disk.Instance{}}
	w.Network = &Network{w: w, Records: map[string]string{}, Rules: map[string]string{}, Groups: map[string]*TargetGroup{}, Objects: map[string]string{}}
	return w
}

// Now returns the world's time.
func (w *World) Now() time.Time { return w.now }

// Advance lets time pass, and happen what happens until then.
func (w *World) Advance(d time.Duration) {
	end := w.now.Add(d)
	for len(w.later) > 0 && !w.later[0].at.After(end) {
		next := w.later[0]
		w.later = w.later[1:]
		if next.at.After(w.now) {
			w.now = next.at
		}
		next.do()
	}
	w.now = end
}

// After has something happen later by itself.
func (w *World) After(d time.Duration, do func()) {
	w.order++
	l := later{at: w.now.Add(d), order: w.order, do: do}
	i, _ := slices.BinarySearchFunc(w.later, l, func(a, b later) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.order, b.order))
	})
	w.later = slices.Insert(w.later, i, l)
}

func (w *World) watch(e Effect) {
	if w.Watch != nil {
		w.Watch(e)
	}
}

// between returns a duration from low to high, in whole milliseconds.
func (w *World) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rand.Int64N(int64((high-low)/time.Millisecond)+1))*time.Millisecond
}

// oneIn is true once in n times.
func (w *World) oneIn(n int) bool { return w.rand.IntN(n) == 0 }
