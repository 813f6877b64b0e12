package snapshot_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestASnapshotThatEC2DoesNotKnowIsGoneOnlyOnceItIsTenMinutesOld(t *testing.T) {
	t.Parallel()
	const young = 10*time.Minute - 1
	aside := func(s *script) { s.record.VolumeAsideAt, s.verdicts["WithDisk"] = s.now, postgres.DiskSettled }
	for name, c := range map[string]struct {
		run  func(*script, *testing.T) (followup.Result, error)
		in   func(*script)
		age  time.Duration
		want followup.Result
		says string // what is recorded of it
	}{
		"before its volume goes, young":   {(*script).sync, nil, young, followup.LookAgain(young / 5), ""},
		"before its volume goes":          {(*script).sync, nil, 10 * time.Minute, followup.Done("vanished"), "VanishedSnapshot"},
		"as its volume goes, young":       {(*script).sync, second, young, followup.LookAgain(young / 5), ""},
		"as its volume goes":              {(*script).sync, second, 10 * time.Minute, followup.Done("vanished"), "VanishedSnapshot"},
		"beside a volume aside, young":    {(*script).sync, aside, young, followup.LookAgain(10 * time.Second), ""},
		"beside a volume aside":           {(*script).sync, aside, 10 * time.Minute, followup.Done("volume_kept"), "RecordVolumeKept"},
		"to be purged, young":             {(*script).purging, nil, young, followup.LookAgain(10 * time.Second), ""},
		"to be purged":                    {(*script).purging, nil, 10 * time.Minute, followup.Done("already_gone"), "VanishedSnapshot"},
		"somebody else's, of long ago":    {(*script).purging, adopted, young, followup.Done("already_gone"), "VanishedSnapshot"},
		"purged by our books, though new": {(*script).purging, purged, young, followup.Done("already_gone"), "VanishedSnapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			s.record.IntendedAt = s.now.Add(-c.age)
			s.errs["DescribeSnapshot"] = fault.Errorf(fault.Gone, "no such snapshot")
			if c.in != nil {
				c.in(s)
			}
			got, err := c.run(s, t)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			for _, recorded := range []string{"VanishedSnapshot", "RecordVolumeKept"} {
				require.Equal(t, recorded == c.says, s.count(recorded) == 1, "%v", s.calls)
			}
			require.Zero(t, s.count("ec2:DeleteVolume"))
		})
	}
}

func TestAVolumeThatEC2DoesNotKnowIsLostOnlyOnceItsPodIsGoneForSixMinutes(t *testing.T) {
	t.Parallel()
	for gone, lost := range map[time.Duration]bool{0: false, disk.Lag - 1: false, disk.Lag: true} {
		s := newScript()
		none(s)
		delete(s.volumes, scripted)
		s.cleanup.PodUID, s.cleanup.PodGoneAt = "uid", s.now.Add(-gone)
		got, err := s.keep(t)
		require.NoError(t, err)
		require.Equal(t, lost, s.count("SettleLost") == 1, "%s: %v", gone, s.calls)
		require.Equal(t, lost, got.LookAgain == 0)
	}
}

func TestAVolumeThatEC2DoesNotKnowIsDeletedOnlyOnceAllOfItMustHaveHeardOfIt(t *testing.T) {
	t.Parallel()
	released := followup.Done(postgres.OutcomeReleased)
	for name, c := range map[string]struct {
		denied string        // from which call on
		begun  time.Duration // that the snapshot was
		asked  bool          // to delete it, before
		want   followup.Result
	}{
		"young":                     {"DescribeVolume 1", disk.Lag - 1, false, followup.LookAgain(10 * time.Second)},
		"young, under the lock":     {"DescribeVolume 2", disk.Lag - 1, false, followup.LookAgain(5 * time.Second)},
		"young, and asked to go":    {"DescribeVolume 1", disk.Lag - 1, true, released},
		"six minutes old":           {"DescribeVolume 1", disk.Lag, false, released},
		"the same, under the lock":  {"DescribeVolume 2", disk.Lag, false, released},
		"known until it is deleted": {"DescribeVolume 3", 0, false, released},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			s.record.IntendedAt = s.now.Add(-c.begun)
			if c.asked {
				s.record.VolumeDeletedAt = s.now
			}
			for n := int(c.denied[len(c.denied)-1] - '0'); n < 6; n++ {
				s.errs[fmt.Sprintf("DescribeVolume %d", n)] = fault.Errorf(fault.Gone, "no such volume")
			}
			got, err := s.sync(t)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			require.Equal(t, c.want == released, s.count("ReleaseDisk") == 1, "%v", s.calls)
		})
	}
}

