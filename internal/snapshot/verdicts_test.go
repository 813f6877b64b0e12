package snapshot_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

var errSaid = fault.Errorf(fault.Transient, "so it says")

func (s *script) keep(t *testing.T) (followup.Result, error) {
	t.Helper()
	w, o := s.parts()
	return snapshot.NewKeeper(w, o).Keep(t.Context(), s.cleanup)
}

func (s *script) sync(t *testing.T) (followup.Result, error) {
	t.Helper()
	w, o := s.parts()
	return snapshot.NewSync(w, o).Handle(t.Context(), postgres.FollowUp{Kind: postgres.SnapshotSync, Key: s.record.IntentID.String()})
}

func (s *script) purging(t *testing.T) (followup.Result, error) {
	t.Helper()
	w, o := s.parts()
	return snapshot.NewPurge(w, o).Handle(t.Context(), postgres.FollowUp{Kind: postgres.SnapshotPurge, Key: s.seen.ID})
}

// Wherever a step is about to be taken the disk's rows may have changed since the last one: nothing of it happens.
func TestWhatTheRowsSayAtEachStepDecidesWhatBecomesOfTheCleanup(t *testing.T) {
	t.Parallel()
	steps := map[string]struct {
		in    func(*script)
		never string
	}{
		"WithDisk":       {func(*script) {}, "SnapshotAttempts"},
		"IntendSnapshot": {func(*script) {}, "MakeSnapshot"},
		"MakeSnapshot":   {func(*script) {}, "ec2:CreateSnapshot"},
		"RecordDetach":   {func(s *script) { s.attached(disk.Attached) }, "ec2:DetachVolume"},
		"WithDisk 2":     {func(s *script) { s.attached(disk.Attached) }, "ec2:DetachVolume"},
		"SettleLost":     {func(s *script) { delete(s.volumes, scripted) }, "DescribeVolume 2"},
	}
	for step, c := range steps {
		for verdict, want := range map[postgres.DiskVerdict]followup.Result{
			postgres.DiskSuperseded: followup.Recorded(postgres.OutcomeSuperseded),
			postgres.DiskReleased:   followup.Recorded(postgres.OutcomeReleased),
			postgres.DiskSettled:    followup.Recorded(string(postgres.DiskSettled)),
			postgres.DiskRevived:    followup.LookAgain(5 * time.Second),
			postgres.DiskBusy:       followup.LookAgain(5 * time.Second),
		} {
			t.Run(step+" "+string(verdict), func(t *testing.T) {
				t.Parallel()
				s := newScript()
				s.standing = nil
				c.in(s)
				s.verdicts[step] = verdict
				got, err := s.keep(t)
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Zero(t, s.count(c.never), "%v", s.calls)
				require.Equal(t, verdict == postgres.DiskReleased, s.count("FinishReleased") == 1)
				require.Equal(t, step == "MakeSnapshot", s.count("AbandonSnapshot") == 1, "an intent that nobody follows")
			})
		}
	}
}

func TestWhatTheRowsSayAtEachStepDecidesWhatBecomesOfTheVolume(t *testing.T) {
	t.Parallel()
	for step, never := range map[string]string{"WithDisk": "DescribeVolume", "DeleteVolume": "ReleaseDisk", "ReleaseDisk": "none"} {
		for verdict, want := range map[postgres.DiskVerdict]followup.Result{
			postgres.DiskSuperseded: followup.Done(postgres.OutcomeSuperseded),
			postgres.DiskReleased:   followup.Done(postgres.OutcomeReleased),
			postgres.DiskSettled:    followup.Done(postgres.OutcomeReleased),
			postgres.DiskRevived:    followup.Done(string(postgres.SnapshotCompleted)),
			postgres.DiskBusy:       followup.LookAgain(10 * time.Second),
		} {
			t.Run(step+" "+string(verdict), func(t *testing.T) {
				t.Parallel()
				s := newScript()
				s.verdicts[step] = verdict
				got, err := s.sync(t)
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Zero(t, s.count(never), "%v", s.calls)
				require.Equal(t, verdict == postgres.DiskReleased, s.count("FinishReleased") == 1, "%v", s.calls)
				require.Equal(t, step == "ReleaseDisk", s.count("ec2:DeleteVolume") == 1)
			})
		}
	}
}

