package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// scenarios are ways for a disk to go, each up to an end that is the same however often a process dies on the way.
var scenarios = map[string]struct {
	options snapshot.Options
	arrange func(t *testing.T, w *world)
	want    func(w *world) row
	volume  bool // is there in the end
	outcome string
	facts   string
}{
	"deleted": {outcome: postgres.OutcomeReleased},
	"kept": {
		options: snapshot.Options{KeepVolumes: true}, volume: true, outcome: postgres.OutcomeReleased,
		want: func(w *world) row { r := released; r.Volume = w.volume; return r },
	},
	"set aside": {
		arrange: func(t *testing.T, w *world) {
			w.exec(t, "update expiry.cleanups set detach_forced_at = now()")
		},
		volume: true, outcome: postgres.OutcomeReleased,
	},
	"lost": {
		arrange: func(t *testing.T, w *world) {
			w.vanish(t)
		},
		want: func(*world) row { return row{} }, outcome: postgres.OutcomeLost, facts: "disk.released reservation.cleanedUp",
	},
}

// TestAProcessMayDieAnywhere kills the process before and after each of its calls to the world outside, lets others go
// on, and compares the end with that of one that lived.
func TestAProcessMayDieAnywhere(t *testing.T) {
	t.Parallel()
	type point struct {
		k     int
		after bool
	}
	shared := newGround(t)
	var tried atomic.Int32
	t.Cleanup(func() { t.Logf("%d calls of a disk died at", tried.Load()) })
	for name, s := range scenarios {
		run := func(t *testing.T, before, after func(string) error) *world {
			w := shared.world(t)
			w.use(s.options)
			if s.arrange != nil {
				s.arrange(t, w)
			}
			w.reset(before, after)
			return w
		}
		check := func(t *testing.T, w *world) {
			want := released
			if s.want != nil {
				want = s.want(w)
			}
			require.Equal(t, want, w.disk(t))
			require.Equal(t, s.volume, w.exists(t))
			require.False(t, w.objects(t))
			require.Equal(t, s.outcome, w.outcome(t))
			facts := s.facts
			if facts == "" {
				facts = "disk.snapshotted disk.released reservation.cleanedUp"
			}
			require.Equal(t, facts, w.facts(t))
			require.LessOrEqual(t, w.count("CreateSnapshot"), 1, "and none that did not take effect")
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole := run(t, nil, nil)
			whole.settle(t, 2)
			calls := whole.calls
			check(t, whole)
			first := 0
			if name != "deleted" { // until the snapshot all go the same way
				first = slices.Index(calls, "CreateSnapshot") + 1
			}
			var points []point
			for k := first; k < len(calls); k++ {
				points = append(points, point{k, false})
				if !onlyLooks(calls[k]) { // else it is no different from before the next one
					points = append(points, point{k, true})
				}
			}
			for _, p := range stacktest.CrashPoints(t, points, 5) {
				t.Run(fmt.Sprintf("%s %d %s", map[bool]string{false: "before", true: "after"}[p.after], p.k+1, calls[p.k]), func(t *testing.T) {
					t.Parallel()
					tried.Add(1)
					ctx, kill := context.WithCancel(t.Context())
					defer kill()
					n := 0
					die := func(string) error {
						if n++; n == p.k+1 {
							kill()
						}
						return ctx.Err()
					}
					var w *world
					if p.after {
						w = run(t, nil, die)
					} else {
						w = run(t, die, nil)
					}
					w.dieAt(ctx, t)
					w.reset(nil, nil)
					w.calls = nil
					for range 3 { // an intent may be in doubt: it gets its time
						w.settle(t, 2)
						w.age(t, 3*time.Minute)
					}
					w.settle(t, 2)
					made := w.made(t)
					if s.outcome == postgres.OutcomeReleased {
						require.Len(t, made, 1, "%s", w.snapshots(t))
					}
					check(t, w)
				})
			}
		})
	}
}

func onlyLooks(call string) bool {
	return strings.HasPrefix(call, "Describe") || strings.HasPrefix(call, "Get") || strings.HasPrefix(call, "Find") || call == "ClusterUID"
}

