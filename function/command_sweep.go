package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// fromShell is the trigger of such a sweep.
const fromShell = "shell"

// sweepFlags say what is to be swept, and how far.
type sweepFlags struct {
	dryRun       bool
	reservations []string
	followUps    time.Duration
	output       *outputFormat
}

func sweepCommand(sh shell) *cobra.Command {
	var flags sweepFlags
	c := &cobra.Command{
		Use:   "sweep",
		Short: "Run one whole sweep, with its follow-ups, and print what came of it",
		Long: `Run one whole sweep from the shell: decide and record what is due, then carry
out in this process every follow-up that is due. This is what a plain CronJob
runs. Where another sweep is running nothing is done.

A dry run changes nothing, and prints for each reservation that a sweep would
touch what it would do and why. With --reservation only these are decided about;
follow-ups that are due are carried out whatever they are of.

Needs the same environment as serve. Facts go to FACTS_SINK or K_SINK, and stay
recorded where there is neither. Ends with 1 where the sweep, or a part of it,
failed; a follow-up that failed is tried again by a later one.`,
		Example: `  reservation-expiry sweep --dry-run
  reservation-expiry sweep
  reservation-expiry sweep --dry-run --reservation 5f0c2d1e -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return sweepOnce(c.Context(), sh, flags) },
	}
	c.Flags().BoolVar(&flags.dryRun, "dry-run", false, "change nothing, and print what a sweep would do")
	c.Flags().StringSliceVar(&flags.reservations, "reservation", nil, "decide only about this `ID` (may be repeated)")
	c.Flags().DurationVar(&flags.followUps, "follow-ups", 4*time.Minute, "how long to carry out follow-ups; what is left stays due")
	flags.output = outputFlag(c)
	return c
}

func sweepOnce(ctx context.Context, sh shell, flags sweepFlags) error {
	cfg, err := config.Load(sh.environ, config.FileExists)
	if err != nil {
		return usageError{err}
	}
	log := telemetry.NewLogger(sh.err, cfg.Log.Format, slog.LevelInfo)
	if sh.watched || flags.dryRun && *flags.output == asTable { // by somebody who reads the answer instead
		log = telemetry.NewLogger(sh.err, "text", slog.LevelWarn)
	}
	slog.SetDefault(log)
	w, err := newWorld(ctx, cfg, sh.clock, log)
	if err != nil {
		return err
	}
	defer w.close(ctx, log)
	if flags.dryRun {
		w.lives = nil // what was written into traces is remembered in rows
	}
	if err := usable(ctx, w.db, cfg.Postgres); err != nil {
		return err
	}
	request := event.SweepRequest{DryRun: flags.dryRun}
	for _, meant := range flags.reservations {
		id, err := theOne(ctx, w.db, meant)
		if err != nil {
			return err
		}
		request.ReservationIDs = append(request.ReservationIDs, id)
	}

	sh.progress("sweeping …")
	ctx, span := w.telemetry.StartDelivery(telemetry.WithDelivery(ctx, telemetry.Command()), "sweep")
	view, err := w.sweep(ctx, sh, cfg, request, flags.followUps, log)
	span.End(string(view.Outcome), err)
	if view.Outcome == "" { // it did not even begin
		return err
	}
	return errors.Join(sh.show(*flags.output, view), err, howItWent(view))
}

// sweep runs one sweep and what follows from it.
func (w *world) sweep(ctx context.Context, sh shell, c config.Config, request event.SweepRequest, followUps time.Duration, log *slog.Logger) (report.Swept, error) {
	result, err := w.sweeper.Sweep(ctx, fromShell, request)
	view := report.Swept{Result: result}
	if err != nil || request.DryRun || result.Outcome == sweep.Skipped {
		return view, err
	}
	err = w.carryOut(ctx, sh, &view, followUps, log)
	out := newOutgoing(c.Delivery, c.Entry, w.telemetry)
	defer out.transport.CloseIdleConnections()
	announced, failure := dispatch.NewAnnouncer(w.db, out.build, out.facts, dispatch.AnnouncerOptions{Log: log}).Drain(ctx)
	view.Announced = announced
	if failure != nil {
		log.WarnContext(ctx, "facts could not be announced and stay recorded", "error", failure)
	}
	return view, err
}

// carryOut works off what is due, for as long as it may.
func (w *world) carryOut(ctx context.Context, sh shell, view *report.Swept, limit time.Duration, log *slog.Logger) error {
	working, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	runner := followup.NewRunner(w.db, w.actions, followup.Options{Log: log})
	err := dispatch.RunDue(working, w.db, runner, func(r followup.Report, failure error) {
		f := report.Carried(r, failure)
		view.FollowUps = append(view.FollowUps, f)
		sh.progress("%s", f.Line(sh.errScreen))
	})
	if working.Err() != nil && ctx.Err() == nil {
		view.Left = fmt.Sprintf("the time for follow-ups, %s, is over: what is left is done by the next sweep", report.Span(limit))
		return nil
	}
	return err
}

// howItWent is an error where the sweep failed, in whole or in part.
func howItWent(view report.Swept) error {
	switch view.Outcome {
	case sweep.Completed, sweep.Skipped:
		return nil
	}
	why := []string{fmt.Sprintf("the sweep is %s", view.Outcome)}
	for _, f := range view.Failures {
		why = append(why, f.Part+": "+f.Error)
	}
	return errors.New(strings.Join(why, "; "))
}
