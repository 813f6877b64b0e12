package snapshot_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
)

// script is what database and EC2 say to one delivery, for answers that the real ones give only at a bad moment. Where it
// says nothing else, the disk is the cleanup's and each call does what it was asked. Only sleeping moves its clock, and there
// is time for one look alone.
type script struct {
	verdicts map[string]postgres.DiskVerdict // by call; "call 2" is the second of its name
	errs     map[string]error                // likewise
	calls    []string
	said     bytes.Buffer // to the log

	now      time.Time
	patience time.Duration
	cleanup  postgres.CleanupRecord
	record   postgres.SnapshotRecord
	standing *postgres.SnapshotRecord
	unknown  bool   // the record
	another  string // the volume that the disk's row names
	taken    bool   // an intent was committed before
	volumes  map[string]disk.Volume
	free     bool // the volume is, once somebody has waited
	seen     *disk.Snapshot
	listed   []disk.Snapshot
	purges   []string // done or due, by our books
}

const scripted = "vol-0123456789abcdef0"

// newScript has a cleanup whose volume is free, and a snapshot of it that proves that the volume may go.
func newScript() *script {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := &script{now: now, patience: time.Nanosecond, verdicts: map[string]postgres.DiskVerdict{}, errs: map[string]error{}}
	s.cleanup = postgres.CleanupRecord{ReservationID: uuid.NewString(), UserID: user, PodGoneAt: now.Add(-time.Hour), Now: now,
		Identity: postgres.Identity{VolumeID: scripted, DiskName: diskName, InstanceID: "i-0123456789abcdef0"}}
	s.record = postgres.SnapshotRecord{IntentID: uuid.New(), SnapshotID: "snap-1", ReservationID: s.cleanup.ReservationID, User: user,
		DiskName: diskName, VolumeID: scripted, Attempt: 1, State: postgres.SnapshotCompleted, IntendedAt: now.Add(-time.Minute), SettledAt: now, Now: now}
	s.standing = &s.record
	s.volumes = map[string]disk.Volume{scripted: {ID: scripted, State: disk.VolumeAvailable}}
	s.seen = &disk.Snapshot{ID: "snap-1", VolumeID: scripted, OwnerID: "1", State: disk.SnapshotCompleted, StartedAt: now.Add(-time.Minute),
		Tags: disk.NewSnapshot{Disk: disk.Key{User: user, Name: diskName}, ReservationID: s.cleanup.ReservationID, Attempt: 1,
			IntentID: s.record.IntentID.String()}.Tags()}
	return s
}

// attached has the volume on its instance, where EC2 is at it or not.
func (s *script) attached(how disk.AttachmentState) {
	s.volumes[scripted] = disk.Volume{ID: scripted, State: disk.VolumeInUse,
		Attachments: []disk.Attachment{{InstanceID: s.cleanup.InstanceID, State: how}}}
}

func (s *script) parts() (snapshot.World, snapshot.Options) {
	return snapshot.World{Store: books{script: s}, EC2: amazon{script: s}, Identity: s}, snapshot.Options{
		Patience: s.patience, Now: func() time.Time { return s.now }, Sleep: s.sleep, Log: slog.New(slog.NewTextHandler(&s.said, nil))}
}

func (s *script) sleep(_ context.Context, d time.Duration) error {
	s.now = s.now.Add(d)
	if s.free {
		s.volumes[scripted] = disk.Volume{ID: scripted, State: disk.VolumeAvailable}
	}
	return s.call("sleep")
}

