package sweep

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/pod"
)

func TestEndedReservationsGetTheirCleanupWhoeverEndedThem(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		columns row
		want    bool
	}{
		"failed lately":                    {row{"status": "'failed'", "failed_at": ago(23 * time.Hour)}, true},
		"failed long ago":                  {row{"status": "'failed'", "failed_at": ago(25 * time.Hour)}, false},
		"cancelled lately":                 {row{"status": "'cancelled'", "cancelled_at": ago(6 * day)}, true},
		"cancelled long ago":               {row{"status": "'cancelled'", "cancelled_at": ago(8 * day)}, false},
		"expired lately":                   {row{"status": "'expired'", "reservation_ended": ago(6 * day)}, true},
		"expired long ago":                 {row{"status": "'expired'", "reservation_ended": ago(8 * day)}, false},
		"expired, nobody wrote when":       {row{"status": "'expired'"}, true},
		"active":                           {row{}, false},
		"of a status nobody has heard of":  {row{"status": "'paused'"}, false},
		"without a status":                 {row{"status": "null"}, false},
		"expired at an absurd time ahead":  {row{"status": "'expired'", "reservation_ended": "'infinity'"}, true},
		"expired at an absurd time before": {row{"status": "'expired'", "reservation_ended": "'-infinity'"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.insert(test.columns)[0]
			r := w.sweep()
			if !test.want {
				require.Empty(t, w.followUps())
				return
			}
			require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
			require.Equal(t, 1, r.Counts["cleanupsRequested"])
			require.Zero(t, w.sweep().Counts["cleanupsRequested"], "it is asked for once")
		})
	}
}

func TestWhoEndedWhileNoSweepLookedGetsTheirCleanup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sweeps string
		want   bool
	}{
		"a sweep has looked since":     {"('completed', now() - interval '1 hour', false)", false},
		"none has looked for days":     {"('completed', now() - interval '5 days', false)", true},
		"only while paused":            {"('completed', now() - interval '5 days', false), ('completed', now() - interval '1 hour', true)", true},
		"none ever has, in all days":   {"('partial', now() - interval '5 days', false), ('completed', now() - interval '1 hour', true)", true},
		"none had begun by then":       {"('partial', now() - interval '3 days', false)", false},
		"only such as failed in parts": {"('completed', now() - interval '5 days', false), ('partial', now() - interval '1 hour', false)", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.insert(row{"status": "'failed'", "failed_at": ago(5 * 24 * time.Hour)})[0]
			w.exec("insert into expiry.sweeps (sweep_id, trigger, outcome, started_at, paused) select gen_random_uuid(), 'test', * from (values " + c.sweeps + ") s")
			w.sweep()
			if !c.want {
				require.Empty(t, w.followUps())
				return
			}
			require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
		})
	}
}

func TestAnOldReservationThatHoldsADiskGetsItsCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'expired'", "reservation_ended": ago(90 * 24 * time.Hour)})[0]
	w.exec("insert into disks (disk_name, user_id, in_use, reservation_id) values ('d', 'ada', true, $1)", id)
	w.sweep()
	require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
}

// begun is a cleanup that was begun and whose follow-up is nowhere.
func (w *world) begun(status string) string {
	w.t.Helper()
	id := w.insert(row{"status": quote(status), "reservation_ended": ago(30 * 24 * time.Hour)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason) values ($1, 'expired')", id)
	return id
}

func TestABegunCleanupIsNeverForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.begun("expired")
	w.sweep()
	require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
}

func TestACleanupThatWaitsForItsSnapshotIsNotAskedForAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.begun("expired")
	w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('snapshot.sync', 'intent', $1, 'snap')", id)
	w.sweep()
	require.Equal(t, []string{"snapshot.sync intent due"}, w.followUps())
}

func TestWhilePausedOnlyWhatWasBegunGoesOn(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	begun := w.begun("expired")
	w.insert(row{"status": "'expired'"})
	stray := w.insert(row{"status": "'cancelled'", "cancelled_at": ago(30 * 24 * time.Hour), "created_at": ago(31 * 24 * time.Hour)})[0]
	c.add(pod.Pod{Name: "gpu-dev-" + stray[:8], Created: time.Now().Add(-30*24*time.Hour - time.Hour)})
	_, err := w.db.Pause(t.Context(), "maintenance", 0)
	require.NoError(t, err)
	w.within(c)
	require.Equal(t, []string{"cleanup " + begun + " due"}, w.followUps())
}

