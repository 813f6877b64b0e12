package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// settleTime is how long what the last tick has set off may take.
const settleTime = 15 * time.Second

// conclude posts one more tick, to which nothing may be left to do, and judges.
func (d *demo) conclude(ctx context.Context) error {
	if err := ping(ctx, d.service.url+"/"); err != nil {
		return err
	}
	for end := time.Now().Add(settleTime); time.Now().Before(end) && len(failing(ctx, d.subjects)) > 0; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
	d.screen.leave()
	fmt.Println("\nWhat must be true now:")
	all, bad := judge(ctx, os.Stdout, d.screen.terminal >= 0, d.subjects)
	if err := d.explainOne(ctx); err != nil {
		return err
	}
	if err := d.traceOne(ctx); err != nil {
		return err
	}
	fmt.Println()
	if bad > 0 {
		return fmt.Errorf("%d of %d expectations do not hold; the service's log is %s", bad, all, d.service.log)
	}
	d.screen.say("demo", "all %d expectations hold", all)
	return nil
}

// example is the reservation that is explained in the end.
func (d *demo) example() *subject {
	for _, r := range d.subjects {
		if r.title == explained {
			return r
		}
	}
	return d.subjects[0]
}

// explainOne shows what the service says of one reservation.
func (d *demo) explainOne(ctx context.Context) error {
	id := d.example().ID
	fmt.Printf("\nWhat the service says of one of them: %s explain %s\n\n", binary, id)
	cmd := exec.CommandContext(ctx, binary, "explain", id)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.service.environ, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	return nil
}

// leave leaves everything running, with somebody to post ticks and take announcements, and says how to look further.
func (d *demo) leave() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find myself: %w", err)
	}
	_ = d.service.announced.server.Close() // whoever comes takes the address over
	if _, err = d.spawn("outside", filepath.Join(d.dir, "outside.log"), os.Environ(), self, "outside", d.service.url+"/",
		d.service.announced.address); err != nil {
		return err
	}
	var env strings.Builder
	for _, entry := range append(d.service.environ, "DATABASE_URL="+d.databaseURL(d.env["POSTGRES_HOST"], d.env["POSTGRES_PORT"])) {
		name, value, _ := strings.Cut(entry, "=")
		if name != "PATH" && name != "HOME" {
			fmt.Fprintf(&env, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		}
	}
	if err := os.WriteFile(d.envFile(), []byte(env.String()), 0o600); err != nil {
		return fmt.Errorf("write the environment: %w", err)
	}
	d.platform.SQL.Close()
	fmt.Printf(`
Everything is left running, with a tick every %s. To look further:

  source %s
  %s status
  %s explain %s
  %s trace %s
  psql "$DATABASE_URL" -c "select reservation_id, status, failure_reason from reservations order by name"
  kubectl --kubeconfig %s -n gpu-dev get pods
  aws ec2 describe-snapshots --owner-ids self
  curl -s -H 'Accept: application/json' -H 'Ce-Specversion: 1.0' -H 'Ce-Id: 1' -H 'Ce-Source: me' \
    -H 'Ce-Type: dev.gpudev.expiry.sweep.requested.v1' -H 'Content-Type: application/json' -d '{"dryRun": true}' %s/
  tail -f %s

make demo-down stops it.
`, tickEvery, d.envFile(), binary, binary, d.example().ID[:8], binary, d.example().ID[:8], d.env["KUBECONFIG"], d.service.url, d.service.log)
	return nil
}

// runOutside posts ticks and takes announcements until it is told to end.
func runOutside(ctx context.Context, url, address string) error {
	if _, err := listenForFacts(ctx, address); err != nil {
		return err
	}
	runPingSource(ctx, url, tickEvery, func(err error) {
		if err != nil {
			fmt.Println(time.Now().UTC().Format(time.RFC3339), err)
		}
	})
	return nil
}

// end stops everything. What was given and outlives the demo is cleared of what the demo has made there.
func (d *demo) end() error {
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
	return errors.Join(err, d.clear(ctx))
}