func (s *script) count(name string) (n int) {
	for _, c := range s.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (s *script) call(name string) error {
	s.calls = append(s.calls, name)
	return cmp.Or(s.errs[fmt.Sprintf("%s %d", name, s.count(name))], s.errs[name])
}

// under is a call that acts where the disk is the cleanup's.
func (s *script) under(ctx context.Context, name string, act func(context.Context) error) (postgres.DiskVerdict, error) {
	if err := s.call(name); err != nil {
		return "", err
	}
	verdict := cmp.Or(s.verdicts[fmt.Sprintf("%s %d", name, s.count(name))], s.verdicts[name], postgres.DiskOurs)
	if verdict == postgres.DiskOurs && act != nil {
		if err := act(ctx); err != nil {
			return "", err
		}
	}
	return verdict, nil
}

func (s *script) Account(context.Context) (disk.Account, error) {
	return disk.Account{ID: "1", Region: "us-east-1"}, s.call("Account")
}

// books are the script's database.
type books struct {
	snapshot.Store
	*script
}

func (b books) LoadCleanup(context.Context, string) (postgres.CleanupRecord, bool, error) {
	return b.cleanup, true, b.call("LoadCleanup")
}

func (b books) NoteStep(context.Context, string, postgres.Step, string) error {
	return b.call("NoteStep")
}

func (b books) FinishReleased(context.Context, postgres.CleanupRecord, string) error {
	return b.call("FinishReleased")
}

func (b books) KnownAccount(context.Context) (disk.Account, error) {
	return disk.Account{ID: "1", Region: "us-east-1"}, b.call("KnownAccount")
}

func (b books) WithDisk(ctx context.Context, _ string, act func(context.Context) error) (postgres.DiskVerdict, error) {
	return b.under(ctx, "WithDisk", act)
}

func (b books) RecordDetach(ctx context.Context, _ string, _ bool) (postgres.DiskVerdict, error) {
	return b.under(ctx, "RecordDetach", nil)
}

func (b books) ForgetWriterGone(context.Context, string) error { return b.call("ForgetWriterGone") }

func (b books) SettleLost(ctx context.Context, _, _ string, confirm func(context.Context, string) error) (bool, postgres.DiskVerdict, error) {
	verdict, err := b.under(ctx, "SettleLost", func(ctx context.Context) error { return confirm(ctx, b.another) })
	return err == nil, verdict, err
}

func (b books) BelieveRow(_ context.Context, _, left string) error {
	return b.call("BelieveRow " + left)
}

func (b books) LoadSnapshot(context.Context, uuid.UUID) (postgres.SnapshotRecord, bool, error) {
	return b.record, !b.unknown, b.call("LoadSnapshot")
}

func (b books) SnapshotByID(context.Context, string) (postgres.SnapshotRecord, bool, error) {
	return b.record, !b.unknown, b.call("SnapshotByID")
}

func (b books) SnapshotAttempts(context.Context, string) (postgres.Attempts, error) {
	return postgres.Attempts{Standing: b.standing, Now: b.now}, b.call("SnapshotAttempts")
}

func (b books) IntendSnapshot(ctx context.Context, _ string, _ uuid.UUID) (postgres.SnapshotRecord, bool, postgres.DiskVerdict, error) {
	verdict, err := b.under(ctx, "IntendSnapshot", nil)
	return b.record, !b.taken, verdict, err
}

func (b books) MakeSnapshot(ctx context.Context, _ postgres.SnapshotRecord, create func(context.Context) (disk.Snapshot, error)) (bool, postgres.DiskVerdict, error) {
	verdict, err := b.under(ctx, "MakeSnapshot", func(ctx context.Context) error {
		_, err := create(ctx)
		return err
	})
	return err == nil && verdict == postgres.DiskOurs, verdict, err
}

func (b books) AbandonSnapshot(context.Context, uuid.UUID, string) error {
	return b.call("AbandonSnapshot")
}

func (b books) LookedInVain(context.Context, uuid.UUID) error { return b.call("LookedInVain") }

func (b books) FoundSnapshot(_ context.Context, _ postgres.SnapshotRecord, found disk.Snapshot) error {
	return b.call("FoundSnapshot " + found.ID)
}

func (b books) AdoptSnapshots(context.Context, []disk.Snapshot) (int, error) {
	return 1, b.call("AdoptSnapshots")
}

func (b books) DeleteVolume(ctx context.Context, _ postgres.SnapshotRecord, remove func(context.Context) error) (postgres.DiskVerdict, error) {
	return b.under(ctx, "DeleteVolume", remove)
}

func (b books) ReleaseDisk(ctx context.Context, _ postgres.SnapshotRecord, _ postgres.VolumeFate, last func(context.Context) error) (postgres.DiskVerdict, error) {
	return b.under(ctx, "ReleaseDisk", last)
}

func (b books) WithVolumeSetAside(ctx context.Context, _ postgres.SnapshotRecord, act func(context.Context) error) (postgres.DiskVerdict, error) {
	return b.under(ctx, "WithVolumeSetAside", act)
}

func (b books) CompleteSnapshot(context.Context, postgres.SnapshotRecord, disk.Snapshot) (bool, error) {
	b.record.State = postgres.SnapshotCompleted
	return true, b.call("CompleteSnapshot")
}

func (b books) FailSnapshot(context.Context, postgres.SnapshotRecord, string) (bool, error) {
	b.record.State = postgres.SnapshotError
	return true, b.call("FailSnapshot")
}

func (b books) VanishedSnapshot(context.Context, postgres.SnapshotRecord) (bool, error) {
	return true, b.call("VanishedSnapshot")
}

func (b books) RecordVolumeKept(context.Context, uuid.UUID, string) error {
	return b.call("RecordVolumeKept")
}

func (b books) PurgeSnapshot(ctx context.Context, _ postgres.SnapshotRecord, remove func(context.Context, postgres.SnapshotRecord, *disk.Row, []string) (bool, error)) (bool, error) {
	if err := b.call("PurgeSnapshot"); err != nil {
		return false, err
	}
	return remove(ctx, b.record, &disk.Row{}, b.purges)
}

func (b books) RecordVolumeDeleted(context.Context, uuid.UUID) error {
	return b.call("RecordVolumeDeleted")
}

// amazon is the script's EC2.
type amazon struct {
	snapshot.EC2
	*script
}

func (a amazon) DescribeInstance(_ context.Context, id string) (disk.Instance, error) {
	return disk.Instance{ID: id, State: disk.InstanceRunning}, a.call("DescribeInstance")
}

func (a amazon) DescribeVolume(_ context.Context, id string) (disk.Volume, error) {
	if err := a.call("DescribeVolume"); err != nil {
		return disk.Volume{}, err
	}
	v, known := a.volumes[id]
	if !known {
		return v, fault.Errorf(fault.Gone, "no volume %q", id)
	}
	return v, nil
}

func (a amazon) DetachVolume(context.Context, string, disk.Attachment, bool) error {
	return a.call("ec2:DetachVolume")
}

func (a amazon) DeleteVolume(_ context.Context, id string) error {
	if err := a.call("ec2:DeleteVolume"); err != nil {
		return err
	}
	delete(a.volumes, id)
	return nil
}

func (a amazon) DescribeSnapshot(context.Context, string) (disk.Snapshot, error) {
	if err := a.call("DescribeSnapshot"); err != nil {
		return disk.Snapshot{}, err
	}
	return *a.seen, nil
}

func (a amazon) FindSnapshots(context.Context, map[string]string) ([]disk.Snapshot, error) {
	return slices.Clone(a.listed), a.call("FindSnapshots")
}

func (a amazon) DeleteSnapshot(context.Context, string) error { return a.call("ec2:DeleteSnapshot") }

func (a amazon) TagSnapshots(context.Context, []string, map[string]string) error {
	return a.call("ec2:TagSnapshots")
}

func (a amazon) CreateSnapshot(context.Context, disk.NewSnapshot) (disk.Snapshot, error) {
	return *a.seen, a.call("ec2:CreateSnapshot")
}
