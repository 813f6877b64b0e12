// Package cleanup takes down what stood behind a reservation that has ended: its pod and services, its DNS records,
// its part of the load balancer, and, through a DiskKeeper, its volume.
//
// It is a list of steps. Each looks at the world first, counts what is already gone as done, and is recorded when it
// is finished, so that the next delivery goes on where this one was, or died. A step that must wait looks again for up
// to a minute and leaves the rest to a later delivery.
package cleanup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/home"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store remembers how far a cleanup is and knows whose things are; *postgres.DB is one.
type Store interface {
	EnsureCleanup(ctx context.Context, reservationID string) (bool, error)
	BeginCleanupAnew(ctx context.Context, reservationID string) error
	LoadCleanup(ctx context.Context, reservationID string) (postgres.CleanupRecord, bool, error)
	VoidCleanup(ctx context.Context, f postgres.FollowUp) (bool, error)
	SettleCleanup(ctx context.Context, f postgres.FollowUp) (outcome string, settled bool, err error)
	Reservation(ctx context.Context, id string) (r reservation.Reservation, found bool, err error)

	CleanupSteps(ctx context.Context, reservationID string) (map[postgres.Step]postgres.StepRecord, error)
	BeginStep(ctx context.Context, reservationID string, step postgres.Step) error
	NoteStep(ctx context.Context, reservationID string, step postgres.Step, detail string) error
	FailStep(ctx context.Context, reservationID string, step postgres.Step, cause error) error
	FinishStep(ctx context.Context, reservationID string, step postgres.Step, outcome, detail string) error

	home.Store
	Ownership(ctx context.Context, reservationID, podName, uid string) (postgres.Ownership, error)
	DiskOf(ctx context.Context, reservationID, userID, volumeID string) (name, volume string, err error)
	RecordIdentity(ctx context.Context, reservationID string, id postgres.Identity, outcome, detail string) error
	RecordDiskName(ctx context.Context, reservationID, name string) error
	BelieveRow(ctx context.Context, reservationID, left string) error
	RecordListing(ctx context.Context, reservationID, size, url, outcome, detail string) error
	RecordTermination(ctx context.Context, reservationID string) error
	RecordPodGone(ctx context.Context, reservationID, outcome, detail string) error
	VolumesSetAside(ctx context.Context, ids []string) ([]string, error)
	WithDisk(ctx context.Context, reservationID string, act func(context.Context) error) (postgres.DiskVerdict, error)
	FinishWithoutVolume(ctx context.Context, reservationID, detail string) (outcome string, err error)

	DomainsOf(ctx context.Context, reservationID string) ([]string, error)
	RemoveDomain(ctx context.Context, reservationID, domain string, remove func(context.Context) error) (bool, error)
	RemoveLoadBalancer(ctx context.Context, reservationID string, remove func(context.Context, postgres.LoadBalancer) error) (bool, error)
}

// Cluster is the Kubernetes API; *kube.Cluster is one.
type Cluster interface {
	home.Cluster
	GetNode(ctx context.Context, name string) (pod.Node, error)

	GetPod(ctx context.Context, namespace, name string) (pod.Pod, error)
	ListPods(ctx context.Context, namespace string) ([]pod.Pod, error)
	DeletePod(ctx context.Context, namespace, name, uid string, grace time.Duration) error
	ForceDeletePod(ctx context.Context, namespace, name, uid string) error
	WriteFile(ctx context.Context, namespace, podName, container string, f pod.File) error
	RunListing(ctx context.Context, namespace, podName, container, dir string) (pod.Listing, error)

	GetService(ctx context.Context, namespace, name string) (pod.Service, error)
	ListServices(ctx context.Context, namespace string) ([]pod.Service, error)
	DeleteService(ctx context.Context, namespace, name, uid string) error

	GetClaim(ctx context.Context, namespace, name string) (pod.Claim, error)
	GetVolume(ctx context.Context, name string) (pod.PersistentVolume, error)
	RetainVolume(ctx context.Context, name, uid string) (pod.PersistentVolume, error)
}

// EC2 is asked about instances and volumes; *aws.EC2 is one.
type EC2 interface {
	DescribeInstance(ctx context.Context, id string) (disk.Instance, error)
	DescribeVolume(ctx context.Context, id string) (disk.Volume, error)
	FindVolumes(ctx context.Context, tags map[string]string) ([]disk.Volume, error)
}