// What EC2 describes may have been deleted minutes ago, which only who writes is told.
func TestAVolumeIsGivenUpOnlyForASnapshotOnWhichEC2TakesANote(t *testing.T) {
	t.Parallel()
	const young = 10*time.Minute - 1
	aside := func(s *script) { s.record.CrashConsistent = true }
	over := func(s *script) {
		s.record.CrashConsistent, s.seen.StartedAt = true, s.now.Add(-disk.CrashConsistentHold)
		s.record.VolumeAsideAt, s.verdicts["WithDisk"] = s.now.Add(-time.Hour), postgres.DiskSettled
	}
	gone, refused := fault.Errorf(fault.Gone, "no such snapshot"), fault.Errorf(fault.Permanent, "UnauthorizedOperation")
	for name, c := range map[string]struct {
		of    func(*script)
		age   time.Duration
		said  error
		want  followup.Result
		calls string // which records what became of it
		fails string
	}{
		"to be deleted":                {nil, time.Hour, nil, followup.Done(postgres.OutcomeReleased), "ec2:DeleteVolume", ""},
		"to be deleted, gone":          {nil, time.Hour, gone, followup.Done("vanished"), "VanishedSnapshot", ""},
		"to be deleted, perhaps gone":  {nil, young, gone, followup.LookAgain(young / 5), "", ""},
		"to be deleted, not allowed":   {nil, time.Hour, refused, followup.Result{}, "", "allow ec2:CreateTags with key gpu-dev-volume-given-up-at"},
		"to be deleted, no answer":     {nil, time.Hour, errSaid, followup.Result{}, "", errSaid.Error()},
		"to be set aside":              {aside, time.Hour, nil, followup.Done(postgres.OutcomeReleased), "FinishReleased", ""},
		"to be set aside, gone":        {aside, time.Hour, gone, followup.Done("vanished"), "VanishedSnapshot", ""},
		"to be set aside, not allowed": {aside, time.Hour, refused, followup.Result{}, "", "volume " + scripted + " kept"},
		"set aside for long":           {over, time.Hour, nil, followup.Done(postgres.OutcomeReleased), "ec2:DeleteVolume", ""},
		"set aside for long, gone":     {over, time.Hour, gone, followup.Done("volume_kept"), "RecordVolumeKept", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			s.record.IntendedAt = s.now.Add(-c.age)
			if c.of != nil {
				c.of(s)
			}
			s.errs["ec2:TagSnapshots"] = c.said
			got, err := s.sync(t)
			if c.fails != "" {
				require.ErrorContains(t, err, c.fails)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, c.want, got)
			for _, call := range []string{"ec2:DeleteVolume", "VanishedSnapshot", "RecordVolumeKept", "FinishReleased"} {
				happens := call == c.calls || call == "FinishReleased" && c.calls == "ec2:DeleteVolume" && s.record.VolumeAsideAt.IsZero()
				require.Equal(t, happens, s.count(call) == 1, "%s of %v", call, s.calls)
			}
		})
	}
}

