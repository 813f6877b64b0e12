// Package snapshot keeps what is on a disk once its reservation has ended, and frees the disk: Keeper takes the volume
// off its instance and makes a snapshot, Sync follows that to its end, deletes the volume and releases the disk, Purge
// deletes old snapshots.
//
// It deletes people's data, so each step is shown to be right at the moment it is taken: under the lock of the disk's
// row, by what EC2 says then, and from a snapshot that this very cleanup made after the volume had lost its writer. What
// cannot be shown is left as it is, and said.
package snapshot

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/home"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Store has the rows of disks, cleanups and snapshots; *postgres.DB is one.
type Store interface {
	LoadCleanup(ctx context.Context, reservationID string) (postgres.CleanupRecord, bool, error)
	NoteStep(ctx context.Context, reservationID string, step postgres.Step, detail string) error
	FinishReleased(ctx context.Context, c postgres.CleanupRecord, detail string) error
	home.Store

	WithDisk(ctx context.Context, reservationID string, act func(context.Context) error) (postgres.DiskVerdict, error)
	RecordDetach(ctx context.Context, reservationID string, forced bool) (postgres.DiskVerdict, error)
	ForgetWriterGone(ctx context.Context, reservationID string) error
	BelieveRow(ctx context.Context, reservationID, left string) error
	SettleLost(ctx context.Context, reservationID, detail string, confirm func(ctx context.Context, another string) error) (lost bool, verdict postgres.DiskVerdict, err error)

	LoadSnapshot(ctx context.Context, intent uuid.UUID) (postgres.SnapshotRecord, bool, error)
	SnapshotByID(ctx context.Context, snapshotID string) (postgres.SnapshotRecord, bool, error)
	SnapshotAttempts(ctx context.Context, reservationID string) (postgres.Attempts, error)
	IntendSnapshot(ctx context.Context, reservationID string, intent uuid.UUID) (s postgres.SnapshotRecord, made bool, verdict postgres.DiskVerdict, err error)
	MakeSnapshot(ctx context.Context, s postgres.SnapshotRecord, create func(context.Context) (disk.Snapshot, error)) (bool, postgres.DiskVerdict, error)
	FoundSnapshot(ctx context.Context, s postgres.SnapshotRecord, found disk.Snapshot) error
	LookedInVain(ctx context.Context, intent uuid.UUID) error
	AbandonSnapshot(ctx context.Context, intent uuid.UUID, why string) error
	AdoptSnapshots(ctx context.Context, found []disk.Snapshot) (int, error)

	RequestSync(ctx context.Context, s postgres.SnapshotRecord) error
	CompleteSnapshot(ctx context.Context, s postgres.SnapshotRecord, seen disk.Snapshot) (bool, error)
	FailSnapshot(ctx context.Context, s postgres.SnapshotRecord, why string) (bool, error)
	VanishedSnapshot(ctx context.Context, s postgres.SnapshotRecord) (bool, error)
	DeleteVolume(ctx context.Context, s postgres.SnapshotRecord, remove func(context.Context) error) (postgres.DiskVerdict, error)
	ReleaseDisk(ctx context.Context, s postgres.SnapshotRecord, fate postgres.VolumeFate, last func(context.Context) error) (postgres.DiskVerdict, error)
	WithVolumeSetAside(ctx context.Context, s postgres.SnapshotRecord, act func(context.Context) error) (postgres.DiskVerdict, error)
	RecordVolumeDeleted(ctx context.Context, intent uuid.UUID) error
	RecordVolumeKept(ctx context.Context, intent uuid.UUID, why string) error
	PurgeSnapshot(ctx context.Context, s postgres.SnapshotRecord, remove func(context.Context, postgres.SnapshotRecord, *disk.Row, []string) (bool, error)) (bool, error)
}

