// Command reservation-expiry ends GPU reservations well. See README.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/instrument"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Environ()); err != nil {
		fmt.Fprintln(os.Stderr, "reservation-expiry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, environ []string) error {
	cfg, err := config.Load(environ, config.FileExists)
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(os.Stderr, cfg.Log.Format, slog.LevelInfo)
	t, err := telemetry.Setup(ctx, telemetry.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = t.Shutdown(ctx) }()
	db, err := postgres.Open(ctx, cfg.Postgres.URL().Reveal(), postgres.Options{
		Tracer: instrument.Postgres(t, cfg.Postgres.Host, cfg.Postgres.DB),
	})
	if err != nil {
		return err
	}
	defer db.Close()
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(cfg.Delivery.Port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return newServer(parts{
		delivery: cfg.Delivery, db: db,
		sweeper: sweep.New(db, sweep.Outside{}, sweep.Options{
			Grace: cfg.Rules.Grace(), WarningMinutes: cfg.Rules.WarningMinutes, BrakePercent: cfg.Rules.BrakePercent,
			BrakeMin: cfg.Rules.BrakeMin, Timeout: cfg.Rules.SweepTimeout, Log: log,
		}),
		actions:   map[postgres.FollowUpKind]followup.Action{},
		telemetry: t, log: log,
	}).serve(ctx, listener)
}
