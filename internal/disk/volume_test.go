package disk_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
)

const account = "123456789012"

var now = time.Date(2026, 3, 14, 15, 9, 26, 535_897_000, time.UTC)

func available() disk.Volume { return disk.Volume{ID: "vol-0a1b2c3d", State: disk.VolumeAvailable} }

func attached(to string) disk.Volume {
	return disk.Volume{ID: "vol-0a1b2c3d", State: disk.VolumeInUse, Attachments: []disk.Attachment{
		{InstanceID: to, Device: "/dev/xvdba", State: disk.Attached, AttachedAt: now.Add(-10 * time.Hour)},
	}}
}

func TestTheWriterIsGoneOnlyFromAnAvailableVolumeWithoutAttachment(t *testing.T) {
	t.Parallel()
	gone, reason := disk.WriterGone(available())
	require.True(t, gone)
	require.Empty(t, reason)

	for _, state := range []disk.VolumeState{
		disk.VolumeCreating, disk.VolumeInUse, disk.VolumeDeleting, disk.VolumeDeleted, disk.VolumeError, "", "new-state",
	} {
		gone, reason = disk.WriterGone(disk.Volume{ID: "vol-0a1b2c3d", State: state})
		require.False(t, gone, state)
		require.Contains(t, reason, "not available")
	}
	for _, state := range []disk.AttachmentState{disk.Attaching, disk.Attached, disk.Detaching, disk.Detached, disk.Busy, ""} {
		v := attached("i-1")
		v.State, v.Attachments[0].State = disk.VolumeAvailable, state
		gone, reason = disk.WriterGone(v)
		require.False(t, gone, state)
		require.Contains(t, reason, "to i-1")
	}
}

func TestAVolumeIsBeingDeletedFromWhenEC2BeginsUntilItForgets(t *testing.T) {
	t.Parallel()
	for state, deleting := range map[disk.VolumeState]bool{
		disk.VolumeDeleting: true, disk.VolumeDeleted: true,
		disk.VolumeCreating: false, disk.VolumeAvailable: false, disk.VolumeInUse: false, disk.VolumeError: false, "": false, "new-state": false,
	} {
		require.Equal(t, deleting, disk.Volume{State: state}.Deleting(), state)
	}
}

func capture() disk.Capture {
	return disk.Capture{Disk: disk.Key{User: "u", Name: "d"}, ReservationID: "r-1", Attempt: 2, IntentID: "intent-1", WriterGoneAt: now.Add(-time.Hour)}
}

func captured() disk.Snapshot {
	return disk.Snapshot{
		ID: "snap-1", VolumeID: "vol-0a1b2c3d", OwnerID: account, State: disk.SnapshotCompleted,
		StartedAt: now.Add(-time.Hour), Description: "gpu-dev shutdown snapshot for u",
		Tags: disk.NewSnapshot{Disk: disk.Key{User: "u", Name: "d"}, ReservationID: "r-1", Attempt: 2, IntentID: "intent-1"}.Tags(),
	}
}

