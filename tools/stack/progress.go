package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress prints one line per event: seconds since the start, the component, what happens.
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	begun time.Time
}

func newProgress(out io.Writer) *progress { return &progress{out: out, begun: time.Now()} }

func (p *progress) say(component, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%6.1fs  %-10s %s\n", time.Since(p.begun).Seconds(), component, fmt.Sprintf(format, args...))
}
