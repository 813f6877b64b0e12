package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func serveCommand(sh shell) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Take CloudEvents over HTTP (the default)",
		Long: `Take CloudEvents over HTTP on PORT: ticks, of which each runs one sweep, and the
follow-ups that sweeps ask for.

POST / takes events, POST /dead-letter what a broker gave up on, GET /healthz
and /readyz are for probes.
With K_SINK follow-ups go there; without it the service sends them to itself.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return serve(c.Context(), sh) },
	}
}

func serve(ctx context.Context, sh shell) error {
	cfg, err := config.Load(sh.environ, config.FileExists)
	if err != nil {
		return usageError{err}
	}
	log := telemetry.NewLogger(sh.err, cfg.Log.Format, slog.LevelInfo)
	slog.SetDefault(log)
	w, err := newWorld(ctx, cfg, sh.clock, log)
	if err != nil {
		return err
	}
	defer w.close(ctx, log)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+strconv.Itoa(cfg.Delivery.Port))
	if err != nil {
		return fmt.Errorf("cannot listen (PORT says where): %w", err)
	}
	s := newServer(parts{
		delivery: cfg.Delivery, entry: cfg.Entry, db: w.db, sweeper: w.sweeper, actions: w.actions, telemetry: w.telemetry, lives: w.lives, log: log,
		comeWithin: sh.comeWithin,
	})
	s.entry.announce(cfg.Entry)
	return s.serve(ctx, listener)
}
