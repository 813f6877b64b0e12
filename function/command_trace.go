package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/telemetry"
	"gpudev.internal/reservation-expiry/internal/waterfall"
)

func traceCommand(sh shell) *cobra.Command {
	var calls bool
	c := &cobra.Command{
		Use:   "trace RESERVATION_ID",
		Short: "Draw a reservation's life, as Jaeger has it",
		Long: `Draw the trace of one reservation as a waterfall: the phases of its life, each
warning, the end, every cleanup step with its attempts, the snapshot and the
disk. Times are relative to the deadline.

Asks the query API of the Jaeger at JAEGER_QUERY_URL, and nothing else: of a
reservation that the database has long forgotten the trace may still be there.
With the POSTGRES_ variables the id may be given by its beginning, or as the
name of its pod.`,
		Example: `  JAEGER_QUERY_URL=http://jaeger-query:16686 reservation-expiry trace 5f0c2d1e-93b4-4b2b-8a57-6f3f6f0b2c11`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, args []string) error { return drawTrace(c.Context(), sh, args[0], calls) },
	}
	c.Flags().BoolVar(&calls, "calls", false, "with the calls to the database, Kubernetes and AWS")
	return c
}

func drawTrace(ctx context.Context, sh shell, meant string, calls bool) error {
	cfg, err := config.LoadTraces(sh.environ)
	if err != nil {
		return usageError{err}
	}
	if cfg.JaegerQueryURL == "" {
		return usageError{errors.New("JAEGER_QUERY_URL is missing: the address of Jaeger's query service, such as http://jaeger-query:16686")}
	}
	client, err := jaeger.New(cfg.JaegerQueryURL, &http.Client{})
	if err != nil {
		return usageError{err}
	}
	id, err := meantReservation(ctx, sh, meant)
	if err != nil {
		return err
	}
	trace, err := client.Trace(ctx, telemetry.TraceID(id).String())
	switch {
	case fault.Is(err, fault.Gone):
		return fmt.Errorf("jaeger has no trace of reservation %s: none was sent, it is forgotten already, nothing has happened yet, or that is not its whole id", id)
	case err != nil:
		return fmt.Errorf("cannot ask Jaeger (check JAEGER_QUERY_URL): %w", err)
	}
	if err := waterfall.Draw(sh.out, trace, waterfall.Options{Width: sh.screen.Width, Color: sh.screen.Color, Calls: calls}); err != nil {
		return err
	}
	return sh.say("\n%s", client.Page(trace.ID))
}

// meantReservation is theOne for whoever has a database, and takes what was given as the id for everybody else.
func meantReservation(ctx context.Context, sh shell, meant string) (string, error) {
	if _, err := uuid.Parse(meant); err == nil {
		return meant, nil
	}
	postgres, err := config.LoadPostgres(sh.environ)
	if err != nil {
		return meant, nil // there is no database: no reservation can be looked up
	}
	db, err := openDatabase(ctx, postgres)
	if err != nil {
		return "", err
	}
	defer db.Close()
	id, err := theOne(ctx, db, meant)
	if fault.Is(err, fault.Gone) { // its row may be: Jaeger remembers longer
		return meant, nil
	}
	return id, err
}
