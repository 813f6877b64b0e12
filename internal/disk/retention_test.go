package disk_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
)

var (
	adaWork  = disk.Key{User: "ada", Name: "work"}
	midnight = time.Date(2026, 3, 14, 0, 0, 0, 0, time.UTC)
)

const day = 24 * time.Hour

// of returns a completed snapshot of ada's disk, id and age as given.
func of(id string, age time.Duration, change ...func(*disk.Snapshot)) disk.Snapshot {
	s := disk.Snapshot{
		ID: id, VolumeID: "vol-1", OwnerID: account, State: disk.SnapshotCompleted, StartedAt: now.Add(-age),
		Tags: map[string]string{disk.TagUser: adaWork.User, disk.TagDisk: adaWork.Name},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func state(to disk.SnapshotState) func(*disk.Snapshot) {
	return func(s *disk.Snapshot) { s.State = to }
}

func tagged(key, value string) func(*disk.Snapshot) {
	return func(s *disk.Snapshot) { s.Tags[key] = value }
}

func foreign(s *disk.Snapshot) { s.Description = "[Copied snap-0 from us-west-2]" }

func live() map[disk.Key]disk.Row { return map[disk.Key]disk.Row{adaWork: {}} }

func purged(plan disk.Retention) (ids []string) {
	for _, p := range plan.Purge {
		ids = append(ids, p.SnapshotID)
	}
	return ids
}

func TestTheNewestThreeOfALiveDiskStayAndOlderOnesPastSevenDaysGo(t *testing.T) {
	t.Parallel()
	plan := disk.PlanRetention([]disk.Snapshot{
		of("s5", 40*day), of("s1", 10*day), of("s3", 30*day), of("s2", 20*day), of("s4", 35*day),
	}, live(), nil, account, now)
	require.Equal(t, []disk.Purge{
		{Disk: adaWork, SnapshotID: "s5", Reason: "past 7 days, with 3 newer ones"},
		{Disk: adaWork, SnapshotID: "s4", Reason: "past 7 days, with 3 newer ones"},
	}, plan.Purge)
	require.Empty(t, plan.Tag)
	require.Empty(t, plan.Untag)
	require.Empty(t, plan.Kept)
}

func TestWhatIsNotPastSevenDaysStays(t *testing.T) {
	t.Parallel()
	snapshots := []disk.Snapshot{of("s1", 1), of("s2", 2), of("s3", 3), of("s4", 7*day), of("s5", 7*day+1)}
	require.Equal(t, []string{"s5"}, purged(disk.PlanRetention(snapshots, live(), nil, account, now)))
}

func TestOnlyCompletedOnesOfOursCountAndGo(t *testing.T) {
	t.Parallel()
	snapshots := []disk.Snapshot{
		of("pending", day, state(disk.SnapshotPending)), of("failed", day, state(disk.SnapshotError)),
		of("copy", day, foreign), of("twice", 8*day), of("twice", 8*day), of("twice", 8*day), of("s2", 9*day), of("s3", 10*day),
		of("old pending", 99*day, state(disk.SnapshotPending)), of("old failed", 99*day, state(disk.SnapshotError)),
		of("old copy", 99*day, foreign), of("ageless", 0, func(s *disk.Snapshot) { s.StartedAt = time.Time{} }),
	}
	require.Empty(t, purged(disk.PlanRetention(snapshots, live(), nil, account, now)))
	require.Equal(t, []string{"s4"}, purged(disk.PlanRetention(append(snapshots, of("s4", 11*day)), live(), nil, account, now)))
}

func TestEachDiskIsCountedByItselfAndLosesAtMostTenASweep(t *testing.T) {
	t.Parallel()
	other := disk.Key{User: "ada", Name: "other"}
	rows := map[disk.Key]disk.Row{adaWork: {}, other: {}}
	var snapshots []disk.Snapshot
	for i := range 20 {
		snapshots = append(snapshots, of(fmt.Sprintf("w%02d", i), time.Duration(20+i)*day))
	}
	for i := range 4 {
		snapshots = append(snapshots, of(fmt.Sprintf("o%02d", i), time.Duration(20+i)*day, tagged(disk.TagDisk, "other")))
	}
	require.Equal(t, []string{"o03", "w19", "w18", "w17", "w16", "w15", "w14", "w13", "w12", "w11", "w10"},
		purged(disk.PlanRetention(snapshots, rows, nil, account, now)))
}

func TestASnapshotThatCannotGoHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	var snapshots []disk.Snapshot
	asked := map[string]bool{}
	for i := range disk.MaxPurges + disk.KeepNewest + 2 {
		s := of(fmt.Sprintf("s%02d", i), time.Duration(100-i)*day) // the oldest first
		snapshots = append(snapshots, s)
		asked[s.ID] = i < disk.MaxPurges // in vain, sweep after sweep
	}
	require.Equal(t, []string{"s10", "s11"}, purged(disk.PlanRetention(snapshots, live(), asked, account, now)))
}

func TestADeletedDisksSnapshotsAreTaggedUntilTheirDateAndThenGo(t *testing.T) {
	t.Parallel()
	snapshots := []disk.Snapshot{
		of("new", day), of("old", 99*day), of("pending", 0, state(disk.SnapshotPending)), of("failed", day, state(disk.SnapshotError)),
		of("copy", day, foreign), of("recycled", day, state(disk.SnapshotRecoverable)),
		of("right", 2*day, tagged(disk.TagDeleteDate, "2026-03-14"), tagged(disk.TagMarkedDeletedAt, "1")),
		of("wrong", 3*day, tagged(disk.TagDeleteDate, "2026-03-15"), tagged(disk.TagMarkedDeletedAt, "1")),
		of("half", 4*day, tagged(disk.TagDeleteDate, "2026-03-14")),
	}
	rows := map[disk.Key]disk.Row{adaWork: {Deleted: true, DeleteDate: midnight}}
	before := midnight.Add(-1)

	plan := disk.PlanRetention(snapshots, rows, nil, account, before)
	require.Equal(t, []disk.Tagging{{
		Disk: adaWork, SnapshotIDs: []string{"pending", "recycled", "new", "failed", "wrong", "half", "old"},
		Tags: map[string]string{"delete-date": "2026-03-14", "marked-deleted-at": fmt.Sprint(before.Unix())},
	}}, plan.Tag)
	require.Empty(t, plan.Purge)

	since := map[disk.Key]disk.Row{adaWork: {Deleted: true, DeleteDate: midnight, MarkedDeletedAt: before.Add(-9 * day)}}
	require.Equal(t, map[string]string{"delete-date": "2026-03-14", "marked-deleted-at": fmt.Sprint(before.Add(-9 * day).Unix())},
		disk.PlanRetention(snapshots, since, nil, account, before).Tag[0].Tags, "as the row says")

	plan = disk.PlanRetention(snapshots, rows, nil, account, midnight)
	require.Equal(t, []string{"old", "half", "wrong", "right", "failed", "new"}, purged(plan))
	require.Equal(t, "its disk was to go on 2026-03-14", plan.Purge[0].Reason)
	require.Empty(t, plan.Untag)
	require.Empty(t, plan.Kept)
	require.Empty(t, disk.PlanRetention(snapshots[6:7], rows, nil, account, before).Tag, "what is tagged rightly is left alone")
}

func TestARestoredDisksSnapshotsLoseTheirTagsAndStay(t *testing.T) {
	t.Parallel()
	plan := disk.PlanRetention([]disk.Snapshot{
		of("s1", day), of("s2", 2*day, tagged(disk.TagDeleteDate, "2020-01-01")),
		of("s3", 3*day, tagged(disk.TagMarkedDeletedAt, "")), of("s4", 0, state(disk.SnapshotPending), tagged(disk.TagDeleteDate, "x")),
	}, live(), nil, account, now)
	require.Equal(t, []disk.Untagging{{Disk: adaWork, SnapshotIDs: []string{"s4", "s2", "s3"}}}, plan.Untag)
	require.Empty(t, plan.Tag)
	require.Empty(t, plan.Purge)
	require.Equal(t, []string{"delete-date", "marked-deleted-at"}, disk.DeletionTagKeys())
}

func TestWhatIsOddIsKeptAndReported(t *testing.T) {
	t.Parallel()
	snapshots := []disk.Snapshot{
		of("s1", 99*day, tagged(disk.TagDeleteDate, "2020-01-01")), of("s2", 98*day), of("s2", 98*day), of("copy", day, foreign),
	}
	for reason, rows := range map[string]map[disk.Key]disk.Row{
		"no row in disks":                    nil,
		"its disk is deleted without a date": {adaWork: {Deleted: true}},
		"its disk is deleted but in use":     {adaWork: {Deleted: true, InUse: true, DeleteDate: midnight}},
	} {
		plan := disk.PlanRetention(snapshots, rows, nil, account, now)
		require.Equal(t, []disk.Kept{{Disk: adaWork, Snapshots: 2, Reason: reason}}, plan.Kept)
		require.Empty(t, plan.Purge)
		require.Empty(t, plan.Untag)
	}
	plan := disk.PlanRetention(snapshots, map[disk.Key]disk.Row{adaWork: {Deleted: true, InUse: true, DeleteDate: now.Add(1)}}, nil, account, now)
	require.Empty(t, plan.Kept, "a deleted disk may well be in use until its date has come")
	require.Len(t, plan.Tag, 1)
}

func TestSnapshotsWithoutADisksNameBelongToNoRow(t *testing.T) {
	t.Parallel()
	nameless := of("s1", 99*day)
	delete(nameless.Tags, disk.TagDisk)
	plan := disk.PlanRetention([]disk.Snapshot{nameless, of("s2", 10*day), of("s3", 20*day), of("s4", 30*day), of("s5", 40*day)}, live(), nil, account, now)
	require.Equal(t, []disk.Kept{{Disk: disk.Key{User: "ada"}, Snapshots: 1, Reason: "no row in disks"}}, plan.Kept)
	require.Equal(t, []string{"s5"}, purged(plan), "they hold up no disk that comes after")
}

func TestAPurgeIsDecidedAgainOnWhatIsSeenThen(t *testing.T) {
	t.Parallel()
	all := []disk.Snapshot{of("s4", 40*day), of("s1", 10*day), of("s3", 30*day), of("s2", 20*day)}
	deleted := disk.Row{Deleted: true, DeleteDate: midnight}
	without := func(id string) []disk.Snapshot {
		return slices.DeleteFunc(slices.Clone(all), func(s disk.Snapshot) bool { return s.ID == id })
	}
	with := func(changed disk.Snapshot) []disk.Snapshot { return append(without(changed.ID), changed) }
	tests := map[string]struct {
		id     string
		row    *disk.Row
		all    []disk.Snapshot
		reason string // empty: may go
	}{
		"older than the newest three":    {"s4", &disk.Row{}, all, ""},
		"among the newest three":         {"s3", &disk.Row{}, all, "among the newest 3"},
		"the newest of a live disk":      {"s1", &disk.Row{}, all, "among the newest 3"},
		"a newer one has gone meanwhile": {"s4", &disk.Row{}, without("s1"), "among the newest 3"},
		"a newer one is a copy":          {"s4", &disk.Row{}, with(of("s1", 10*day, foreign)), "among the newest 3"},
		"a newer one is another disk's":  {"s4", &disk.Row{}, with(of("s1", 10*day, tagged(disk.TagDisk, "other"))), "among the newest 3"},
		"a newer one is pending":         {"s4", &disk.Row{}, with(of("s1", 10*day, state(disk.SnapshotPending))), "among the newest 3"},
		"a newer one listed twice":       {"s4", &disk.Row{}, append(without("s1"), of("s2", 20*day)), "among the newest 3"},
		"listed as pending too":          {"s4", &disk.Row{}, append(all, of("s4", 40*day, state(disk.SnapshotPending))), `it is "pending"`},
		"not listed":                     {"s4", &disk.Row{}, without("s4"), "not among the disk's snapshots"},
		"an empty list":                  {"s4", &deleted, nil, "not among the disk's snapshots"},
		"a copy":                         {"s4", &deleted, with(of("s4", 40*day, foreign)), "foreign"},
		"no row":                         {"s4", nil, all, "no row in disks"},
		"deleted and due":                {"s1", &deleted, all, ""},
		"deleted, not due":               {"s1", &disk.Row{Deleted: true, DeleteDate: now.Add(1)}, all, "can be restored until 2026-03-14"},
		"deleted without a date":         {"s1", &disk.Row{Deleted: true}, all, "without a date"},
		"deleted, in use":                {"s1", &disk.Row{Deleted: true, DeleteDate: midnight, InUse: true}, all, "in use"},
		"deleted, pending":               {"s1", &deleted, with(of("s1", 10*day, state(disk.SnapshotPending))), `it is "pending"`},
		"deleted, failed":                {"s1", &deleted, with(of("s1", 10*day, state(disk.SnapshotError))), ""},
		"restored":                       {"s1", &disk.Row{DeleteDate: midnight}, all, "among the newest 3"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(test.all)
			ok, reason := disk.MayPurge(test.id, test.row, test.all, account, now)
			require.Equal(t, test.reason == "", ok, reason)
			require.NotEmpty(t, reason)
			require.Contains(t, reason, test.reason)
			require.Equal(t, before, test.all, "the caller's list is left alone")
		})
	}
}