// No error is taken for an answer: the delivery fails by it, and what it would have led to does not happen.
func TestAnErrorAtAnyStepEndsTheDelivery(t *testing.T) {
	t.Parallel()
	type delivery = func(*script, *testing.T) (followup.Result, error)
	aside := func(s *script) { s.record.VolumeAsideAt, s.standing = s.now.Add(-time.Hour), nil }
	for name, c := range map[string]struct {
		run   delivery
		call  string
		never string
		in    func(*script)
	}{
		"the cleanup's row":                    {(*script).sync, "LoadCleanup 2", "WithDisk", nil},
		"the sync's disk":                      {(*script).sync, "WithDisk", "SnapshotAttempts", nil},
		"which attempt stands":                 {(*script).sync, "SnapshotAttempts", "DescribeVolume", nil},
		"whether there is a volume":            {(*script).sync, "DescribeVolume", "DescribeSnapshot", nil},
		"whether the volume is held":           {(*script).sync, "DescribeSnapshot", "DeleteVolume", nil},
		"which account deletes":                {(*script).sync, "Account", "DeleteVolume", nil},
		"how the volume is as it goes":         {(*script).sync, "DescribeVolume 2", "ec2:DeleteVolume", nil},
		"how the snapshot is as it goes":       {(*script).sync, "DescribeSnapshot 2", "ec2:DeleteVolume", nil},
		"the deletion of the volume":           {(*script).sync, "ec2:DeleteVolume", "ReleaseDisk", nil},
		"whether the volume has gone":          {(*script).sync, "DescribeVolume 3", "ReleaseDisk", nil},
		"the disk's release":                   {(*script).sync, "ReleaseDisk", "FinishReleased", nil},
		"the end of the disk's part":           {(*script).sync, "FinishReleased", "LoadSnapshot 2", nil},
		"what was made of the snapshot's row":  {(*script).sync, "LoadSnapshot 2", "WithVolumeSetAside", nil},
		"the snapshot of a volume aside":       {(*script).sync, "DescribeSnapshot", "WithVolumeSetAside", aside},
		"whose account a volume aside is in":   {(*script).sync, "Account", "WithVolumeSetAside", aside},
		"the deletion of a volume aside":       {(*script).sync, "ec2:DeleteVolume", "RecordVolumeDeleted", aside},
		"whether a volume aside has gone":      {(*script).sync, "DescribeVolume 2", "RecordVolumeDeleted", aside},
		"the snapshot of the sync":             {(*script).sync, "LoadSnapshot", "LoadCleanup", nil},
		"how a pending snapshot is":            {(*script).sync, "DescribeSnapshot", "CompleteSnapshot", pending},
		"the count of a snapshot":              {(*script).sync, "CompleteSnapshot", "WithDisk", pending},
		"the count of a failed one":            {(*script).sync, "FailSnapshot", "LoadSnapshot 2", func(s *script) { pending(s); s.seen.State = disk.SnapshotError }},
		"how it was counted":                   {(*script).sync, "LoadSnapshot 2", "WithDisk", pending},
		"the cleanup's disk":                   {(*script).keep, "WithDisk", "SnapshotAttempts", nil},
		"what was tried":                       {(*script).keep, "SnapshotAttempts", "DescribeVolume", nil},
		"how the cleanup's volume is":          {(*script).keep, "DescribeVolume", "IntendSnapshot", none},
		"the intent":                           {(*script).keep, "IntendSnapshot", "MakeSnapshot", none},
		"that a writer is back":                {(*script).keep, "ForgetWriterGone", "RecordDetach", func(s *script) { none(s); s.attached(disk.Attached); s.cleanup.WriterGoneAt = s.now }},
		"how the instance is":                  {(*script).keep, "DescribeInstance", "RecordDetach", func(s *script) { none(s); s.attached(disk.Attached) }},
		"the detach's row":                     {(*script).keep, "RecordDetach", "ec2:DetachVolume", func(s *script) { none(s); s.attached(disk.Attached) }},
		"how the volume is as it is detached":  {(*script).keep, "DescribeVolume 2", "ec2:DetachVolume", func(s *script) { none(s); s.attached(disk.Attached) }},
		"the detach":                           {(*script).keep, "ec2:DetachVolume", "IntendSnapshot", func(s *script) { none(s); s.attached(disk.Attached) }},
		"whether a lost volume is gone":        {(*script).keep, "DescribeVolume 2", "DescribeVolume 3", func(s *script) { none(s); delete(s.volumes, scripted) }},
		"whether the other volume is gone":     {(*script).keep, "DescribeVolume 3", "none", func(s *script) { none(s); delete(s.volumes, scripted); s.another = "vol-2" }},
		"that a volume is lost":                {(*script).keep, "SettleLost", "none", func(s *script) { none(s); delete(s.volumes, scripted) }},
		"the abandoning of what was not asked": {(*script).keep, "AbandonSnapshot", "none", func(s *script) { none(s); s.verdicts["MakeSnapshot"] = postgres.DiskBusy }},
		"what an intent made":                  {(*script).keep, "FindSnapshots", "LookedInVain", intended},
		"whose account looks":                  {(*script).keep, "Account", "FindSnapshots", intended},
		"that nothing was found":               {(*script).keep, "LookedInVain", "NoteStep", intended},
		"the snapshot's row":                   {(*script).purging, "SnapshotByID", "DescribeSnapshot", nil},
		"the snapshot to be purged":            {(*script).purging, "DescribeSnapshot", "PurgeSnapshot", nil},
		"whose snapshot is to be purged":       {(*script).purging, "Account", "PurgeSnapshot", nil},
		"what else is to be adopted":           {(*script).purging, "FindSnapshots", "AdoptSnapshots", func(s *script) { s.unknown = true }},
		"the adoption":                         {(*script).purging, "AdoptSnapshots", "SnapshotByID 2", func(s *script) { s.unknown = true }},
		"the adopted snapshot's row":           {(*script).purging, "SnapshotByID 2", "PurgeSnapshot", func(s *script) { s.unknown = true }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			if c.in != nil {
				c.in(s)
			}
			s.errs[c.call] = errSaid
			_, err := c.run(s, t)
			require.ErrorIs(t, err, errSaid, "%v", s.calls)
			require.Zero(t, s.count(c.never), "%v", s.calls)
		})
	}
}

