package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
)

// shell is where a command was typed: its environment and where it writes.
type shell struct {
	environ  []string
	out, err io.Writer
	// screen is that of out, errScreen that of err. Where somebody watches err, progress is told there.
	screen, errScreen report.Screen
	watched           bool
	clock             func() time.Time // this machine's, which decides nothing: the database's does
	comeWithin        time.Duration    // how long a server that is told to end takes what is on its way to it
}

func theShell() shell {
	sh := shell{environ: os.Environ(), out: os.Stdout, err: os.Stderr, clock: time.Now, comeWithin: comeWithin}
	sh.screen, _ = screenOf(os.Stdout)
	sh.errScreen, sh.watched = screenOf(os.Stderr)
	return sh
}

// screenOf tells how wide a terminal is and whether it wants colours (no-color.org). A file or pipe has no limits.
func screenOf(f *os.File) (screen report.Screen, terminal bool) {
	descriptor := int(f.Fd())
	if !term.IsTerminal(descriptor) {
		return report.Screen{}, false
	}
	width, _, err := term.GetSize(descriptor)
	if err != nil {
		width = 80
	}
	return report.Screen{Width: width, Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}, true
}

// progress tells whoever watches what is going on.
func (sh shell) progress(format string, args ...any) {
	if sh.watched {
		_, _ = fmt.Fprintf(sh.err, format+"\n", args...)
	}
}

// say writes a line of the command's own answer.
func (sh shell) say(format string, args ...any) error {
	_, err := fmt.Fprintf(sh.out, format+"\n", args...)
	return err //nolint:wrapcheck // it is about standard output, and says so
}

// outputFormat is what -o asks for.
type outputFormat string

const (
	asTable outputFormat = "table"
	asJSON  outputFormat = "json"
)

// String implements pflag.Value.
func (f *outputFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *outputFormat) Type() string { return "table|json" }

// Set implements pflag.Value.
func (f *outputFormat) Set(value string) error {
	if !slices.Contains([]outputFormat{asTable, asJSON}, outputFormat(value)) {
		return errors.New("must be table or json")
	}
	*f = outputFormat(value)
	return nil
}

// show writes a view as asked for.
func (sh shell) show(f outputFormat, view report.Texter) error {
	if f == asJSON {
		return report.JSON(sh.out, view)
	}
	_, err := io.WriteString(sh.out, view.Text(sh.screen))
	return err //nolint:wrapcheck // it is about standard output, and says so
}

// usageError is a mistake in how the command was called or configured.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// The exit codes.
const (
	exitFailure = 1
	exitUsage   = 2 // wrong arguments or environment: nothing was begun
)

// run runs one command and returns its exit code.
func run(ctx context.Context, args []string, sh shell) int {
	root := newRoot(sh)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(sh.err, "reservation-expiry: "+strings.Join(strings.Fields(err.Error()), " "))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// openDatabase opens the database for a command that only needs that, if it is there and its schema current.
func openDatabase(ctx context.Context, p config.Postgres) (*postgres.DB, error) {
	const atOnce = 2
	db, err := postgres.Open(ctx, p.URL().Reveal(), postgres.Options{MaxConns: atOnce})
	if err != nil {
		return nil, err
	}
	if err := usable(ctx, db, p); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// usable says what to do where the database is not.
func usable(ctx context.Context, db *postgres.DB, p config.Postgres) error {
	err := db.CheckSchema(ctx)
	if err == nil || errors.Is(err, postgres.ErrSchema) {
		return err
	}
	return unreachable(p, err)
}

func unreachable(p config.Postgres, err error) error {
	return fmt.Errorf("cannot use database %s at %s port %d (check the POSTGRES_ variables): %w", p.DB, p.Host, p.Port, err)
}

// theOne finds the reservation that a person means by its id, the beginning of it, or its pod's name.
func theOne(ctx context.Context, db *postgres.DB, meant string) (string, error) {
	const most = 5
	found, err := db.FindReservations(ctx, meant, most+1)
	if err == nil && len(found) == 0 { // ids are in lower case in practice, and copied from where they may not be
		found, err = db.FindReservations(ctx, strings.ToLower(meant), most+1)
	}
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fault.Errorf(fault.Gone, "there is no reservation %q: give its id, the beginning of it, or its pod's name", meant)
	case len(found) > 1:
		if len(found) > most {
			found[most] = "…"
		}
		return "", fmt.Errorf("%q may be any of %s: give more of the id", meant, strings.Join(found, ", "))
	}
	return found[0], nil
}
