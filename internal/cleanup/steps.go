package cleanup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// step is one part of a cleanup.
type step struct {
	name postgres.Step
	run  func(context.Context, *delivery) (result, error)
	// soft steps that fail do not stop those after them.
	soft bool
	// kube is set for steps that believe what the Kubernetes API says to be gone.
	kube bool
}

// tracks returns what is done, in order within a track; the tracks do not depend on each other. What the pod knows is
// learnt before it goes, and the volume is retained before anything of Kubernetes' could delete it.
func (a *Action) tracks() [][]step {
	return [][]step{
		{
			{name: postgres.StepIdentify, run: a.identify, kube: true},
			{name: postgres.StepNotice, run: a.finalNotice, soft: true, kube: true},
			{name: postgres.StepListing, run: a.listing, soft: true, kube: true},
			{name: postgres.StepRetain, run: a.retain, kube: true},
			{name: postgres.StepServices, run: a.services, soft: true, kube: true},
			{name: postgres.StepPod, run: a.endPod, kube: true},
			{name: postgres.StepDisk, run: a.keepDisk},
		},
		{{name: postgres.StepDNS, run: a.records}},
		{{name: postgres.StepLoadBalancer, run: a.loadBalancer}},
	}
}

// result is how one go at a step ended without an error.
type result struct {
	outcome  string        // one word: nothing is left to do
	detail   string        // for people
	again    time.Duration // the step waits for the world: look again after this
	recorded bool          // the step has itself recorded its end, or left it to somebody else
}

func finished(outcome, detail string) (result, error) {
	return result{outcome: outcome, detail: detail}, nil
}

func waiting(again time.Duration, detail string) (result, error) {
	return result{again: again, detail: detail}, nil
}

// The outcomes of steps, besides those of the disk.
const (
	done        = "done"
	alreadyGone = "already_gone"
	notOurs     = "not_ours"
	missing     = "missing"
	unclear     = "unclear" // which volume is the disk
	skipped     = "skipped"
	nothing     = "nothing_to_do"
)

// ending is how one go at a track ended; the zero value means that all of it is finished.
type ending struct {
	again    time.Duration
	failures []error
}

// follow runs the steps of a track that are not finished yet.
func (a *Action) follow(ctx context.Context, d *delivery, track []step) ending {
	var e ending
	for _, s := range track {
		if d.steps[s.name].Finished() {
			continue
		}
		again, err := a.try(ctx, d, s)
		if err != nil {
			e.failures = append(e.failures, fmt.Errorf("%s: %w", s.name, err))
		}
		e.again = again
		if ctx.Err() != nil || again > 0 || !s.soft && err != nil {
			break
		}
	}
	return e
}

// try has one go at a step and records how it ended.
func (a *Action) try(ctx context.Context, d *delivery, s step) (again time.Duration, err error) {
	id, before := d.id, d.steps[s.name]
	about := d.about
	about.Phase = telemetry.StepPhase(string(s.name)) // it may take more than this delivery
	stepCtx, span := a.opts.Trace.StartAction(ctx, string(s.name), about,
		telemetry.KeyCleanupStep.String(string(s.name)), telemetry.KeyAttempt.Int(before.Attempts+1))
	began := a.opts.Now()
	r, err := a.run(stepCtx, d, s)
	span.Set(d.subject(s.name)...)
	outcome := r.outcome
	switch {
	case err != nil:
		a.recordFailure(ctx, d, s, err)
	case r.again > 0:
		outcome, again = "waiting", r.again
		if r.detail != "" {
			err = a.Store.NoteStep(ctx, id, s.name, r.detail)
		}
	case !r.recorded:
		err = a.Store.FinishStep(ctx, id, s.name, r.outcome, r.detail)
	}
	switch {
	case err == nil:
		a.opts.Log.InfoContext(stepCtx, "cleanup step", "step", s.name, "outcome", outcome,
			"reason", cmp.Or(r.detail, "the reservation is "+d.about.Status))
	case interrupted(ctx):
		outcome = telemetry.Interrupted
	default:
		outcome = "error"
		span.Set(telemetry.KeyCleanupFailed.String(string(s.name)))
	}
	span.End(outcome, err)
	a.opts.Trace.Metrics.StepTried(ctx, string(s.name), outcome, a.opts.Now().Sub(began), before.Attempts+1, err == nil && again == 0)
	return again, err
}

// subject says what a step was about, as far as it is known by then. The record is the compute track's.
func (d *delivery) subject(s postgres.Step) []attribute.KeyValue {
	c := &d.record
	switch s {
	case postgres.StepIdentify:
		return append(telemetry.Pod(c.Namespace, c.PodName, c.PodUID), telemetry.Volume(c.VolumeID, c.DiskName)...)
	case postgres.StepNotice, postgres.StepServices, postgres.StepPod:
		return telemetry.Pod(c.Namespace, c.PodName, c.PodUID)
	case postgres.StepListing:
		return append(telemetry.Pod(c.Namespace, c.PodName, c.PodUID), telemetry.Object(c.ContentURL)...)
	case postgres.StepRetain, postgres.StepDisk:
		return telemetry.Volume(c.VolumeID, c.DiskName)
	default: // of another track
		return nil
	}
}

func (a *Action) run(ctx context.Context, d *delivery, s step) (result, error) {
	if err := a.Store.BeginStep(ctx, d.id, s.name); err != nil {
		return result{}, err
	}
	if s.kube && !d.checked {
		if err := a.home.SameCluster(ctx); err != nil {
			return result{}, err
		}
		d.checked = true
	}
	r, err := s.run(ctx, d)
	if u, ok := errors.AsType[*unheardError](err); ok && u.left <= a.patience(ctx)+jitter { // else it were a whole tick's wait
		if err := errors.Join(a.opts.Sleep(ctx, u.left+time.Second), a.reload(ctx, d)); err != nil {
			return result{}, err
		}
		d.pod = nil // as it is now
		r, err = s.run(ctx, d)
	}
	if u, ok := errors.AsType[*unheardError](err); ok {
		return waiting(u.again, u.Error())
	}
	return r, err
}

// interrupted reports whether the delivery was called off, which is nobody's failure.
func interrupted(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// recordFailure counts a failure unless the delivery was interrupted.
func (a *Action) recordFailure(ctx context.Context, d *delivery, s step, cause error) {
	if interrupted(ctx) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := a.Store.FailStep(ctx, d.id, s.name, cause); err != nil {
		a.opts.Log.ErrorContext(ctx, "failure of a cleanup step not recorded", "step", s.name, "error", err)
	}
}

// jitter is by how much two ticks may lie closer together than their five minutes.
const jitter = 5 * time.Second

// spare is how much of a delivery's time is left for what follows a wait: a last look, and recording it.
const spare = 15 * time.Second

// patience is how long the delivery may wait from now on.
func (a *Action) patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(a.opts.Patience, deadline.Sub(a.opts.Now())-spare)
	}
	return a.opts.Patience
}

// until looks again at each interval, for as long as a delivery may wait, until look says true. An error of look is its
// result only if the last look failed too: what fails for a moment is looked at again.
func (a *Action) until(ctx context.Context, interval time.Duration, look func(context.Context) (bool, error)) (bool, error) {
	end := a.opts.Now().Add(a.patience(ctx))
	for {
		ok, err := look(ctx)
		if ok || ctx.Err() != nil || !a.opts.Now().Add(interval).Before(end) {
			if err == nil {
				err = ctx.Err()
			}
			return ok, err
		}
		if err := a.opts.Sleep(ctx, interval); err != nil {
			return false, err
		}
	}
}