func TestAVolumeGoesOnlyWithItsOwnCompletedSnapshotOfThisCleanup(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		spoil  func(v *disk.Volume, s *disk.Snapshot, c *disk.Capture)
		reason string
	}{
		"another volume's":  {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.VolumeID = "vol-9" }, "is of volume"},
		"of nothing":        {func(v *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { v.ID, s.VolumeID = "", "" }, "is of volume"},
		"pending":           {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.State = disk.SnapshotPending }, "not completed"},
		"failed":            {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.State = disk.SnapshotError }, "not completed"},
		"of unknown state":  {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.State = "" }, "not completed"},
		"another account's": {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.OwnerID = "1" }, "foreign"},
		"a copy": {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) {
			s.Description = "[Copied snap-2 from us-west-2]"
		}, "foreign"},
		"another cleanup's": {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.Tags[disk.TagReservation] = "r-2" }, "not made by"},
		"another attempt's": {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.Tags[disk.TagAttempt] = "1" }, "not made by"},
		"the platform's":    {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { delete(s.Tags, disk.TagReservation) }, "not made by"},
		"without tags":      {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.Tags = nil }, "not made by"},
		"of no cleanup": {func(_ *disk.Volume, s *disk.Snapshot, c *disk.Capture) {
			c.ReservationID, s.Tags[disk.TagReservation] = "", ""
		}, "not made by"},
		"of no attempt":               {func(_ *disk.Volume, s *disk.Snapshot, c *disk.Capture) { c.Attempt, s.Tags[disk.TagAttempt] = 0, "0" }, "not made by"},
		"never seen without a writer": {func(_ *disk.Volume, _ *disk.Snapshot, c *disk.Capture) { c.WriterGoneAt = time.Time{} }, "never seen"},
		"another intent's":            {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.Tags[disk.TagIntent] = "intent-2" }, "not made by intent"},
		"no intent's":                 {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { delete(s.Tags, disk.TagIntent) }, "not made by intent"},
		"of an intent that nobody knows": {func(_ *disk.Volume, s *disk.Snapshot, c *disk.Capture) {
			c.IntentID = ""
			delete(s.Tags, disk.TagIntent)
		}, "not made by intent"},
		"started at an unknown time":  {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.StartedAt = time.Time{} }, "unknown time"},
		"forced, and its tag is gone": {func(_ *disk.Volume, _ *disk.Snapshot, c *disk.Capture) { c.CrashConsistent = true }, "is kept until"},
		"tagged as another user's": {func(v *disk.Volume, _ *disk.Snapshot, _ *disk.Capture) {
			v.Tags = disk.Key{User: "x", Name: "d"}.Tags()
		}, "is another's"},
		"tagged as another disk": {func(v *disk.Volume, _ *disk.Snapshot, _ *disk.Capture) {
			v.Tags = disk.Key{User: "u", Name: "x"}.Tags()
		}, "is another's"},
		"attached again":                 {func(v *disk.Volume, _ *disk.Snapshot, _ *disk.Capture) { *v = attached("i-2") }, "attached to i-2"},
		"crash-consistent and too young": {func(_ *disk.Volume, s *disk.Snapshot, _ *disk.Capture) { s.Tags[disk.TagCrashConsistent] = "true" }, "is kept until 2026-03-21T14:09:26Z"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, s, c := available(), captured(), capture()
			ok, reason := disk.MayDelete(v, &s, c, account, now)
			require.True(t, ok, reason)
			require.Empty(t, reason)

			test.spoil(&v, &s, &c)
			ok, reason = disk.MayDelete(v, &s, c, account, now)
			require.False(t, ok)
			require.Contains(t, reason, test.reason)
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		ok, reason := disk.MayDelete(available(), nil, capture(), account, now)
		require.False(t, ok)
		require.Contains(t, reason, "no snapshot")
	})
}

func TestClocksThatDisagreeKeepNoVolume(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{-time.Hour, -time.Millisecond, time.Hour} {
		s := captured()
		s.StartedAt = capture().WriterGoneAt.Add(skew)
		ok, reason := disk.MayDelete(available(), &s, capture(), account, now)
		require.True(t, ok, reason)
	}
}

func TestAVolumeTakenByForceIsKeptSevenDaysBesideItsSnapshot(t *testing.T) {
	t.Parallel()
	s := captured()
	s.Tags[disk.TagCrashConsistent] = "true"
	end := s.StartedAt.Add(7 * 24 * time.Hour)

	ok, _ := disk.MayDelete(available(), &s, capture(), account, end.Add(-time.Nanosecond))
	require.False(t, ok)
	ok, reason := disk.MayDelete(available(), &s, capture(), account, end)
	require.True(t, ok, reason)
}

func TestIdsAreReadFromEveryFormInWhichTheyAreKept(t *testing.T) {
	t.Parallel()
	for handle, want := range map[string]string{
		"vol-0123456789abcdef0":                  "vol-0123456789abcdef0",
		"vol-0a1b2c3d":                           "vol-0a1b2c3d",
		"aws://us-east-1a/vol-0123456789abcdef0": "vol-0123456789abcdef0",
		"aws:///vol-0a1b2c3d":                    "vol-0a1b2c3d",
		"":                                       "",
		"vol-":                                   "",
		"vol-XYZ":                                "",
		"vol-0a1b2c3d; rm":                       "",
		"x/vol-0a1b2c3d":                         "",
		"aws://us-east-1a/i-0a1b2c3d":            "",
		"aws://us-east-1a/vol-0a1b2c3d/x":        "",
	} {
		id, ok := disk.ParseVolumeID(handle)
		require.Equal(t, want != "", ok, handle)
		if ok {
			require.Equal(t, want, id)
		}
	}
	id, ok := disk.ParseInstanceID("aws:///us-east-1a/i-0123456789abcdef0")
	require.True(t, ok)
	require.Equal(t, "i-0123456789abcdef0", id)
	for _, bad := range []string{"", "kwok://node-1", "aws:///us-east-1a/vol-0a1b2c3d", "i-zz"} {
		_, ok = disk.ParseInstanceID(bad)
		require.False(t, ok, bad)
	}
}