// EC2 has the volumes, snapshots and instances; *aws.EC2 is one. Its errors are classified by package fault.
type EC2 interface {
	DescribeInstance(ctx context.Context, id string) (disk.Instance, error)
	DescribeVolume(ctx context.Context, id string) (disk.Volume, error)
	DetachVolume(ctx context.Context, volumeID string, a disk.Attachment, force bool) error
	DeleteVolume(ctx context.Context, id string) error
	DescribeSnapshot(ctx context.Context, id string) (disk.Snapshot, error)
	FindSnapshots(ctx context.Context, tags map[string]string) ([]disk.Snapshot, error)
	CreateSnapshot(ctx context.Context, n disk.NewSnapshot) (disk.Snapshot, error)
	DeleteSnapshot(ctx context.Context, id string) error
	TagSnapshots(ctx context.Context, ids []string, tags map[string]string) error
}

// Cluster has Kubernetes' objects for volumes; *kube.Cluster is one.
type Cluster interface {
	home.Cluster
	GetVolume(ctx context.Context, name string) (pod.PersistentVolume, error)
	RetainVolume(ctx context.Context, name, uid string) (pod.PersistentVolume, error)
	DeleteClaim(ctx context.Context, namespace, name, uid string) error
	DeleteVolume(ctx context.Context, name, uid string) error
}

// World is what the package acts upon.
type World struct {
	Store    Store
	EC2      EC2
	Cluster  Cluster
	Identity home.Identity
}

// Options tune Keeper, Sync and Purge. The zero value is right for production.
type Options struct {
	KeepVolumes bool          // KEEP_VOLUMES: the volume stays the disk's
	DriverGrace time.Duration // DRIVER_GRACE, until a volume that its driver leaves attached is detached; 0: 1 minute
	Patience    time.Duration // how long one delivery waits for the world; 0: 1 minute
	Interval    time.Duration // between two looks; 0: 1 s
	Lag         time.Duration // of EC2's API behind what has happened to volumes; 0: disk.Lag
	Now         func() time.Time
	Sleep       func(ctx context.Context, d time.Duration) error // nil: a timer
	NewID       func() uuid.UUID                                 // of intents, which nobody may guess; nil: random
	Log         *slog.Logger                                     // nil: slog.Default
	Trace       *telemetry.Telemetry                             // nil: disabled
}

func (o Options) withDefaults() Options {
	o.DriverGrace = cmp.Or(o.DriverGrace, disk.DriverGrace)
	o.Patience = cmp.Or(o.Patience, time.Minute)
	o.Interval = cmp.Or(o.Interval, time.Second)
	o.Lag = cmp.Or(o.Lag, disk.Lag)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Sleep == nil {
		o.Sleep = followup.Sleep
	}
	if o.NewID == nil {
		o.NewID = uuid.New
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Trace == nil {
		o.Trace = telemetry.Disabled()
	}
	return o
}

// worker is what the three share.
type worker struct {
	World
	home home.Guard
	opts Options
}

func newWorker(w World, o Options) worker {
	return worker{w, home.Guard{Store: w.Store, Cluster: w.Cluster, Identity: w.Identity}, o.withDefaults()}
}

// volume describes a volume; gone is true where EC2 says that there is none, and is the one to ask.
func (w worker) volume(ctx context.Context, id string) (v disk.Volume, gone bool, err error) {
	v, err = w.EC2.DescribeVolume(ctx, id)
	gone, err = w.home.Gone(ctx, err)
	return v, gone, err
}

// snapshot is volume for a snapshot.
func (w worker) snapshot(ctx context.Context, id string) (s disk.Snapshot, gone bool, err error) {
	s, err = w.EC2.DescribeSnapshot(ctx, id)
	gone, err = w.home.Gone(ctx, err)
	return s, gone, err
}

// expectGone is an error while EC2 knows the volume.
func (w worker) expectGone(ctx context.Context, id string) error {
	v, gone, err := w.volume(ctx, id)
	if err == nil && !gone {
		err = fault.Errorf(fault.Conflict, "volume %s is %q, not gone", id, v.State)
	}
	return err
}
