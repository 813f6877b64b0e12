package disk_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
)

func TestForeignSnapshotsAreKnownWhateverTheirTags(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change  func(*disk.Snapshot)
		foreign bool
	}{
		"made by the cleanup":     {func(*disk.Snapshot) {}, false},
		"made by the platform":    {func(s *disk.Snapshot) { s.Description = "Initial snapshot for gpu-dev disk 'd'" }, false},
		"no description":          {func(s *disk.Snapshot) { s.Description = "" }, false},
		"speaks of copies":        {func(s *disk.Snapshot) { s.Description = "disk with copied data" }, false},
		"another account":         {func(s *disk.Snapshot) { s.OwnerID = "999999999999" }, true},
		"unknown owner":           {func(s *disk.Snapshot) { s.OwnerID = "" }, true},
		"copied across regions":   {func(s *disk.Snapshot) { s.Description = "[Copied snap-0 from us-west-2] mine" }, true},
		"copied for an image":     {func(s *disk.Snapshot) { s.Description = "Copied for DestinationAmi ami-0" }, true},
		"copied, other letters":   {func(s *disk.Snapshot) { s.Description = "  [COPIED snap-0]" }, true},
		"copied, own description": {func(s *disk.Snapshot) { s.VolumeID = "vol-ffffffff" }, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := captured()
			test.change(&s)
			require.Equal(t, test.foreign, disk.Foreign(s, account))
			require.Equal(t, !test.foreign, disk.Ours(s, account))
			require.True(t, disk.Foreign(s, ""), "nothing is ours while the account is unknown")
		})
	}
}

func TestASnapshotSaysSinceWhenItsVolumeIsGivenUpForIt(t *testing.T) {
	t.Parallel()
	require.Equal(t, map[string]string{"gpu-dev-volume-given-up-at": "1700000000"}, disk.GivenUpTags(time.Unix(1700000000, 5)))
}

func TestASnapshotWithoutTheUserTagIsNotOurs(t *testing.T) {
	t.Parallel()
	for _, tags := range []map[string]string{nil, {}, {disk.TagUser: ""}, {disk.TagDisk: "d"}} {
		s := captured()
		s.Tags = tags
		require.False(t, disk.Ours(s, account))
		require.False(t, disk.Foreign(s, account))
	}
}

func TestANewSnapshotCarriesThePlatformsTagsAndItsCleanup(t *testing.T) {
	t.Parallel()
	n := disk.NewSnapshot{
		Disk: disk.Key{User: "ada@example.com", Name: "work"}, ReservationID: "r-1", Attempt: 3, IntentID: "intent-1",
		CreatedAt: now, ContentsURL: "s3://b/k", Size: "1.2G",
	}
	require.Equal(t, map[string]string{
		"gpu-dev-user":            "ada@example.com",
		"disk_name":               "work",
		"gpu-dev-snapshot-type":   "shutdown",
		"SnapshotType":            "shutdown",
		"created_at":              "1773500966",
		"snapshot_content_s3":     "s3://b/k",
		"disk_size":               "1.2G",
		"gpu-dev-reservation-id":  "r-1",
		"gpu-dev-cleanup-attempt": "3",
		"gpu-dev-snapshot-intent": "intent-1",
	}, n.Tags())
	require.Equal(t, "gpu-dev shutdown snapshot for ada@example.com (disk: work) (1.2G)", n.Description())

	n.CrashConsistent = true
	s := disk.Snapshot{Tags: n.Tags()}
	require.True(t, s.CrashConsistent())
	require.True(t, s.MadeBy("r-1", 3))
	require.Equal(t, n.Disk, s.Key())
}

func TestWhatIsUnknownIsLeftOutOfTheTags(t *testing.T) {
	t.Parallel()
	tags := disk.NewSnapshot{Disk: disk.Key{User: "u"}, ReservationID: "r", Attempt: 1}.Tags()
	for _, key := range []string{disk.TagDisk, disk.TagContents, disk.TagSize, disk.TagCrashConsistent, disk.TagIntent} {
		require.NotContains(t, tags, key)
	}
	require.Equal(t, "gpu-dev shutdown snapshot for u", disk.NewSnapshot{Disk: disk.Key{User: "u"}}.Description())
}