func TestAPodOfAnEndedReservationIsCleanedUpIfItIsItsOwn(t *testing.T) {
	t.Parallel()
	month := 30 * 24 * time.Hour
	started, ended := month+2*time.Hour, time.Now().Add(-month)
	for name, test := range map[string]struct {
		pod     pod.Pod
		live    bool // another reservation, which is live, has the name
		uid     string
		want    bool
		counted string // as what, where it is left alone
	}{
		"made in its time":                      {pod: pod.Pod{Created: time.Now().Add(-month - time.Hour)}, want: true},
		"made in its time, known by UID":        {pod: pod.Pod{UID: "own", Created: time.Now().Add(-month - time.Hour)}, uid: "own", want: true},
		"made in its time, another's UID known": {pod: pod.Pod{UID: "other", Created: time.Now().Add(-month + time.Hour)}, uid: "own", counted: "podsWithoutReservation"},
		"made before it":                        {pod: pod.Pod{Created: time.Now().Add(-month - 3*time.Hour)}, counted: "podsWithoutReservation"},
		"made after it":                         {pod: pod.Pod{Created: time.Now().Add(-time.Hour)}, counted: "podsWithoutReservation"},
		"made after it, if the clocks agree":    {pod: pod.Pod{Created: ended.Add(30 * time.Second)}, counted: "podsOfUnknownOwner"},
		"in a live one's hands":                 {pod: pod.Pod{Created: time.Now().Add(-month - time.Hour)}, live: true},
		"on its way out":                        {pod: pod.Pod{Created: time.Now().Add(-month - time.Hour), Deleting: time.Now()}},
		"stuck on its way out":                  {pod: pod.Pod{Created: time.Now().Add(-month - time.Hour), Deleting: time.Now().Add(-time.Hour)}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			id := w.insert(row{"status": "'expired'", "created_at": ago(started), "reservation_ended": quote(ended.Format(time.RFC3339Nano))})[0]
			test.pod.Name, test.pod.Namespace = "gpu-dev-"+id[:8], "default"
			c.add(test.pod)
			c.add(pod.Pod{Name: "gpu-dev-deadbeef"}) // of nobody, and listed before
			c.add(pod.Pod{Name: "coredns"})
			if test.uid != "" {
				w.exec("insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ($1, $2, 'default', $3, now())", test.uid, id, test.pod.Name)
			}
			if test.live {
				w.insert(row{"pod_name": quote(test.pod.Name), "status": "'preparing'"})
			}
			r := w.within(c)
			left := map[string]int{"podsWithoutReservation": 1}
			if test.counted != "" {
				left[test.counted]++
			}
			for _, what := range []string{"podsWithoutReservation", "podsOfUnknownOwner"} {
				require.Equal(t, left[what], r.Counts[what], what)
			}
			if !test.want {
				require.Empty(t, w.followUps())
				return
			}
			require.Equal(t, 1, r.Counts["straysRequested"])
			require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
			require.Zero(t, w.within(c).Counts["straysRequested"], "it is asked for once")
		})
	}
}

func TestAPodIsItsLastOwnersThoughAnOlderOneWasCancelledLater(t *testing.T) {
	t.Parallel()
	for name, seen := range map[string]int{"nobody saw it": -1, "it was seen": 1, "it was seen, of the older one": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			created := time.Now().Add(-30*24*time.Hour - 2*time.Hour)
			var ids []string
			for i, ended := range []time.Duration{time.Hour, 30 * time.Minute} {
				ids = append(ids, w.insert(row{"status": "'cancelled'", "pod_name": "'gpu-dev-again'", "reservation_ended": ago(30*24*time.Hour + ended),
					"created_at": ago(time.Since(created) + time.Duration(2-i)*time.Minute)})[0])
			}
			c.add(pod.Pod{Name: "gpu-dev-again", UID: "own", Created: created})
			if seen >= 0 {
				w.exec("insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ('own', $1, 'gpu-dev', 'gpu-dev-again', now())", ids[seen])
			}
			w.within(c)
			want := ids[1]
			if seen == 0 {
				want = ids[0]
			}
			require.Equal(t, []string{"cleanup " + want + " due"}, w.followUps())
		})
	}
}

