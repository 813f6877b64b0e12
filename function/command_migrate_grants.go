package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// grants is about the role that the service logs in as.
type grants struct{ print, to string }

func grantFlags(c *cobra.Command) *grants {
	var g grants
	c.Flags().StringVar(&g.print, "print-grants", "", "only print the psql script that lets `ROLE` run the service, for the tables' owners; needs no database")
	c.Flags().StringVar(&g.to, "grant-to", "", "afterwards grant `ROLE` what the service needs of the tables that who logs in owns")
	c.MarkFlagsMutuallyExclusive("print-grants", "grant-to")
	return &g
}

// printed prints the SQL, if that is what was asked for.
func (g *grants) printed(c *cobra.Command, sh shell) (bool, error) {
	if !c.Flags().Changed("print-grants") {
		return false, nil
	}
	if g.print == "" {
		return true, usageError{errors.New("--print-grants: which role?")}
	}
	_, err := io.WriteString(sh.out, postgres.Grants(g.print))
	return true, err //nolint:wrapcheck // it is about standard output, and says so
}

// check refuses the owner itself, who would lose what the service must not do.
func (g *grants) check(p config.Postgres) error {
	if g.to == p.User {
		return usageError{fmt.Errorf("--grant-to: %s is who logs in here, the owner; the service's role must be another", g.to)}
	}
	return nil
}

func (g *grants) grant(ctx context.Context, sh shell, p config.Postgres) error {
	if g.to == "" {
		return nil
	}
	left := func(whose string) { _ = sh.say("left for its owner to grant: %s", whose) }
	if err := postgres.Grant(ctx, p.URL().Reveal(), g.to, left); err != nil {
		return err
	}
	return sh.say("granted to %s", g.to)
}