// dieAt brings what is due until the context ends.
func (w *world) dieAt(ctx context.Context, t *testing.T) {
	t.Helper()
	for range 3 {
		for _, kind := range []postgres.FollowUpKind{postgres.Cleanup, postgres.SnapshotSync} {
			key := read[string](t, w, "select coalesce(max(key), '') from expiry.follow_ups where kind = $1 and state = 'due'", string(kind))
			if key != "" && ctx.Err() == nil {
				w.deliverKey(ctx, t, kind, key)
			}
		}
	}
	// The last of Kubernetes' objects may be gone by itself before the last call comes; all others die.
	require.True(t, ctx.Err() != nil || w.count("DeleteClaim") > 0, "it was to die")
	// Nobody waits for the lease of a dead process.
	w.exec(t, "update expiry.follow_ups set lease_expires_at = null, lease_token = null where state = 'due'")
}

// TestADiskTakenOverAtAnyMomentIsLeftAlone has the platform hand the disk to a newer reservation before each of the
// calls to the world outside. From the moment at which it has, nothing of the disk is touched (see touch), and the new
// holder keeps it.
func TestADiskTakenOverAtAnyMomentIsLeftAlone(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	whole := shared.world(t)
	whole.settle(t, 2)
	for k, name := range whole.calls {
		t.Run(fmt.Sprintf("before %d %s", k+1, name), func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			n := 0
			taken := make(chan error, 1)
			w.reset(func(string) error {
				if n++; n == k+1 {
					go func() { taken <- w.takeOver(context.WithoutCancel(t.Context())) }()
					w.waitUntilTakenOrWaiting(t)
				}
				return nil
			}, nil)
			w.settle(t, 4)
			require.NoError(t, <-taken)
			w.settle(t, 4)

			got := w.disk(t)
			if got.Holder == w.newer {
				require.True(t, got.InUse)
			} else {
				t.Fatalf("the new holder has lost the disk: %+v", got)
			}
			require.Zero(t, got.Pending)
			require.False(t, got.BackingUp)
			require.Contains(t, []string{postgres.OutcomeSuperseded, postgres.OutcomeReleased}, w.outcome(t))
			require.Equal(t, w.count("CreateSnapshot"), got.Snapshots, "what was made is counted")
		})
	}
}

// waitUntilTakenOrWaiting returns once the platform has the disk, or waits for the lock that we hold.
func (w *world) waitUntilTakenOrWaiting(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		return read[bool](t, w, `
			select exists (select from disks where reservation_id = $1)
			    or exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
			               and query like 'update disks set in_use = true%')`, w.newer)
	}, 10*time.Second, 2*time.Millisecond)
}

func TestWhatSupersedesACleanup(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct {
		meanwhile string // what the platform writes, $1 being the newer reservation and $2 the volume
		goesOn    bool
	}{
		"in use by a newer one":            {"update disks set reservation_id = $1 where $2 <> ''", false},
		"released by somebody":             {"update disks set in_use = false, reservation_id = null where $1 <> $2", false},
		"marked free, holder kept":         {"update disks set in_use = false where $1 <> $2", false},
		"locked for nobody":                {"update disks set reservation_id = null where $1 <> $2", false},
		"a queued one names the volume":    {"update reservations set ebs_volume_id = $2 where reservation_id = $1", false},
		"one names it in the in-tree form": {"update reservations set ebs_volume_id = 'aws://us-east-1a/' || $2, status = 'active' where reservation_id = $1", false},
		"an active one has the disk":       {"update reservations set user_id = 'alice', disk_name = 'work', status = 'active' where reservation_id = $1 and $2 <> ''", false},
		"a queued one waits for the disk":  {"update reservations set disk_name = 'work' where reservation_id = $1 and $2 <> ''", true},
		"an ended one had the volume":      {"update reservations set ebs_volume_id = $2, status = 'cancelled' where reservation_id = $1", true},
		"another's disk of that name":      {"insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) select 'bob', 'work', true, $1, 'vol-0f0f0f0f' where $2 <> ''", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.exec(t, c.meanwhile, w.newer, w.volume)
			before := w.disk(t)
			w.settle(t, 4)
			if c.goesOn {
				require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
				require.Equal(t, released, w.disk(t))
				return
			}
			require.Equal(t, postgres.OutcomeSuperseded, w.outcome(t))
			require.Equal(t, before, w.disk(t))
			require.Equal(t, 1, w.attachments(t))
			require.True(t, w.objects(t))
			require.Empty(t, w.made(t))
			require.Zero(t, w.count("DetachVolume"))
			require.Equal(t, "reservation.cleanedUp", w.facts(t))
		})
	}
}

