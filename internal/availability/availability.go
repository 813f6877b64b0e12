// Package availability has the platform compute anew which GPUs are free, after cleanups have freed some.
package availability

import (
	"context"
	"log/slog"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Invoker starts the platform's function; *aws.Lambda is one.
type Invoker interface {
	Invoke(ctx context.Context, payload []byte) error
}

// payload tells the function who calls. It computes everything anew whatever it says.
const payload = `{"source":"reservation-expiry"}`

// Action carries out follow-ups of kind availability.update. The follow-up being due is the mark that cleanups set;
// one invocation clears it for all of them. Set again meanwhile, the mark stays for another one.
type Action struct {
	updater Invoker
	opts    Options
}

// Options tune an Action. The zero value is right for production.
type Options struct {
	Log   *slog.Logger         // nil: slog.Default
	Trace *telemetry.Telemetry // nil: none
}

// New returns an Action; a nil updater means that no function is configured.
func New(updater Invoker, opts Options) *Action {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Trace == nil {
		opts.Trace = telemetry.Disabled()
	}
	return &Action{updater: updater, opts: opts}
}

// Handle has the function invoked once. Being for all cleanups, that is in no reservation's trace.
func (a *Action) Handle(ctx context.Context, _ postgres.FollowUp) (result followup.Result, err error) {
	if a.updater == nil {
		return followup.Done("skipped"), nil
	}
	ctx, span := a.opts.Trace.StartDelivery(ctx, string(postgres.AvailabilityUpdate))
	defer func() { span.End(result.Outcome, err) }()
	if err := a.updater.Invoke(ctx, []byte(payload)); err != nil {
		return followup.Result{}, err
	}
	a.opts.Log.InfoContext(ctx, "availability updater invoked", "reason", "a cleanup has freed a GPU")
	return followup.Done("invoked"), nil
}