// DNS deletes a server's records as they really are and says which; *aws.Route53 is one.
type DNS interface {
	DeleteRecords(ctx context.Context, fqdn string) ([]string, error)
}

// Router takes down what routes to a server; *aws.LoadBalancer is one. A target group in use is a conflict.
type Router interface {
	DeleteRule(ctx context.Context, arn string) error
	DeleteTargetGroup(ctx context.Context, arn string) error
}

// Bucket keeps listings of disks; *aws.S3 is one.
type Bucket interface {
	PutListing(ctx context.Context, key string, text []byte) (url string, err error)
}

// DiskKeeper does the disk's part, the last step: the volume off its instance, and into a snapshot.
//
// Keep takes the disk as far as it will go now. It is called once the pod is gone, of a cleanup whose volume is known,
// and again until the step is finished. Its result says:
//   - followup.Recorded(outcome): postgres.finishDisk has finished the step, say as superseded or lost;
//   - followup.Done(outcome): the cleanup has nothing more to do for the disk, another follow-up (snapshot.sync) goes
//     on with it, finishes the step, and settles the cleanup or asks for it again;
//   - followup.LookAgain(d): the world needs time.
type DiskKeeper interface {
	Keep(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error)
}

// World is what a cleanup acts upon. DNS and Bucket are nil where they are not configured.
type World struct {
	Store    Store
	Cluster  Cluster
	EC2      EC2
	Identity home.Identity
	Router   Router
	Disk     DiskKeeper
	DNS      DNS
	Bucket   Bucket
}

// Options tune an Action. The zero value is right for production.
type Options struct {
	Domain   string        // DOMAIN_NAME, under which the records are
	Patience time.Duration // how long one delivery waits for the world; 0: 1 minute
	Interval time.Duration // between two looks; 0: half a second, in which a kubelet unmounts no volume
	Lag      time.Duration // of EC2's API behind what has happened; 0: disk.Lag
	Now      func() time.Time
	Sleep    func(ctx context.Context, d time.Duration) error // nil: a timer
	Tracks   func(tracks []func())                            // runs all tracks; nil: side by side
	Log      *slog.Logger                                     // nil: slog.Default
	Trace    *telemetry.Telemetry                             // nil: disabled
}

// Action carries out follow-ups of kind cleanup. It is safe for concurrent use.
type Action struct {
	World
	home home.Guard
	opts Options
}