// The platform mistakes one volume for another. Settled as superseded the disk would be locked for nothing, and be released
// with what was written to the volume in no snapshot.
func TestWhileRowsOfAnotherDiskNameTheVolumeNothingIsTouchedAndSomebodyIsTold(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct{ meanwhile, right string }{
		"the disk's": {"insert into disks (user_id, disk_name, ebs_volume_id) select 'bob', 'other', $2 where $1 <> ''", "delete from disks where user_id = 'bob'"},
		"a live reservation's": {"update reservations set disk_name = 'other', ebs_volume_id = $2, status = 'active' where reservation_id = $1",
			"update reservations set ebs_volume_id = null where disk_name = 'other'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.exec(t, c.meanwhile, w.newer, w.volume)
			before := w.disk(t)
			w.settle(t, 2)
			require.Equal(t, "open", w.outcome(t))
			require.Contains(t, read[string](t, w, "select last_error from expiry.follow_ups where kind = 'cleanup'"), "stays locked until")
			require.Equal(t, before, w.disk(t))
			require.Equal(t, 1, w.attachments(t))
			require.Empty(t, w.made(t))
			require.Zero(t, w.count("DetachVolume"))
			w.exec(t, c.right)
			w.settle(t, 4)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.Equal(t, released, w.disk(t))
		})
	}
}

func TestADiskWithoutARowIsAskedForToo(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct {
		meanwhile string
		outcome   string
	}{
		"nobody has the volume":         {"select $1::text, $2::text", postgres.OutcomeReleased},
		"another disk has the volume":   {"insert into disks (user_id, disk_name, ebs_volume_id) select 'bob', 'other', $2 where $1 <> ''", postgres.OutcomeSuperseded},
		"a live one has the volume":     {"update reservations set ebs_volume_id = $2, status = 'active' where reservation_id = $1", postgres.OutcomeSuperseded},
		"a live one has a disk like it": {"update reservations set disk_name = 'work', status = 'active' where reservation_id = $1 and $2 <> ''", postgres.OutcomeSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			w.exec(t, "delete from disks")
			w.exec(t, c.meanwhile, w.newer, w.volume)
			w.settle(t, 4)
			require.Equal(t, c.outcome, w.outcome(t))
			require.Equal(t, c.outcome == postgres.OutcomeSuperseded, w.exists(t))
		})
	}
}

func TestTroubleOutsideEndsAndTheDiskIsFree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Fail(
		stacktest.Fault{Action: "ec2:DescribeVolumes", Skip: 1, Times: 8, Code: "RequestLimitExceeded"},
		stacktest.Fault{Action: "ec2:DetachVolume", Times: 6, Code: "Unavailable"},
		stacktest.Fault{Action: "ec2:DescribeSnapshots", Times: 6, Drop: true},
		stacktest.Fault{Action: "ec2:DeleteVolume", Times: 4, After: true, Drop: true},
	)
	broken := 3
	w.reset(func(call string) error {
		if call == "GetVolume" || call == "DeleteClaim" {
			if broken--; broken >= 0 {
				return errors.New("the API server is away")
			}
		}
		return nil
	}, nil)
	for range 12 {
		w.settle(t, 1)
		w.age(t, 3*time.Minute)
	}
	w.settle(t, 3)
	require.Equal(t, released, w.disk(t))
	require.False(t, w.exists(t))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Len(t, w.made(t), 1)
}