func drawSnapshots(t *rapid.T, keys []disk.Key) []disk.Snapshot {
	return rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) disk.Snapshot {
		key := rapid.SampledFrom(keys).Draw(t, "disk")
		s := disk.Snapshot{
			ID: fmt.Sprintf("snap-%d", rapid.IntRange(0, 999).Draw(t, "id")), VolumeID: "vol-1",
			OwnerID: rapid.SampledFrom([]string{account, account, account, "999999999999"}).Draw(t, "owner"),
			State: rapid.SampledFrom([]disk.SnapshotState{
				disk.SnapshotCompleted, disk.SnapshotCompleted, disk.SnapshotPending, disk.SnapshotError, "",
			}).Draw(t, "state"),
			Description: rapid.SampledFrom([]string{"", "", "[Copied snap-0]"}).Draw(t, "description"),
			StartedAt:   now.Add(-time.Duration(rapid.IntRange(-1, 20).Draw(t, "age")) * 12 * time.Hour),
			Tags:        map[string]string{disk.TagUser: key.User, disk.TagDisk: key.Name},
		}
		if rapid.Bool().Draw(t, "marked") {
			s.Tags[disk.TagDeleteDate] = rapid.SampledFrom([]string{"2020-01-01", "2026-03-14", "x"}).Draw(t, "date")
		}
		return s
	}), 0, 40, func(s disk.Snapshot) string { return s.ID }).Draw(t, "snapshots")
}