func TestASettledCleanupIsReopenedForAPodThatIsBack(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	week := 7 * 24 * time.Hour
	id := w.insert(row{"status": "'expired'", "namespace": "'zoo'", "created_at": ago(week + 8*time.Hour), "reservation_ended": ago(week), "updated_at": ago(week)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'released')", id)
	c.add(pod.Pod{Name: "gpu-dev-" + id[:8], Namespace: "zoo", Created: time.Now().Add(-week - time.Hour)})
	w.within(c)
	require.Equal(t, []string{"cleanup " + id + " due"}, w.followUps())
	require.Equal(t, "true", w.text("select (settled_at is null)::text from expiry.cleanups"))
}

func TestADryRunSaysOnceOfEachWhomItWouldHaveCleanedUp(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	ids := w.insert(row{"status": "'expired'", "reservation_ended": ago(time.Hour)}, row{"status": "'expired'", "reservation_ended": ago(time.Hour)})
	w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'released')", ids[1])
	for _, id := range ids {
		c.add(pod.Pod{Name: "gpu-dev-" + id[:8]})
	}
	r, err := New(w.db, Outside{Cluster: c}, testOptions()).Sweep(t.Context(), event.Ping, event.SweepRequest{DryRun: true})
	require.NoError(t, err)
	for _, id := range ids { // of the first since it was never done, of the second since its pod is back
		require.Equal(t, []Action{CleanUp}, actionsOf(r, id))
	}
}

func TestAPodThatIsBackDoesNotWaitForAVolumeSetAside(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id := w.insert(row{"status": "'expired'", "reservation_ended": ago(time.Hour)})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'released')", id)
	w.exec("insert into expiry.snapshots (intent_id, reservation_id, user_id, disk_name, state, volume_aside_at) values (gen_random_uuid(), $1, 'alice', 'work', 'completed', now())", id)
	w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject, due_at) select 'snapshot.sync', intent_id, $1, 'snap', now() + interval '1 hour' from expiry.snapshots", id)
	c.add(pod.Pod{Name: "gpu-dev-" + id[:8]})
	w.within(c)
	require.Contains(t, w.followUps(), "cleanup "+id+" due")
}

func TestAReservationThatEndedAgainSinceItsCleanupGetsANewOne(t *testing.T) {
	t.Parallel()
	const newVolume = "'vol-0123456789abcdef0'"
	for name, test := range map[string]struct {
		columns row    // since then
		volume  string // of the disk, which it holds again
		revived bool
		settled bool
		want    bool
	}{
		"its row names another volume":      {columns: row{"ebs_volume_id": newVolume}, settled: true, want: true},
		"while the first waits for EC2":     {columns: row{"ebs_volume_id": newVolume}, want: true},
		"its disk is on another volume":     {volume: newVolume, settled: true, want: true},
		"it was live, as a sweep saw":       {revived: true, settled: true, want: true},
		"it holds what was captured":        {settled: true},
		"its end was written late":          {columns: row{"status": "'cancelled'", "reservation_ended": ago(time.Minute)}, settled: true},
		"it was launched since":             {columns: row{"launched_at": ago(time.Hour)}, settled: true, want: true},
		"live, its row has another volume":  {columns: row{"status": "'active'", "ebs_volume_id": newVolume}, settled: true},
		"live, its first waits for nothing": {columns: row{"status": "'active'"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			columns := row{"disk_name": "'work'", "launched_at": ago(8 * time.Hour), "status": "'expired'", "ebs_volume_id": "'vol-aaaaaaaaaaaaaaaaa'"}
			maps.Copy(columns, test.columns)
			id := w.insert(columns)[0]
			w.exec(`insert into expiry.cleanups (reservation_id, reason, user_id, disk_name, volume_id, pod_uid, requested_at, disk_released_at)
				values ($1, 'expired', 'ada', 'work', 'vol-aaaaaaaaaaaaaaaaa', 'first', now() - interval '5 hours', now() - interval '4 hours')`, id)
			if test.settled {
				w.exec("update expiry.cleanups set settled_at = now() - interval '4 hours', outcome = 'released'")
			} else {
				w.exec("insert into expiry.follow_ups (kind, key, reservation_id, subject, state) values ('cleanup', $1::text, $1, $1, 'done')", id)
			}
			w.exec("insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ('ada', 'work', true, $1, "+
				cmp.Or(test.volume, "'vol-aaaaaaaaaaaaaaaaa'")+")", id)
			if test.revived {
				w.exec("update expiry.cleanups set revived_at = now()")
			}
			w.sweep()
			if !test.want {
				require.NotContains(t, w.followUps(), "cleanup "+id+" due")
				return
			}
			require.Contains(t, w.followUps(), "cleanup "+id+" due")
			require.Equal(t, "true", w.text("select in_use::text from disks"), "its new volume is not captured yet")
			require.Zero(t, w.sweep().Counts["cleanupsRequested"], "it is asked for once")
		})
	}
}