// New returns an Action.
func New(w World, o Options) *Action {
	o.Patience = cmp.Or(o.Patience, time.Minute)
	o.Interval = cmp.Or(o.Interval, time.Second/2)
	o.Lag = cmp.Or(o.Lag, disk.Lag)
	o.Log = cmp.Or(o.Log, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Sleep == nil {
		o.Sleep = followup.Sleep
	}
	if o.Tracks == nil {
		o.Tracks = sideBySide
	}
	if o.Trace == nil {
		o.Trace = telemetry.Disabled()
	}
	return &Action{World: w, home: home.Guard{Store: w.Store, Cluster: w.Cluster, Identity: w.Identity}, opts: o}
}

// delivery is one go at a cleanup. What the compute track learns on its way is that track's alone.
type delivery struct {
	id    string
	steps map[postgres.Step]postgres.StepRecord // at the start

	about   telemetry.Reservation // without a phase
	record  postgres.CleanupRecord
	read    time.Time // by opts.Now, when record was read
	checked bool      // the cluster is the one where the reservations live
	pod     *pod.Pod  // the reservation's own, as first seen in this delivery
	unclear string    // why nobody can say which of the pod's volumes is the disk
	handed  string    // the outcome under which the keeper has handed the disk to another follow-up
}

// about says whose spans the delivery's are.
func about(c postgres.CleanupRecord, phase telemetry.Phase) telemetry.Reservation {
	return telemetry.Reservation{
		ID: c.ReservationID, UserID: c.UserID, Status: string(c.Status), GPUType: c.GPUType, Deadline: c.Deadline, Phase: phase,
	}
}

// Handle takes a cleanup as far as it will go now.
func (a *Action) Handle(ctx context.Context, f postgres.FollowUp) (result followup.Result, err error) {
	c, found, err := a.load(ctx, f.ReservationID)
	switch {
	case err != nil:
		return followup.Result{}, err
	case !found:
		return followup.Done("void"), nil
	case !c.SettledAt.IsZero():
		return followup.Done(c.Outcome), nil
	}
	ctx, span := a.opts.Trace.StartAction(ctx, "cleanup", about(c, telemetry.PhaseCleanup))
	defer func() { span.EndOr(result.Outcome, "waiting", err) }()
	if !c.Over() {
		a.opts.Log.WarnContext(ctx, "no cleanup: the reservation is live", "status", c.Status)
		voided, err := a.Store.VoidCleanup(ctx, f)
		if err == nil && !voided {
			return followup.LookAgain(time.Second), nil // it has ended between two looks
		}
		return followup.Recorded(postgres.Void), err
	}
	steps, err := a.Store.CleanupSteps(ctx, c.ReservationID)
	if err != nil {
		return followup.Result{}, err
	}
	d := &delivery{id: c.ReservationID, about: about(c, ""), steps: steps, record: c, read: a.opts.Now()}
	endings := a.work(ctx, d)
	span.Set(d.subject(postgres.StepIdentify)...) // by now it is known
	return a.conclude(ctx, f, d, endings)
}

func (a *Action) load(ctx context.Context, reservationID string) (postgres.CleanupRecord, bool, error) {
	c, found, err := a.Store.LoadCleanup(ctx, reservationID)
	switch {
	case err != nil || found && !c.EndedAgain:
		return c, found, err
	case found:
		a.opts.Log.InfoContext(ctx, "cleanup begins anew: the reservation has ended again")
		if err := a.Store.BeginCleanupAnew(ctx, reservationID); err != nil {
			return c, false, err
		}
		return a.Store.LoadCleanup(ctx, reservationID)
	}
	if _, err := a.Store.EnsureCleanup(ctx, reservationID); err != nil {
		return c, false, err
	}
	return a.Store.LoadCleanup(ctx, reservationID)
}

// work runs the tracks, by default side by side so that trouble on one delays no other, and returns how each ended.
func (a *Action) work(ctx context.Context, d *delivery) []ending {
	tracks := a.tracks()
	endings := make([]ending, len(tracks))
	run := make([]func(), len(tracks))
	for i, track := range tracks {
		run[i] = func() { endings[i] = a.follow(ctx, d, track) }
	}
	a.opts.Tracks(run)
	return endings
}

func sideBySide(tracks []func()) {
	var all sync.WaitGroup
	for _, track := range tracks {
		all.Go(track)
	}
	all.Wait()
}

// conclude says what the delivery came to. Waiting wins over failing: it is the shorter pause, and each failure is
// kept on its step.
func (a *Action) conclude(ctx context.Context, f postgres.FollowUp, d *delivery, endings []ending) (followup.Result, error) {
	var again time.Duration
	var failures []error
	for _, e := range endings {
		failures = append(failures, e.failures...)
		again = cmp.Or(again, e.again) // of the compute track: no other waits
	}
	failed := errors.Join(failures...)
	switch {
	case again > 0 && ctx.Err() == nil:
		if failed != nil {
			a.opts.Log.WarnContext(ctx, "cleanup waits, a part of it failed", "again_in", again, "error", failed)
		}
		return followup.LookAgain(again), nil
	case failed != nil:
		return followup.Result{}, failed
	}
	outcome, settled, err := a.Store.SettleCleanup(ctx, f)
	switch {
	case err != nil:
		return followup.Result{}, err
	case settled:
		a.opts.Log.InfoContext(ctx, "cleanup settled", "outcome", outcome, "reason", "every step is finished")
		return followup.Recorded(outcome), nil
	case d.handed != "":
		return followup.Done(d.handed), nil
	}
	return followup.Result{}, fmt.Errorf("the cleanup of %s has no step left and does not settle", f.ReservationID)
}

// reload reads the record anew.
func (a *Action) reload(ctx context.Context, d *delivery) error {
	c, found, err := a.Store.LoadCleanup(ctx, d.id)
	if err == nil && !found {
		err = fmt.Errorf("the cleanup of %s is gone", d.id)
	}
	if err == nil {
		d.record, d.read = c, a.opts.Now()
	}
	return err
}

// now returns the database's time.
func (a *Action) now(d *delivery) time.Time { return d.record.Now.Add(a.opts.Now().Sub(d.read)) }
