// Package warning writes into users' servers: how long the server has left, and that it ran out of memory.
package warning

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/notice"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store has the rows that say whether there is still something to write; *postgres.DB is one.
type Store interface {
	LoadWarningSubject(ctx context.Context, reservationID string) (postgres.WarningSubject, bool, error)
	RecordWarningSent(ctx context.Context, f postgres.FollowUp, deadline time.Time, level reservation.Level) (bool, error)
	NewestOOMKill(ctx context.Context, reservationID string) (postgres.OOMKill, bool, error)
	Ownership(ctx context.Context, reservationID, podName, uid string) (postgres.Ownership, error)
}

// Pods are where the files go; *kube.Cluster is one.
type Pods interface {
	GetPod(ctx context.Context, namespace, name string) (pod.Pod, error)
	WriteFile(ctx context.Context, namespace, podName, container string, f pod.File) error
}

// Options tune the actions. The zero value is right for production.
type Options struct {
	Log   *slog.Logger         // nil: slog.Default
	Trace *telemetry.Telemetry // nil: disabled
}

// Warnings carries out follow-ups of kind warning.
type Warnings struct{ writer }

// NewWarnings returns the action for warnings.
func NewWarnings(store Store, pods Pods, o Options) *Warnings {
	return &Warnings{newWriter(store, pods, o)}
}

