package main

import (
	"context"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/report"
)

func explainCommand(sh shell) *cobra.Command {
	c := &cobra.Command{
		Use:   "explain RESERVATION_ID",
		Short: "Say what happened to a reservation, what comes next, and why",
		Long: `Say of one reservation, live or ended, when its time ends, which warnings were
sent or passed over, how and why it ended, how far its cleanup is with each
step's attempts and last error, its snapshots and disk, and what happens next.

The id may be given by its beginning, or as the name of its pod. Needs only the
POSTGRES_ variables, but judges by WARNING_MINUTES, GRACE_PERIOD_SECONDS and
MISSING_CONFIRM where they are set.`,
		Example: `  reservation-expiry explain 5f0c2d1e-93b4-4b2b-8a57-6f3f6f0b2c11
  reservation-expiry explain 5f0c2d1e
  reservation-expiry explain gpu-dev-5f0c2d1e -o json`,
		Args: arguments(cobra.ExactArgs(1)),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error { return explain(c.Context(), sh, args[0], *output) }
	return c
}

func explain(ctx context.Context, sh shell, meant string, output outputFormat) error {
	cfg, err := outlook(sh)
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, cfg.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	id, err := theOne(ctx, db, meant)
	if err != nil {
		return err
	}
	life, err := db.Life(ctx, id)
	if err != nil {
		return err
	}
	return sh.show(output, report.Explain(life, cfg.Rules))
}