func TestAnInstanceIsHaltedOnlyOnceItHasStopped(t *testing.T) {
	t.Parallel()
	for state, halted := range map[disk.InstanceState]bool{
		disk.InstancePending: false, disk.InstanceRunning: false, disk.InstanceShuttingDown: false,
		disk.InstanceStopping: false, disk.InstanceStopped: true, disk.InstanceTerminated: true, "": false,
	} {
		require.Equal(t, halted, disk.Instance{State: state}.Halted(), state)
	}
}

func TestOnlyASpotInstanceThatEC2EndedIsReclaimed(t *testing.T) {
	t.Parallel()
	for code, reclaimed := range map[string]bool{
		"Server.SpotInstanceTermination":   true,
		"Server.SpotInstanceShutdown":      true,
		"Client.UserInitiatedShutdown":     false,
		"Client.InstanceInitiatedShutdown": false,
		"Server.InternalError":             false,
		"":                                 false,
	} {
		require.Equal(t, reclaimed, disk.Instance{Spot: true, StateReason: code}.Reclaimed(), code)
		require.False(t, disk.Instance{StateReason: code}.Reclaimed(), code)
	}
}

func TestAVolumesTagsTellWhoseItIsNot(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("d", 300)
	for name, c := range map[string]struct {
		key     disk.Key
		tags    map[string]string
		another bool
		named   bool
	}{
		"its own":               {disk.Key{User: "u", Name: "d"}, disk.Key{User: "u", Name: "d"}.Tags(), false, true},
		"without tags":          {disk.Key{User: "u", Name: "d"}, nil, false, false},
		"the disk's alone":      {disk.Key{User: "u", Name: "d"}, map[string]string{disk.TagDisk: "d"}, false, false},
		"the user's alone":      {disk.Key{User: "u", Name: "d"}, map[string]string{disk.TagUser: "u"}, false, false},
		"another user's":        {disk.Key{User: "u", Name: "d"}, disk.Key{User: "x", Name: "d"}.Tags(), true, false},
		"another user's, alone": {disk.Key{User: "u", Name: "d"}, map[string]string{disk.TagUser: "x"}, true, false},
		"another disk":          {disk.Key{User: "u", Name: "d"}, disk.Key{User: "u", Name: "x"}.Tags(), true, false},
		"another disk, alone":   {disk.Key{User: "u", Name: "d"}, map[string]string{disk.TagDisk: "x"}, true, false},
		"cut to EC2's length":   {disk.Key{User: "u", Name: long}, disk.Key{User: "u", Name: long}.Tags(), false, true},
		"alike but for the cut": {disk.Key{User: "u", Name: long}, disk.Key{User: "u", Name: long + "x"}.Tags(), true, false},
		"a disk without a name": {disk.Key{User: "u"}, disk.Key{User: "u", Name: "d"}.Tags(), false, true},
		"of nobody known":       {disk.Key{Name: "d"}, disk.Key{User: "u", Name: "d"}.Tags(), true, false},
	} {
		v := disk.Volume{ID: "vol-1", Tags: c.tags}
		require.Equal(t, c.another, c.key.Others(v) != "", name)
		require.Equal(t, c.named, c.key.Named(v), name)
		do, _ := disk.Detach(v, disk.Holder{Disk: c.key}, now)
		require.Equal(t, c.another, do == disk.Refuse, name)
	}
}

func TestOfSeveralVolumesTheOnlyOneSoTaggedIsTheDisk(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "u", Name: "d"}
	volume := func(id string, k disk.Key) disk.Volume { return disk.Volume{ID: id, Tags: k.Tags()} }
	own, second := volume("vol-1", key), volume("vol-2", key)
	others, untagged := volume("vol-3", disk.Key{User: "team", Name: "golden"}), disk.Volume{ID: "vol-4"}
	for name, c := range map[string]struct {
		volumes   []disk.Volume
		id        string
		undecided []string
	}{
		"none":                   {},
		"its own":                {volumes: []disk.Volume{own}, id: "vol-1"},
		"beside another's":       {volumes: []disk.Volume{others, own}, id: "vol-1"},
		"beside an untagged one": {volumes: []disk.Volume{untagged, own}, id: "vol-1"},
		"several":                {volumes: []disk.Volume{own, others, second}, undecided: []string{"vol-1", "vol-2"}},
		"one that tells nothing": {volumes: []disk.Volume{others, untagged}, undecided: []string{"vol-4"}},
		"another's and no other": {volumes: []disk.Volume{others}},
	} {
		id, undecided := key.Choose(c.volumes)
		require.Equal(t, c.id, id, name)
		require.Equal(t, c.undecided, undecided, name)
	}
}