// none has nothing stand of what was tried.
func none(s *script) { s.standing = nil }

// pending has EC2 at the snapshot for a minute.
func pending(s *script) { s.record.State = postgres.SnapshotPending }

// intended has an attempt stand that EC2 has not answered.
func intended(s *script) {
	s.record.State, s.record.SnapshotID, s.record.IntendedAt = postgres.SnapshotIntended, "", s.now
}

func TestADetachThatEC2HasNoUseForIsNoFailure(t *testing.T) {
	t.Parallel()
	for _, kind := range []fault.Kind{fault.Gone, fault.Conflict} {
		s := newScript()
		none(s)
		s.attached(disk.Attached)
		s.errs["ec2:DetachVolume"] = fault.Errorf(kind, "it is detached, or on its way")
		got, err := s.keep(t)
		require.NoError(t, err)
		require.Equal(t, followup.LookAgain(10*time.Second), got)
	}
}

func TestAVolumeThatIsGoneIsLookedForOnce(t *testing.T) {
	t.Parallel()
	s := newScript()
	none(s)
	delete(s.volumes, scripted)
	got, err := s.keep(t)
	require.NoError(t, err)
	require.Equal(t, followup.Recorded(postgres.OutcomeLost), got)
	require.Equal(t, 2, s.count("DescribeVolume"), "and once more under the lock")
}

func TestADiskIsNotLostWhileTheVolumeThatItsRowNamesIsThere(t *testing.T) {
	t.Parallel()
	s := newScript()
	none(s)
	s.volumes = map[string]disk.Volume{"vol-2": {ID: "vol-2", State: disk.VolumeAvailable}}
	s.another = "vol-2"
	_, err := s.keep(t)
	require.ErrorContains(t, err, "it stays locked")
	require.Equal(t, 1, s.count("BelieveRow vol-2"))

	delete(s.volumes, "vol-2")
	got, err := s.keep(t)
	require.NoError(t, err)
	require.Equal(t, followup.Recorded(postgres.OutcomeLost), got)
	require.Equal(t, 1, s.count("BelieveRow vol-2"))
}

func TestAVolumeThatEC2IsDeletingIsNotDeletedAgain(t *testing.T) {
	t.Parallel()
	s := newScript()
	s.volumes[scripted] = disk.Volume{ID: scripted, State: disk.VolumeDeleting}
	got, err := s.sync(t)
	require.NoError(t, err)
	require.Equal(t, followup.LookAgain(10*time.Second), got)
	require.Zero(t, s.count("ec2:DeleteVolume")+s.count("ReleaseDisk"))
}

