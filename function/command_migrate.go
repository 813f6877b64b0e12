package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
)

func migrateCommand(sh shell) *cobra.Command {
	var platformTables bool
	var grant *grants
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade schema expiry",
		Long: `Create or upgrade schema expiry in the platform's database, and touch nothing
else. It may be run at any time, by several at once, and while the service runs.

Needs only the POSTGRES_ variables.`,
		Example: `  reservation-expiry migrate
  reservation-expiry migrate --grant-to expiry   # as the owner: what the service's own role needs, too
  reservation-expiry migrate --print-grants expiry | psql
  reservation-expiry migrate --platform-tables   # for a demo: the platform's tables, too`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if printed, err := grant.printed(c, sh); printed {
				return err
			}
			return migrate(c.Context(), sh, platformTables, grant)
		},
	}
	grant = grantFlags(c)
	c.Flags().BoolVar(&platformTables, "platform-tables", false, "also create the platform's tables where they are absent, for demos and tests")
	return c
}

func migrate(ctx context.Context, sh shell, platformTables bool, grant *grants) error {
	p, err := config.LoadPostgres(sh.environ)
	if err != nil {
		return usageError{err}
	}
	if err := grant.check(p); err != nil {
		return err
	}
	type migration = func(ctx context.Context, url string, done ...func(string, time.Duration)) error
	upgrade := func(what string, run migration) error {
		applied := 0
		err := run(ctx, p.URL().Reveal(), func(file string, took time.Duration) {
			applied++
			_ = sh.say("%s: applied %s in %s", what, file, report.Span(took))
		})
		switch {
		case errors.Is(err, postgres.ErrLocked):
			return err
		case err != nil:
			return unreachable(p, err)
		case applied == 0:
			return sh.say("%s: up to date", what)
		}
		return nil
	}
	if platformTables {
		if err := upgrade("platform tables", postgres.MigratePlatformTables); err != nil {
			return err
		}
	}
	if err := upgrade("schema expiry", postgres.Migrate); err != nil {
		return err
	}
	return grant.grant(ctx, sh, p)
}