func TestALockWhoseReservationIsDeletedInMidCleanupStays(t *testing.T) {
	t.Parallel()
	for name, cleanup := range map[string]string{
		"of the same disk":   "user_id, disk_name) values ('gone', 'expired', 'ada', 'work')",
		"of the same volume": "volume_id) values ('gone', 'expired', 'vol-0123456789abcdef0')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.exec(`insert into disks (user_id, disk_name, in_use, ebs_volume_id, last_updated, created_at)
				values ('ada', 'work', true, 'aws://us-east-1a/vol-0123456789abcdef0', now() - interval '8 hours', now() - interval '20 days')`)
			w.exec("insert into expiry.cleanups (reservation_id, reason, " + cleanup)
			w.sweep()
			require.Equal(t, "true", w.text("select in_use::text from disks"))
			w.exec("update expiry.cleanups set settled_at = now(), outcome = 'released'")
			w.within(newCluster())
			require.Equal(t, "false", w.text("select in_use::text from disks"))
		})
	}
}

// Two facts of one reservation at one moment are numbered one after the other.
func TestTwoIdleDisksOfOneReservationAreBothFreedAndAnnounced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"status": "'expired'"})[0]
	w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'nothing_to_keep')", id)
	w.exec("insert into disks (disk_name, user_id, in_use, reservation_id) values ('d', 'ada', true, $1), ('e', 'ada', true, $1)", id)
	require.Equal(t, 2, w.sweep().Counts["locksReleased"])
	require.Equal(t, []string{"false", "false"}, w.texts("select in_use::text from disks"))
	require.Equal(t, []string{"1", "2"}, w.texts("select sequence::text from expiry.facts where type = $1 order by sequence", event.DiskReleased))
}

func TestADiskIsFreedWhenNothingIsOwedToItsHolder(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		holder   row    // of the disk, nil: none
		settled  bool   // its cleanup
		columns  string // of the disk, further
		values   string
		live     string // the state of another reservation that names the disk, empty: none does
		launched bool   // that one was, once
		volume   bool   // another reservation, which is live, names its volume, and no disk
		open     bool   // a snapshot of it is unsettled
		want     bool
	}{
		"ended and settled":                 {holder: row{"status": "'expired'"}, settled: true, want: true},
		"ended, cleanup not done":           {holder: row{"status": "'expired'"}},
		"active":                            {holder: row{}},
		"ended, another one works on it":    {holder: row{"status": "'expired'"}, settled: true, live: "active"},
		"ended, another one prepares it":    {holder: row{"status": "'expired'"}, settled: true, live: "preparing"},
		"ended, another one waits for it":   {holder: row{"status": "'expired'"}, settled: true, live: "queued", want: true},
		"ended, another one worked on it":   {holder: row{"status": "'expired'"}, settled: true, live: "queued", launched: true},
		"ended, volume named by a live one": {holder: row{"status": "'expired'"}, settled: true, volume: true},
		"no holder, its volume in use":      {columns: ", last_updated, created_at", values: ", now() - interval '2 hours', now() - interval '1 day'", volume: true},
		"ended, snapshot pending":           {holder: row{"status": "'expired'"}, settled: true, open: true},
		"ended, being backed up":            {holder: row{"status": "'expired'"}, settled: true, columns: ", is_backing_up", values: ", true"},
		"no holder, unchanged for long":     {columns: ", last_updated, created_at", values: ", now() - interval '61 minutes', now() - interval '1 day'", want: true},
		"no holder, changed lately":         {columns: ", last_updated, created_at", values: ", now() - interval '59 minutes', now() - interval '1 day'"},
		"no holder, another one prepares":   {columns: ", last_updated, created_at", values: ", now() - interval '2 hours', now() - interval '1 day'", live: "preparing"},
		"no holder, another one waits":      {columns: ", last_updated, created_at", values: ", now() - interval '2 hours', now() - interval '1 day'", live: "queued", want: true},
		"no holder, for how long unknown":   {columns: ", last_updated, created_at", values: ", null, null"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			holder := "null"
			if test.holder != nil {
				id := w.insert(test.holder)[0]
				holder = quote(id)
				if test.settled {
					w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'nothing_to_keep')", id)
				}
			}
			w.exec(fmt.Sprintf("insert into disks (disk_name, user_id, in_use, reservation_id%s) values ('d', 'ada', true, %s%s)", test.columns, holder, test.values))
			if test.live != "" {
				launched := "null"
				if test.launched {
					launched = ago(time.Hour)
				}
				w.insert(row{"disk_name": "'d'", "status": quote(test.live), "launched_at": launched})
			}
			if test.volume {
				w.exec("update disks set ebs_volume_id = 'vol-0123456789abcdef0'")
				w.insert(row{"ebs_volume_id": "'aws://us-east-1a/vol-0123456789abcdef0'"})
			}
			if test.open {
				w.exec("insert into expiry.snapshots (intent_id, user_id, disk_name, state) values (gen_random_uuid(), 'ada', 'd', 'pending')")
			}
			r := w.within(newCluster())
			require.Equal(t, fmt.Sprint(!test.want), w.text("select in_use::text from disks"))
			facts := w.texts("select type from expiry.facts where type = $1", event.DiskReleased)
			if test.want {
				require.Equal(t, 1, r.Counts["locksReleased"])
				require.Len(t, facts, 1)
			} else {
				require.Empty(t, facts)
			}
		})
	}
}

// The platform may delete a reservation that has ended before anybody has seen its end: there is no cleanup then, and its
// server may still write to the disk.
func TestADiskThatNoReservationHasStaysLockedWhileEC2HasAVolumeOfIt(t *testing.T) {
	t.Parallel()
	const its = "vol-0123456789abcdef0"
	tags := disk.Key{User: "ada", Name: "work"}.Tags()
	for name, test := range map[string]struct {
		named   string // by the disk's row
		aside   bool   // the volume was set aside
		change  func(*cluster)
		freed   bool
		left    string // the volume that is reported
		failure string
	}{
		"nothing is there":           {freed: true},
		"what its row names is gone": {named: its, freed: true},
		"its row names one":          {named: "aws://us-east-1a/" + its, change: func(c *cluster) { c.volumes = []disk.Volume{{ID: its, State: disk.VolumeAvailable}} }, left: its},
		"one has its tags":           {change: func(c *cluster) { c.volumes = []disk.Volume{{ID: its, State: disk.VolumeInUse, Tags: tags}} }, left: its},
		"one has its tags, after an empty list": {change: func(c *cluster) {
			c.emptyOnce, c.volumes = true, []disk.Volume{{ID: its, State: disk.VolumeInUse, Tags: tags}}
		}, left: its},
		"its row names one that is gone, another has its tags": {named: "vol-0fedcba9876543210", change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeInUse, Tags: tags}}
		}, left: its},
		"one set aside has its tags": {aside: true, change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeAvailable, Tags: tags}}
		}, freed: true},
		"one set aside is attached": {aside: true, change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeInUse, Tags: tags, Attachments: []disk.Attachment{{InstanceID: "i-1", State: disk.Attached}}}}
		}, left: its},
		"its row names one set aside": {aside: true, named: its, change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeAvailable, Tags: tags}}
		}, left: its},
		"one set aside and another have its tags": {aside: true, change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeAvailable, Tags: tags}, {ID: "vol-0fedcba9876543210", State: disk.VolumeAvailable, Tags: tags}}
		}, left: "vol-0fedcba9876543210"},
		"EC2 is deleting it": {named: its, change: func(c *cluster) { c.volumes = []disk.Volume{{ID: its, State: disk.VolumeDeleting, Tags: tags}} }, freed: true},
		"one of the user's other disk's is there": {change: func(c *cluster) {
			c.volumes = []disk.Volume{{ID: its, State: disk.VolumeInUse, Tags: disk.Key{User: "ada", Name: "other"}.Tags()}}
		}, freed: true},
		"EC2 does not answer":     {change: func(c *cluster) { c.listFails = errors.New("503") }, failure: "ada/work: 503"},
		"another account answers": {change: func(c *cluster) { c.account.ID = "999999999999" }, failure: "another AWS account"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			w.within(c) // and remembers the account
			w.exec(`insert into disks (user_id, disk_name, in_use, ebs_volume_id, last_updated, created_at)
				values ('ada', 'work', true, nullif($1, ''), now() - interval '61 minutes', now() - interval '20 days')`, test.named)
			if test.aside {
				w.exec(`insert into expiry.snapshots (intent_id, user_id, disk_name, state, volume_id, volume_aside_at)
					values (gen_random_uuid(), 'ada', 'work', 'completed', $1, now())`, its)
			}
			if test.change != nil {
				test.change(c)
			}
			r := w.within(c)
			require.Equal(t, fmt.Sprint(!test.freed), w.text("select in_use::text from disks"))
			if test.left == "" {
				require.Empty(t, r.Anomalies)
			} else {
				require.Equal(t, []string{"ada/work: " + test.left}, r.Anomalies[0].Subjects)
			}
			i := slices.IndexFunc(r.Failures, func(f event.PartFailure) bool { return f.Part == "locks" })
			require.Equal(t, test.failure == "", i < 0, r.Failures)
			if i >= 0 {
				require.Contains(t, r.Failures[i].Error, test.failure)
			}
		})
	}
}

func TestALockThatNeedsNoEC2IsFreedBesideOneOfWhichEC2DoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change  func(*cluster)
		dryRun  bool
		failure string
	}{
		"EC2 fails":               {change: func(c *cluster) { c.listFails = errors.New("503") }, failure: "ada/work: 503"},
		"EC2 fails, in a dry run": {change: func(c *cluster) { c.listFails = errors.New("503") }, dryRun: true, failure: "ada/work: 503"},
		"EC2 hangs":               {change: func(c *cluster) { c.hangs = true }, failure: "ada/work: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			w.within(c) // and remembers the account
			id := w.insert(row{"status": "'expired'"})[0]
			w.exec("insert into expiry.cleanups (reservation_id, reason, settled_at, outcome) values ($1, 'expired', now(), 'nothing_to_keep')", id)
			w.exec(`insert into disks (user_id, disk_name, in_use, reservation_id, last_updated, created_at) values
				('ada', 'settled', true, $1, now(), now()), ('ada', 'work', true, null, now() - interval '61 minutes', now() - interval '20 days')`, id)
			test.change(c)
			s := New(w.db, Outside{EC2: c, Account: c}, testOptions())
			s.opts.Timeout, s.parts = 4*time.Second, []part{locks(w.db, c)}
			r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{DryRun: test.dryRun})
			require.NoError(t, err)
			require.Len(t, r.Failures, 1)
			require.Contains(t, r.Failures[0].Error, test.failure)
			want := []string{"ada/settled"}
			if test.dryRun {
				want = nil
				require.Equal(t, "ada/settled", r.Planned[0].Subject)
			}
			require.Equal(t, want, w.texts("select user_id || '/' || disk_name from disks where not in_use"))
		})
	}
}

func TestOfMoreLocksThanOneSweepAsksAboutTheNextAsksAboutTheOthers(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.within(c) // and remembers the account
	for i := range 21 {
		c.volumes = append(c.volumes, disk.Volume{ID: fmt.Sprintf("vol-%017x", i), State: disk.VolumeAvailable})
		w.exec(`insert into disks (user_id, disk_name, in_use, ebs_volume_id, last_updated, created_at)
			values ('ada', $1, true, $2, now() - interval '61 minutes', now() - interval '20 days')`, fmt.Sprintf("disk-%d", i), c.volumes[i].ID)
	}
	now, reported := time.Now(), map[string]bool{}
	for i := range 2 {
		pl, err := locks(w.db, c).plan(t.Context(), &pass{now: now.Add(time.Duration(i) * 5 * time.Minute), snapshots: listSnapshots(c, c)})
		require.NoError(t, err)
		require.Empty(t, pl.decisions)
		require.Equal(t, map[string]int{"locksNotAskedAbout": 1}, pl.counts)
		require.Len(t, pl.anomalies, 1, "those of a kind are reported together")
		require.Equal(t, 20, pl.anomalies[0].Count)
		for _, subject := range pl.anomalies[0].Subjects {
			reported[subject] = true
		}
	}
	require.Len(t, reported, 21)
}

// Without a foreign key a lock goes on naming what the platform has deleted.
func TestALockThatNamesWhatTheTablesDoNotHaveIsLeftForAnHour(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		since string
		freed bool
	}{"lately": {"59 minutes", false}, "long ago": {"61 minutes", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.exec("alter table disks drop constraint disks_reservation_id_fkey")
			w.exec(`insert into disks (user_id, disk_name, in_use, reservation_id, last_updated, created_at)
				values ('ada', 'work', true, 'gone', now() - $1::interval, now() - interval '20 days')`, test.since)
			w.within(newCluster())
			require.Equal(t, fmt.Sprint(!test.freed), w.text("select in_use::text from disks"))
		})
	}
}