func TestWhateverTheNamesTagsFitAndTellReservationsApart(t *testing.T) {
	t.Parallel()
	names := rapid.OneOf(rapid.String(), rapid.StringN(250, 3000, -1),
		rapid.Map(rapid.IntRange(250, 300), func(n int) string { return strings.Repeat("é", n) }))
	rapid.Check(t, func(t *rapid.T) {
		a, b := names.Draw(t, "a"), names.Draw(t, "b")
		n := disk.NewSnapshot{
			Disk: disk.Key{User: names.Draw(t, "user"), Name: names.Draw(t, "disk")}, ReservationID: a, Attempt: 1,
			ContentsURL: names.Draw(t, "url"), Size: names.Draw(t, "size"),
		}
		for key, value := range n.Tags() {
			if !utf8.ValidString(value) || utf8.RuneCountInString(value) > 256 {
				t.Fatalf("%s: %q", key, value)
			}
		}
		if d := n.Description(); !utf8.ValidString(d) || utf8.RuneCountInString(d) > 255 {
			t.Fatalf("description %q", d)
		}
		s := disk.Snapshot{Tags: n.Tags()}
		if s.MadeBy(a, 1) != (a != "") {
			t.Fatalf("%q does not know its own snapshot", a)
		}
		if a != b && s.MadeBy(b, 1) {
			t.Fatalf("%q takes %q's snapshot for its own", b, a)
		}
	})
}

func TestATagValueIsCutOnlyPastTheLimit(t *testing.T) {
	t.Parallel()
	value := func(n int) string {
		return disk.NewSnapshot{Disk: disk.Key{User: strings.Repeat("é", n)}}.Tags()[disk.TagUser]
	}
	require.Equal(t, strings.Repeat("é", 256), value(256))
	require.Regexp(t, "^é{239}~[0-9a-f]{16}$", value(257))
	require.Equal(t, 255, utf8.RuneCountInString(disk.NewSnapshot{Disk: disk.Key{User: strings.Repeat("é", 300)}}.Description()))
}

func FuzzSnapshotTags(f *testing.F) {
	f.Add("gpu-dev-user", "u", "disk_name", "d", "delete-date", "2026-01-01", "gpu-dev shutdown snapshot", int64(0))
	f.Add("gpu-dev-user", "u", "disk_name", "", "marked-deleted-at", "soon", "[Copied snap-0 from us-west-2]", int64(-1))
	f.Add("", "", "\x00", "\xff", "delete-date", "0000-99-99", "copied", int64(1)<<62)
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3, description string, age int64) {
		s := disk.Snapshot{
			ID: "snap-1", VolumeID: "vol-1", OwnerID: account, State: disk.SnapshotCompleted, Description: description,
			StartedAt: now.Add(-time.Duration(age)), Tags: map[string]string{k1: v1, k2: v2, k3: v3},
		}
		for _, row := range []disk.Row{{}, {Deleted: true}, {Deleted: true, DeleteDate: now.Add(24 * time.Hour)}} {
			plan := disk.PlanRetention([]disk.Snapshot{s}, map[disk.Key]disk.Row{s.Key(): row}, nil, account, now)
			require.Empty(t, plan.Purge, "tags alone never delete")
			if !disk.Ours(s, account) {
				require.Zero(t, plan)
			}
		}
		ok, reason := disk.MayDelete(disk.Volume{ID: "vol-1", State: disk.VolumeAvailable}, &s,
			disk.Capture{ReservationID: "r-1", Attempt: 1, IntentID: "intent-1", WriterGoneAt: now.Add(-time.Hour)}, account, now)
		require.Equal(t, ok, reason == "")
		if ok {
			require.Equal(t, "r-1", s.Tags[disk.TagReservation])
		}
	})
}
