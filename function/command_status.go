package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

func statusCommand(sh shell) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Say how the service stands",
		Long: `Say on one screen whether it is paused, what the last sweeps did, what the next
tick will end, what is overdue, which cleanups are unfinished, which snapshots
pending, what is stuck and why, and what waits in the outbox and among the dead
letters.

Needs only the POSTGRES_ variables, but judges by GRACE_PERIOD_SECONDS,
BRAKE_PERCENT, BRAKE_MIN and MISSING_CONFIRM where they are set. What the next
tick will end is by what the database says: pods found missing before count as
missing still, and the cluster is not asked.`,
		Example: `  reservation-expiry status
  reservation-expiry status -o json | jq .cleanups`,
		Args: arguments(cobra.NoArgs),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error { return status(c.Context(), sh, *output) }
	return c
}

func status(ctx context.Context, sh shell, output outputFormat) error {
	cfg, err := outlook(sh)
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, cfg.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	standing, err := read(ctx, db, cfg.Rules)
	if err != nil {
		return fmt.Errorf("read how it stands: %w", err)
	}
	return sh.show(output, report.Status(standing, cfg.Rules.Grace()))
}

// rowsRead is how many rows of each kind are read: more than a screen shows, for JSON.
const rowsRead = 50

func read(ctx context.Context, db *postgres.DB, rules config.Rules) (report.Standing, error) {
	var s report.Standing
	var err error
	for _, one := range []func() error{
		func() error { s.Backlog, err = db.Backlog(ctx, followup.StuckAfter); return err },
		func() error { s.Pause, err = db.Paused(ctx); return err },
		func() error { s.Forecast, err = forecast(ctx, db, rules); return err },
		func() error { s.Sweeps, err = db.Sweeps(ctx, rowsRead); return err },
		func() error { s.Past, err = db.DeadlinesPast(ctx, s.Backlog.Now, rules.Grace(), nil); return err },
		func() error { s.Cleanups, err = db.UnfinishedCleanups(ctx, rowsRead); return err },
		func() error { s.Snapshots, err = db.OpenSnapshots(ctx, rowsRead); return err },
		func() error { s.Stuck, err = db.FailingFollowUps(ctx, followup.StuckAfter, rowsRead); return err },
		func() error { s.DeadLetters, err = openLetters(ctx, db); return err },
	} {
		if err := one(); err != nil {
			return s, err
		}
	}
	return s, nil
}

func openLetters(ctx context.Context, db *postgres.DB) ([]postgres.DeadLetter, error) {
	newest, err := db.DeadLetters(ctx, rowsRead)
	var open []postgres.DeadLetter
	for _, letter := range newest {
		if letter.Open() {
			open = append(open, letter)
		}
	}
	return open, err
}

// forecast looks ahead to the next tick by what the database says.
func forecast(ctx context.Context, db *postgres.DB, rules config.Rules) (sweep.Forecast, error) {
	return sweep.New(db, sweep.Outside{}, sweepOptions(rules)).Forecast(ctx)
}