func TestAVolumeThatGoesAsItIsToBeDeletedIsGone(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"DescribeVolume 2", "ec2:DeleteVolume"} {
		s := newScript()
		s.record.IntendedAt = s.now.Add(-disk.Lag)
		gone := fault.Errorf(fault.Gone, "no such volume")
		s.errs[call], s.errs["DescribeVolume 3"], s.errs["DescribeVolume 4"] = gone, gone, gone
		got, err := s.sync(t)
		require.NoError(t, err, call)
		require.Equal(t, followup.Done(postgres.OutcomeReleased), got)
		require.Equal(t, 1, s.count("ReleaseDisk"))
	}
}

func TestAVolumeSetAsideIsNotSaidToBeDeletedWhileEC2IsAtIt(t *testing.T) {
	t.Parallel()
	s := newScript()
	s.record.VolumeAsideAt, s.standing = s.now.Add(-time.Hour), nil
	s.volumes[scripted] = disk.Volume{ID: scripted, State: disk.VolumeDeleting}
	got, err := s.sync(t)
	require.NoError(t, err)
	require.Equal(t, followup.LookAgain(10*time.Second), got)
	require.Zero(t, s.count("RecordVolumeDeleted"))
}

func TestOfAVolumeThatIsGoneNothingIsAskedAnyMore(t *testing.T) {
	t.Parallel()
	s := newScript()
	s.record.IntendedAt = s.now.Add(-disk.Lag)
	delete(s.volumes, scripted)
	s.errs["DescribeSnapshot"] = errSaid
	got, err := s.sync(t)
	require.NoError(t, err)
	require.Equal(t, followup.Done(postgres.OutcomeReleased), got)
	require.Contains(t, s.said.String(), "disk released")
}

// unlisted has EC2 not know the snapshot so long after it was begun.
func TestASyncIsTracedThoughWhoseItIsCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		spans := tracetest.NewInMemoryExporter()
		tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
		require.NoError(t, err)
		s := newScript()
		s.cleanup.GPUType = "h100"
		if !known {
			s.errs["LoadCleanup 1"] = errSaid
		}
		w, o := s.parts()
		o.Trace = tel
		_, err = snapshot.NewSync(w, o).Handle(t.Context(), postgres.FollowUp{Kind: postgres.SnapshotSync, Key: s.record.IntentID.String()})
		require.NoError(t, err)
		require.NoError(t, tel.Flush(t.Context()))
		require.Len(t, spans.GetSpans(), 1)
		require.Equal(t, known, slices.Contains(spans.GetSpans()[0].Attributes, telemetry.KeyGPUType.String("h100")))
	}
}

func TestOfWhatAnAttemptMayHaveMadeTheEarliestThatIsItsOwnIsTaken(t *testing.T) {
	t.Parallel()
	another := func(change func(*disk.Snapshot)) func(disk.Snapshot) []disk.Snapshot {
		return func(own disk.Snapshot) []disk.Snapshot {
			other := own
			other.ID, other.StartedAt = "snap-other", own.StartedAt.Add(-time.Second)
			change(&other)
			return []disk.Snapshot{other, own, other}
		}
	}
	for name, listed := range map[string]func(disk.Snapshot) []disk.Snapshot{
		"alone":            func(own disk.Snapshot) []disk.Snapshot { return []disk.Snapshot{own} },
		"a later one":      another(func(s *disk.Snapshot) { s.StartedAt = s.StartedAt.Add(time.Minute) }),
		"another's":        another(func(s *disk.Snapshot) { s.OwnerID = "2" }),
		"a copy":           another(func(s *disk.Snapshot) { s.Description = "[Copied snap-1 from us-west-2]" }),
		"another volume's": another(func(s *disk.Snapshot) { s.VolumeID = "vol-2" }),
		"another attempt's": another(func(s *disk.Snapshot) {
			s.Tags = disk.NewSnapshot{Disk: s.Key(), ReservationID: "another", Attempt: 1}.Tags()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			intended(s)
			s.listed = listed(*s.seen)
			_, err := s.keep(t)
			require.NoError(t, err)
			require.Equal(t, 1, s.count("FoundSnapshot snap-1"), "%v", s.calls)
		})
	}
}

func TestAnAdoptedSnapshotThatIsNotYetInTheBooksIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newScript()
	s.unknown = true
	got, err := s.purging(t)
	require.NoError(t, err)
	require.Equal(t, followup.LookAgain(10*time.Second), got)
}

// The pause leads to the moment at which the driver's time is over, if that is sooner.
