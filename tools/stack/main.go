// Command stack brings up, on a bare Linux machine, the real components that the service talks to:
// PostgreSQL with PgBouncer in front, a Kubernetes API server with simulated nodes, and an AWS emulator.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: stack up | down | build

  up     starts what is not running yet and writes $STACK_DIR/env, to be sourced, and $STACK_DIR/kubeconfig
  down   stops everything and leaves nothing behind
  build  installs and builds what up needs, and starts nothing

Several stacks can live side by side: every one has its own directory, ports, and passwords.
  STACK_DIR          where the state lives (default .stack in the repository)
  STACK_WITHOUT      components to leave out, by name: "jaeger promtool"
  STACK_WITH         others to build and not to start, for make e2e: "eventing serving keda"

Each component can be given. As a running one's address:
  USE_POSTGRES_URL   URL of a role that may create databases and roles (a test of this project needs a superuser, and the
                     server's programs here, for a server of its own)
  USE_PGBOUNCER_URL  URL of a PgBouncer in transaction mode before that PostgreSQL, any database, which lets in
                     reservation_expiry_service, too
  USE_KUBECONFIG     path of a cluster's kubeconfig (tests of this project need the simulated nodes)
  USE_AWS_ENDPOINT   URL of an AWS emulator (tests of this project need the control API of tools/aws)
  USE_JAEGER_QUERY_URL and USE_OTLP_URL  where a Jaeger answers, and where it takes spans (OTLP over HTTP)
As what to start it with:
  USE_POSTGRES_BIN   directory with initdb and postgres, 15 or newer
  USE_PGBOUNCER_BIN  the pgbouncer program
  USE_DEVCLUSTER_BIN the devcluster program, instead of the 4 to 6 minutes of building it
  USE_JAEGER_BIN     the jaeger program, version 2, instead of the 3 to 4 minutes of building it
  USE_PROMTOOL_BIN   the promtool program, which only tests use
  USE_EVENTING_BIN, USE_SERVING_BIN, USE_KEDA_BIN  directories with the programs that tools/eventing, … name
  USE_MOTO_PYTHON    a Python in which moto[server] 5.2.1 can be imported
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "stack:", err)
		os.Exit(1)
	}
}

func run(command string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if command == "help" || command == "--help" || command == "-h" {
		fmt.Print(usage)
		return nil
	}
	s, err := openStack(cmp.Or(os.Getenv("STACK_DIR"), ".stack"))
	if err != nil {
		return err
	}
	switch command {
	case "up":
		return s.up(ctx)
	case "down":
		return s.down(ctx)
	case "build":
		return s.build(ctx)
	}
	return fmt.Errorf("no command %q\n\n%s", command, usage)
}