func TestRetentionKeepsItsPromisesForAnyWorld(t *testing.T) {
	t.Parallel()
	keys := []disk.Key{adaWork, {User: "ada", Name: "other"}, {User: "bob", Name: "work"}, {User: "bob"}}
	rapid.Check(t, func(t *rapid.T) {
		snapshots := drawSnapshots(t, keys)
		rows := map[disk.Key]disk.Row{}
		for _, key := range keys[:3] {
			if rapid.Bool().Draw(t, "row") {
				rows[key] = disk.Row{
					InUse: rapid.Bool().Draw(t, "in use"), Deleted: rapid.Bool().Draw(t, "deleted"),
					DeleteDate: rapid.SampledFrom([]time.Time{{}, midnight, midnight.Add(day)}).Draw(t, "date"),
				}
			}
		}
		byID := map[string]disk.Snapshot{}
		for _, s := range snapshots {
			byID[s.ID] = s
		}
		plan := disk.PlanRetention(slices.Clone(snapshots), rows, nil, account, now)

		touched := map[string]int{}
		perDisk := map[disk.Key]int{}
		for _, p := range plan.Purge {
			s, row := byID[p.SnapshotID], rows[p.Disk]
			touched[p.SnapshotID]++
			perDisk[p.Disk]++
			newer := 0
			for _, o := range snapshots {
				if disk.Ours(o, account) && o.Key() == s.Key() && o.State == disk.SnapshotCompleted && o.StartedAt.After(s.StartedAt) {
					newer++
				}
			}
			switch {
			case s.Key() != p.Disk || !disk.Ours(s, account) || s.State == disk.SnapshotPending || s.State == "":
				t.Fatalf("%+v may not go: %+v", p, s)
			case !row.Deleted && (s.State != disk.SnapshotCompleted || newer == 0 || now.Sub(s.StartedAt) <= 7*day):
				t.Fatalf("%+v of a live disk may not go: %+v", p, s)
			case row.Deleted && (row.DeleteDate.IsZero() || now.Before(row.DeleteDate) || row.InUse):
				t.Fatalf("%+v of %+v may not go", p, row)
			}
			if ok, reason := disk.MayPurge(p.SnapshotID, &row, snapshots, account, now); !ok {
				t.Fatalf("MayPurge does not agree with the plan about %+v: %s", p, reason)
			}
		}
		for key, n := range perDisk {
			if n > 10 {
				t.Fatalf("%v loses %d", key, n)
			}
		}
		for _, tagging := range plan.Tag {
			for _, id := range tagging.SnapshotIDs {
				if !rows[byID[id].Key()].Deleted || !disk.Ours(byID[id], account) {
					t.Fatalf("%s is tagged", id)
				}
			}
		}
		for _, untagging := range plan.Untag {
			for _, id := range untagging.SnapshotIDs {
				if rows[byID[id].Key()].Deleted || !disk.Ours(byID[id], account) {
					t.Fatalf("%s is untagged", id)
				}
			}
		}
		for id, times := range touched {
			if times != 1 {
				t.Fatalf("%s goes %d times", id, times)
			}
		}
		shuffled := slices.Clone(snapshots)
		rand.New(rand.NewPCG(1, uint64(len(snapshots)))).Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		require.Equal(t, plan, disk.PlanRetention(shuffled, rows, nil, account, now))
	})
}

// Sweep after sweep the plan comes to rest: what is past retention goes, and nothing after that.
func TestRetentionComesToRest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		snapshots := drawSnapshots(t, []disk.Key{adaWork})
		for range 5 {
			gone := purged(disk.PlanRetention(snapshots, live(), nil, account, now))
			snapshots = slices.DeleteFunc(snapshots, func(s disk.Snapshot) bool { return slices.Contains(gone, s.ID) })
		}
		if rest := purged(disk.PlanRetention(snapshots, live(), nil, account, now)); len(rest) > 0 {
			t.Fatal("still purging " + strings.Join(rest, ", "))
		}
		old := 0
		for _, s := range snapshots {
			if disk.Ours(s, account) && s.State == disk.SnapshotCompleted && now.Sub(s.StartedAt) > 7*day {
				old++
			}
		}
		if old > 3 {
			t.Fatalf("%d old ones are left", old)
		}
	})
}
