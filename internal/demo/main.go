// Command demo shows the service at work: it starts the real components and the service, sets up reservations in every
// state that there is, posts ticks as a PingSource would, shows what becomes of each, and checks that it is right.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0")
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	lookEvery = 500 * time.Millisecond
	// patience is how long the demo waits for everything to be as it should be.
	patience = 3 * time.Minute
)

type demo struct {
	*components
	platform *platform.Platform
	service  *service
	screen   *screen
	stages   []*stage
	subjects []*subject
}

func run(ctx context.Context, keep bool) error {
	c, err := openComponents()
	if err != nil {
		return err
	}
	switch {
	case len(os.Args) == 4 && os.Args[1] == "outside": // what KEEP=1 leaves running
		return runOutside(ctx, os.Args[2], os.Args[3])
	case len(os.Args) == 2 && os.Args[1] == "down":
		return c.clear(ctx)
	}
	d := &demo{components: c, screen: newScreen(os.Stdout, time.Now())}
	err = d.play(ctx)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
		fmt.Println("\ninterrupted: stopping everything (the service is given 25 s to hand back what it is at)")
	}
	d.screen.leave()
	if keep && d.service != nil && ctx.Err() == nil {
		return errors.Join(err, d.leave())
	}
	if err = errors.Join(err, d.end()); err == nil {
		fmt.Printf("\nmake demo KEEP=1 leaves everything running, to look further with %s explain, psql, kubectl and aws.\n", binary)
	}
	return err
}

// play does everything up to the verdict.
func (d *demo) play(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	d.screen.say("demo", "setting up the reservations")
	var err error
	if d.stages, err = setAll(ctx, d.platform, d.service, scenarios); err != nil {
		return err
	}
	for _, s := range d.stages {
		for _, r := range s.subjects {
			if r.rows, err = rowsOf(ctx, r); err != nil {
				return err
			}
			d.subjects = append(d.subjects, r)
		}
	}
	d.screen.say("demo", "%d things are set up; from now on a tick every %s\n", len(d.subjects), tickEvery)
	if err := d.watch(ctx); err != nil {
		return err
	}
	return d.conclude(ctx)
}

// start starts the components and the service.
func (d *demo) start(ctx context.Context) error {
	if err := d.up(ctx); err != nil {
		return err
	}
	postgresURL, err := d.createDatabase(ctx)
	if err != nil {
		return err
	}
	d.platform, err = platform.Connect(ctx, postgresURL, d.env["KUBECONFIG"], d.env["AWS_ENDPOINT_URL"], d.env["AWS_REGION"])
	if err != nil {
		return err
	}
	if err := d.platform.Found(ctx); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	announced, err := listenForFacts(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	environ, err := serviceEnviron(d.components, d.platform, port, announced.address)
	if err != nil {
		return err
	}
	if err := migrate(ctx, environ); err != nil {
		return err
	}
	if d.service, err = serve(ctx, d.components, environ, port); err != nil {
		return err
	}
	d.service.announced = announced
	d.screen.say("service", "serving on %s, log in %s", d.service.url, d.service.log)
	return nil
}

// watch shows what happens until all expectations hold, or patience ends.
func (d *demo) watch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go d.platform.RunVolumeDriver(ctx)
	ticks := make(chan error, 1)
	go runPingSource(ctx, d.service.url+"/", tickEvery, func(err error) { ticks <- err })
	pending := d.subjects
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		w, err := look(ctx, d.platform)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			d.screen.show(w.lines(d.subjects), w.sweeps)
			if err := d.happen(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			pending = d.stillOpen(ctx, pending)
		}
		if len(pending) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil // the verdict tells
			}
			return ctx.Err()
		case err := <-ticks:
			if err != nil {
				d.screen.say("ticks", "%v", err)
			}
		case err := <-d.service.ended:
			return fmt.Errorf("the service has ended: %w (see %s)", orEnded(err), d.service.log)
		case <-ticker.C:
		}
	}
}

// stillOpen returns the subjects of which not everything holds yet.
func (d *demo) stillOpen(ctx context.Context, pending []*subject) (open []*subject) {
	failed := failing(ctx, pending)
	for _, r := range pending {
		if failed[r] != nil {
			open = append(open, r)
		}
	}
	return open
}

// happen has others do what is due.
func (d *demo) happen(ctx context.Context) error {
	for _, s := range d.stages {
		for _, h := range s.events {
			if h.done {
				continue
			}
			due, err := h.due(ctx)
			if err != nil {
				return err
			}
			if !due {
				continue
			}
			d.screen.say("meanwhile", "%s", h.what)
			if err := h.do(ctx); err != nil {
				return err
			}
			if h.done = true; h.said != "" {
				d.screen.say("", "%s", h.said)
			}
		}
	}
	return nil
}