func TestThatAVolumeIsAvailableIsBelievedOnceEC2HasHeardThatItWasAttached(t *testing.T) {
	t.Parallel()
	const young = disk.Lag - 1
	for name, c := range map[string]struct {
		of   func(*postgres.CleanupRecord)
		free bool
	}{
		"launched six minutes ago":          {func(c *postgres.CleanupRecord) { c.LaunchedAt = c.Now.Add(-disk.Lag) }, true},
		"launched since":                    {func(c *postgres.CleanupRecord) { c.LaunchedAt = c.Now.Add(-young) }, false},
		"so, but all containers have ended": {func(c *postgres.CleanupRecord) { c.LaunchedAt, c.ContainersTerminated = c.Now, true }, true},
		"so, but it was seen attached":      {func(c *postgres.CleanupRecord) { c.LaunchedAt, c.DetachRequestedAt = c.Now, c.Now }, true},
		"never launched":                    {func(c *postgres.CleanupRecord) { c.PodUID, c.PodGoneAt = "uid", c.Now.Add(-young) }, false},
		"never launched, its pod long gone": {func(c *postgres.CleanupRecord) { c.PodUID = "uid" }, true},
		"never launched, nor had a pod":     {func(c *postgres.CleanupRecord) { c.PodGoneAt, c.RequestedAt = c.Now, c.Now.Add(-disk.Lag) }, true},
		"so, and has just ended":            {func(c *postgres.CleanupRecord) { c.RequestedAt = c.Now.Add(-young) }, false},
		"launched long ago, in a former life": {func(c *postgres.CleanupRecord) {
			c.LaunchedAt, c.FormerVolume, c.PodUID, c.PodGoneAt = c.Now.Add(-time.Hour), "vol-0", "uid", c.Now
		}, false},
		"so, and the second pod is gone, too": {func(c *postgres.CleanupRecord) { c.LaunchedAt, c.FormerVolume = c.Now.Add(-young), "vol-0" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			none(s)
			c.of(&s.cleanup)
			got, err := s.keep(t)
			require.NoError(t, err)
			require.Equal(t, c.free, s.count("ec2:CreateSnapshot") == 1, "%v", s.calls)
			require.Equal(t, c.free, got.LookAgain == 0)
		})
	}
	s := newScript()
	none(s)
	s.cleanup.LaunchedAt, s.patience = s.now, time.Minute
	s.attached(disk.Attached)
	s.free = true
	_, err := s.keep(t)
	require.NoError(t, err)
	require.Equal(t, 1, s.count("ec2:CreateSnapshot"), "it was seen attached, and then free: %v", s.calls)
}

// second has EC2 know the snapshot at first.
func second(s *script) {
	s.errs["DescribeSnapshot 2"] = s.errs["DescribeSnapshot"]
	delete(s.errs, "DescribeSnapshot")
}

func purged(s *script) { s.record.State = postgres.SnapshotPurged }

// adopted is a snapshot that was taken into the books just now.
func adopted(s *script) {
	s.record.ReservationID, s.record.StartedAt = "", s.now.Add(-30*24*time.Hour)
}

// EC2's list may be minutes old: what it shows and our books have purged, or are about to, is not there for sure.
func TestOnlyWhatIsSureToStayCountsAsNewerThanASnapshotToBePurged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		newer  int
		purges []string
		lacks  bool
		want   followup.Result
	}{
		"three are newer":                     {3, nil, false, followup.Done("purged")},
		"one of them is purged, or to be":     {3, []string{"snap-4"}, false, followup.Done("kept")},
		"three others stay":                   {4, []string{"snap-4"}, false, followup.Done("purged")},
		"it is to be purged itself":           {3, []string{"snap-1"}, false, followup.Done("purged")},
		"the list does not show it, as yet":   {3, nil, true, followup.LookAgain(10 * time.Second)},
		"the list shows nothing":              {0, nil, true, followup.LookAgain(10 * time.Second)},
		"another disk's are purged meanwhile": {3, []string{"snap-99"}, false, followup.Done("purged")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			s.purges = c.purges
			s.seen.StartedAt = s.now.Add(-30 * 24 * time.Hour)
			if !c.lacks {
				s.listed = []disk.Snapshot{*s.seen}
			}
			for i := range c.newer {
				o := *s.seen
				o.ID, o.StartedAt = fmt.Sprintf("snap-%d", i+2), s.seen.StartedAt.Add(time.Duration(i+1)*time.Hour)
				s.listed = append(s.listed, o)
			}
			got, err := s.purging(t)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			require.Equal(t, c.want.Outcome == "purged", s.count("ec2:DeleteSnapshot") == 1)
		})
	}
}
