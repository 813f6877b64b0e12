package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

func pauseCommand(sh shell) *cobra.Command {
	var why string
	var during time.Duration
	c := &cobra.Command{
		Use:   "pause --why TEXT [--for DURATION]",
		Short: "Have ticks decide nothing new",
		Long: `Have ticks decide nothing new, for a while or until resumed: nobody is warned,
nothing expires. Cleanups and snapshots that were begun go on. A second pause
replaces the first; a sweep that is running goes on to its end.

Needs only the POSTGRES_ variables.`,
		Example: `  reservation-expiry pause --why "EKS upgrade, ask Ada" --for 2h
  reservation-expiry pause --why "prod-142: wrong deadlines"`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case why == "":
				return usageError{errors.New("say why: whoever finds it paused will ask (--why TEXT)")}
			case c.Flags().Changed("for") && during <= 0:
				return usageError{errors.New("--for must be longer than nothing")}
			}
			return withDatabase(c.Context(), sh, func(db *postgres.DB, rules config.Rules) error {
				return pause(c.Context(), sh, db, rules, why, during)
			})
		},
	}
	c.Flags().StringVar(&why, "why", "", "what status will say about it (required)")
	c.Flags().DurationVar(&during, "for", 0, "resume by itself after this `duration`, such as 2h (default until resumed)")
	return c
}

func pause(ctx context.Context, sh shell, db *postgres.DB, rules config.Rules, why string, during time.Duration) error {
	p, err := db.Pause(ctx, why, during)
	if err != nil {
		return err
	}
	ahead, err := forecast(ctx, db, rules)
	if err != nil {
		return err
	}
	return sh.say("Paused %s.\nOnce resumed, %s.%s", report.Until(p), report.Ahead(ahead), braking(ahead))
}

func resumeCommand(sh shell) *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "Have ticks decide again",
		Long: `Have ticks decide again, and say how many reservations the next one will end by
what the database says: pods found missing before count as missing still, and
the cluster is not asked. To look before, run status.

Needs only the POSTGRES_ variables.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return withDatabase(c.Context(), sh, func(db *postgres.DB, rules config.Rules) error { return resume(c.Context(), sh, db, rules) })
		},
	}
}

func resume(ctx context.Context, sh shell, db *postgres.DB, rules config.Rules) error {
	paused, err := db.Resume(ctx)
	if err != nil {
		return err
	}
	ahead, err := forecast(ctx, db, rules)
	if err != nil {
		return err
	}
	done := "Resumed."
	if !paused {
		done = "It was not paused."
	}
	return sh.say("%s\nAt the next tick %s.%s", done, report.Ahead(ahead), braking(ahead))
}

// braking is a further line where the brake has something to say.
func braking(ahead sweep.Forecast) string {
	if words := report.Braking(ahead); words != "" {
		return "\nThe brake: it " + words + "."
	}
	return ""
}

// withDatabase opens the database for act.
func withDatabase(ctx context.Context, sh shell, act func(db *postgres.DB, rules config.Rules) error) error {
	cfg, err := outlook(sh)
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, cfg.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	return act(db, cfg.Rules)
}