// Handle writes the warning of one deadline and level and records it as sent. It is void where the reservation is not
// active any more, its deadline has moved or passed. A pod that is not there or does not run is a failure: it may come
// back, until the deadline.
func (w *Warnings) Handle(ctx context.Context, f postgres.FollowUp) (result followup.Result, err error) {
	unix, level, err := parseKey(f)
	if err != nil {
		return followup.Result{}, err
	}
	s, why, err := w.subject(ctx, f.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	switch {
	case why != "":
	case s.Anomaly != reservation.NoAnomaly:
		why = s.Anomaly.Sentence()
	case s.Deadline.Unix() != unix:
		why = "the deadline has moved to " + s.Deadline.UTC().Format(time.RFC3339)
	case !s.Now.Before(s.Deadline):
		why = "the deadline has passed"
	}
	ctx, span := w.opts.Trace.StartAction(ctx, "warning", telemetryOf(f, s), telemetry.KeyWarningLevel.Int(int(level)))
	defer func() { span.End(result.Outcome, err) }()
	if why != "" {
		return w.void(ctx, "no warning", why), nil
	}
	p, err := w.podOf(ctx, span, s)
	if err != nil {
		return followup.Result{}, err
	}
	err = w.pods.WriteFile(ctx, p.Namespace, p.Name, pod.MainContainer, pod.File{Dir: notice.Home, Name: notice.WarningFile(level),
		Content: notice.Warning(s.Reservation, p.HasVolumes(), s.Deadline, s.Now), Replaces: notice.WarningPrefix})
	if err != nil {
		return followup.Result{}, err
	}
	sent, err := w.store.RecordWarningSent(ctx, f, s.Deadline, level)
	if err != nil {
		return followup.Result{}, err
	}
	if !sent {
		return w.void(ctx, "warning written, not recorded", "the reservation, its deadline or the lease has changed meanwhile"), nil
	}
	late := s.Now.Sub(s.Deadline.Add(-level.Duration()))
	w.opts.Trace.Metrics.Warned(ctx, int(level), max(late, 0))
	w.opts.Log.InfoContext(ctx, "warned", "level_minutes", int(level), "deadline", s.Deadline,
		"reason", "less than "+level.Duration().String()+" was left")
	return followup.Recorded("sent"), nil
}

// parseKey reads <reservation>/<deadline, unix seconds>/<level, minutes>.
func parseKey(f postgres.FollowUp) (deadline int64, level reservation.Level, err error) {
	rest, ok := strings.CutPrefix(f.Key, f.ReservationID+"/")
	unix, minutes, found := strings.Cut(rest, "/")
	deadline, err1 := strconv.ParseInt(unix, 10, 64)
	n, err2 := strconv.Atoi(minutes)
	if !ok || !found || err1 != nil || err2 != nil {
		return 0, 0, fault.Errorf(fault.Permanent, "key %q is none of a warning of %s", f.Key, f.ReservationID)
	}
	return deadline, reservation.Level(n), nil
}

// Notices carries out follow-ups of kind notice.
type Notices struct{ writer }

// NewNotices returns the action for notices.
func NewNotices(store Store, pods Pods, o Options) *Notices {
	return &Notices{newWriter(store, pods, o)}
}

// Handle writes that the server ran out of memory. There is one such file, about the latest kill, so that notices may
// come in any order. It is void once the reservation is not active any more.
func (n *Notices) Handle(ctx context.Context, f postgres.FollowUp) (result followup.Result, err error) {
	s, why, err := n.subject(ctx, f.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	kill, found, err := n.store.NewestOOMKill(ctx, f.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	if why == "" && !found {
		why = "no out-of-memory kill is recorded"
	}
	ctx, span := n.opts.Trace.StartAction(ctx, "notice", telemetryOf(f, s))
	defer func() { span.End(result.Outcome, err) }()
	if why != "" {
		return n.void(ctx, "no notice", why), nil
	}
	p, err := n.podOf(ctx, span, s)
	if err != nil {
		return followup.Result{}, err
	}
	err = n.pods.WriteFile(ctx, p.Namespace, p.Name, pod.MainContainer, pod.File{Dir: notice.Home, Name: notice.OOMFile,
		Content: notice.OOM(s.Reservation, kill.Container, kill.FinishedAt, s.OOMCount)})
	if err != nil {
		return followup.Result{}, err
	}
	n.opts.Log.InfoContext(ctx, "out-of-memory notice written", "container", kill.Container,
		"reason", "a container ran out of memory")
	return followup.Done("sent"), nil
}

// writer is what both actions share.
type writer struct {
	store Store
	pods  Pods
	opts  Options
}

func newWriter(store Store, pods Pods, o Options) writer {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Trace == nil {
		o.Trace = telemetry.Disabled()
	}
	return writer{store: store, pods: pods, opts: o}
}

func telemetryOf(f postgres.FollowUp, s postgres.WarningSubject) telemetry.Reservation {
	return telemetry.Reservation{ID: f.ReservationID, UserID: s.UserID, Status: string(s.Status), GPUType: s.GPUType,
		Deadline: s.Deadline, Phase: telemetry.PhaseActive}
}

// subject reads the reservation again; why says, where it is not empty, that nothing is to be written any more.
func (w writer) subject(ctx context.Context, id string) (s postgres.WarningSubject, why string, err error) {
	s, found, err := w.store.LoadWarningSubject(ctx, id)
	switch {
	case err != nil:
	case !found:
		why = "the reservation's row is gone"
	case s.Status != reservation.Active:
		why = fmt.Sprintf("the reservation is %s", s.Status)
	}
	return s, why, err
}

func (w writer) void(ctx context.Context, what, why string) followup.Result {
	w.opts.Log.InfoContext(ctx, what, "reason", why)
	return followup.Done(postgres.Void)
}

// podOf returns the pod of a live reservation, if a command can be run in it, and sets it on the span.
func (w writer) podOf(ctx context.Context, span *telemetry.Span, s postgres.WarningSubject) (pod.Pod, error) {
	name, ok := pod.NameFor(s.ID, s.PodName)
	namespaces := pod.Namespaces(s.NamespaceName)
	if !ok || namespaces == nil {
		return pod.Pod{}, fault.Errorf(fault.Permanent, "reservation %s names nothing that can be a pod", s.ID)
	}
	created, _ := s.CreatedAt.Time()
	why := "there is none"
	for _, namespace := range namespaces {
		p, err := w.pods.GetPod(ctx, namespace, name)
		if fault.Is(err, fault.Gone) {
			continue
		}
		if err != nil {
			return pod.Pod{}, err
		}
		rows, err := w.store.Ownership(ctx, s.ID, name, p.UID)
		if err != nil {
			return pod.Pod{}, err
		}
		if rows.Theirs {
			why = "the one of that name was seen as another reservation's"
			continue
		}
		// An older pod of that name is of an earlier reservation, and two live ones may have been given one name.
		life := pod.Ended{PodName: name, Namespace: s.NamespaceName, Start: created, End: s.Now, NameIsLive: rows.NameIsLive}
		if slices.Contains(rows.UIDs, p.UID) {
			life.UID, life.NameIsLive = p.UID, false
		}
		verdict, reason := pod.BelongsTo(pod.Object{Namespace: p.Namespace, PodName: p.Name, UID: p.UID, Created: p.Created}, life)
		if verdict == pod.NotOurs {
			why = reason
			continue
		}
		if main, ok := p.Main(); !ok || !main.Running {
			why = fmt.Sprintf("container %s does not run", pod.MainContainer)
			continue
		}
		span.Set(append(telemetry.Pod(p.Namespace, p.Name, p.UID), telemetry.KeyContainerName.String(pod.MainContainer))...)
		return p, nil
	}
	return pod.Pod{}, fmt.Errorf("no pod %s to write to: %s", name, why)
}
