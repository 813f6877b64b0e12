package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// conclude posts one more tick, to which nothing may be left to do, and judges.
func (d *demo) conclude(ctx context.Context) error {
	if err := ping(ctx, d.service.url+"/"); err != nil {
		return err
	}
	fmt.Println()
	all, bad := judge(ctx, os.Stdout, d.screen.terminal >= 0, d.subjects)
	fmt.Println()
	if bad > 0 {
		return fmt.Errorf("%d of %d expectations do not hold; the service's log is %s", bad, all, d.service.log)
	}
	d.screen.drawn = 0
	d.screen.say("demo", "all %d expectations hold", all)
	return nil
}

// leave leaves everything running, ticks included.
func (d *demo) leave() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find myself: %w", err)
	}
	_, err = d.spawn("pingsource", d.dir+"/pingsource.log", os.Environ(), self, "ping", d.service.url+"/")
	return err
}

// clear stops everything. What was given and outlives the demo is cleared of what the demo has made there.
func (d *demo) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if d.service != nil {
		d.service.stop() // first, else it would complain about what goes away under it
	}
	if d.platform != nil {
		if d.given("USE_KUBECONFIG") {
			err = d.platform.Clear(ctx)
		}
		d.platform.SQL.Close()
	}
	return errors.Join(err, d.down(ctx))
}
