// Package availability has the platform compute anew which GPUs are free, after cleanups have freed some.
package availability

import (
	"context"
	"log/slog"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
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
	log     *slog.Logger
}

// New returns an Action; a nil updater means that no function is configured.
func New(updater Invoker, log *slog.Logger) *Action {
	if log == nil {
		log = slog.Default()
	}
	return &Action{updater: updater, log: log}
}

// Handle has the function invoked once.
func (a *Action) Handle(ctx context.Context, _ postgres.FollowUp) (followup.Result, error) {
	if a.updater == nil {
		return followup.Done("skipped"), nil
	}
	if err := a.updater.Invoke(ctx, []byte(payload)); err != nil {
		return followup.Result{}, err
	}
	a.log.InfoContext(ctx, "availability updater invoked")
	return followup.Done("invoked"), nil
}
