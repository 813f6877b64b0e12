package cleanup_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestOneDeliveryTakesDownAllThatStoodBehindAReservation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)

	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateDone, report.State, report.Error)

	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, []string{"gpu-dev/gpu-dev-other"}, keys(w.pods))
	require.Equal(t, []string{"gpu-dev/everybody"}, keys(w.services), "a service that selects another pod too stays")
	require.True(t, w.outside.volumes["pv-alice"].Retained())
	require.Empty(t, w.records)
	require.Empty(t, w.rules)
	require.Empty(t, w.groups)
	require.Equal(t, "1.2G\t/home/dev\nwork\n  notes.txt\n", w.objects["alice/default/"+id+".txt"])
	require.Contains(t, w.files[podName+"/RESERVATION_ENDED.txt"], id)
	require.Zero(t, read[int](t, w, "select count(*)::int from domain_mappings"))
	require.Zero(t, read[int](t, w, "select count(*)::int from alb_target_groups"))
	require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
	require.Equal(t, 1, read[int](t, w, "select count(*)::int from expiry.follow_ups where kind = 'availability.update' and state = 'due'"))
	require.Equal(t, []string{"1.2G", "s3://bucket/alice/default/" + id + ".txt", "uid-1", host, "disk-alice", "pv-alice"}, read[[]string](t, w,
		"select array[disk_size, content_key, pod_uid, instance_id, claim_name, pv_name] from expiry.cleanups"))
	require.Equal(t, "uid-1", read[string](t, w, "select uid from expiry.pods where reservation_id = $1", id))
	for _, s := range postgres.Steps() {
		require.NotContains(t, w.step(t, s), "open")
	}
	require.NotContains(t, w.step(t, postgres.StepIdentify), "former life")

	inOrder := []string{"get pv pv-alice", "write RESERVATION_ENDED.txt", "list disk", "retain pv pv-alice",
		"delete service " + podKey + "-ssh", "delete pod " + podKey, "keep " + volume}
	at := -1
	for _, call := range inOrder {
		next := slices.Index(w.calls, call)
		require.Greater(t, next, at, "%s in its turn, of %v", call, w.calls)
		at = next
	}
}

func TestASettledCleanupDoesNothingMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.deliver(t.Context(), t)
	w.calls = nil

	require.Equal(t, followup.StateAlready, w.deliver(t.Context(), t).State)
	asked, err := w.db.EnsureCleanup(t.Context(), id)
	require.NoError(t, err)
	require.False(t, asked)
	w.exec(t, "update expiry.follow_ups set state = 'due' where kind = 'cleanup'") // asked for again all the same
	require.Equal(t, postgres.OutcomeReleased, w.deliver(t.Context(), t).Outcome)
	require.Empty(t, w.calls)
	require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
}

func TestTroubleOnOneSideDelaysNoOther(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		fails   string            // prefix of the calls that fail
		open    postgres.Step     // the one step left open
		outcome string            // of the cleanup, after that delivery
		stays   func(*world) bool // what must still be there
	}{
		"DNS":           {"delete records", postgres.StepDNS, "open", func(w *world) bool { return w.records[fqdn] && len(w.pods) == 1 }},
		"rule":          {"delete rule", postgres.StepLoadBalancer, "open", func(w *world) bool { return w.rules["rule-1"] && len(w.pods) == 1 }},
		"services":      {"list services", postgres.StepServices, "open", func(w *world) bool { return len(w.services) == 3 && len(w.pods) == 1 }},
		"the last file": {"write", "", postgres.OutcomeReleased, func(w *world) bool { return len(w.pods) == 1 }},
		"the listing":   {"list disk", "", postgres.OutcomeReleased, func(w *world) bool { return len(w.pods) == 1 }},
		"the bucket":    {"put", "", postgres.OutcomeReleased, func(w *world) bool { return len(w.pods) == 1 }},
		"retaining":     {"retain", postgres.StepRetain, "open", func(w *world) bool { return len(w.pods) == 2 && len(w.records) == 0 && len(w.rules) == 0 }},
		"the claim":     {"get claim", postgres.StepIdentify, "open", func(w *world) bool { return len(w.pods) == 2 && len(w.records) == 0 }},
		"the pod":       {"delete pod", postgres.StepPod, "open", func(w *world) bool { return len(w.pods) == 2 && len(w.records) == 0 && len(w.groups) == 0 }},
		"the volume":    {"keep", postgres.StepDisk, "open", func(w *world) bool { return len(w.pods) == 1 && len(w.records) == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.request(t)
			w.before = func(call string) error {
				if strings.HasPrefix(call, c.fails) {
					return broken
				}
				return nil
			}

			report := w.deliver(t.Context(), t)
			require.Equal(t, c.outcome, w.outcome(t))
			require.True(t, c.stays(w), "left: %s", w.state())
			if c.open != "" {
				require.Equal(t, followup.StateFailed, report.State)
				require.Contains(t, report.Error, string(c.open))
				require.Contains(t, w.step(t, c.open), "open: ")
				require.Contains(t, w.step(t, c.open), "broken")
				require.Zero(t, w.facts(t, event.ReservationCleanedUp), "not while a step is open")
			}

			w.before = nil
			w.deliver(t.Context(), t)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
			require.Equal(t, []string{"gpu-dev/gpu-dev-other"}, keys(w.pods))
			if c.open != "" {
				require.Equal(t, 1, read[int](t, w, "select attempts from expiry.cleanup_steps where step = $1", c.open), "the failure stays on record")
			}
		})
	}
}

func TestAListingThatCannotBeHadIsRecordedAsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	tries := 0
	w.before = func(call string) error {
		if call == "list disk" {
			tries++
			return errors.New("exec hangs")
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Equal(t, 2, tries)
	require.Equal(t, "missing: exec hangs", w.step(t, postgres.StepListing))
}

func TestATargetGroupInUseIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.groups["group-1"] = 100 // more often than a delivery tries
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, w.step(t, postgres.StepLoadBalancer), "in use")
	require.Equal(t, 1, read[int](t, w, "select count(*)::int from alb_target_groups"), "the row stays until the group is gone")
	require.Equal(t, []string{"gpu-dev/gpu-dev-other"}, keys(w.pods))

	w.groups["group-1"] = 0
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestWithoutAZoneOnlyTheRowsOfTheReservationsDomainsGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "insert into reservations (reservation_id, user_id, status, domain_name) values ('newer', 'bob', 'active', 'Sly-Fox')")
	w.exec(t, "insert into domain_mappings (domain_name, reservation_id) values ('calm-cat', 'newer'), ('sly-fox', $1)", id)
	w.request(t)
	w.build(func(parts *cleanup.World) { parts.DNS = nil })
	w.deliver(t.Context(), t)
	require.Contains(t, w.step(t, postgres.StepDNS), "HOSTED_ZONE_ID or DOMAIN_NAME is not set; grumpy-bear: 0 records; sly-fox is another's by now")
	require.Equal(t, "calm-cat sly-fox", read[string](t, w, "select string_agg(domain_name, ' ' order by domain_name) from domain_mappings"))
	require.True(t, w.records[fqdn])
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestWithoutABucketTheSizeIsKeptAllTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.build(func(parts *cleanup.World) { parts.Bucket = nil })
	w.deliver(t.Context(), t)
	require.Equal(t, "skipped: DISK_CONTENTS_BUCKET is not set", w.step(t, postgres.StepListing))
	require.Equal(t, "1.2G", read[string](t, w, "select disk_size from expiry.cleanups"))
}

func TestAReservationCancelledFromTheQueueFreesItsDiskAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reserve(t, id)
	w.exec(t, "update reservations set status = 'cancelled', launched_at = null, ebs_volume_id = null, domain_name = null")
	w.request(t)

	require.Equal(t, followup.StateDone, w.deliver(t.Context(), t).State)
	require.Equal(t, postgres.OutcomeNothingToKeep, w.outcome(t))
	require.False(t, read[bool](t, w, "select in_use or reservation_id is not null from disks"))
	require.Equal(t, 1, w.facts(t, event.DiskReleased))
	require.Zero(t, read[int](t, w, "select count(*)::int from expiry.follow_ups where kind = 'availability.update'"))
	require.False(t, w.made("keep "+volume), "what it never ran with it has not written to")
	require.Equal(t, "nothing_to_do: ", w.step(t, postgres.StepServices))
}

func TestADiskThatALiveReservationHasIsNotReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reserve(t, id)
	w.exec(t, "update reservations set launched_at = null, ebs_volume_id = null")
	w.exec(t, "insert into reservations (reservation_id, user_id, status, disk_name) values ('newer', 'alice', 'preparing', 'default')")
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeSuperseded, w.outcome(t))
	require.True(t, read[bool](t, w, "select in_use from disks"))
	require.Zero(t, w.facts(t, event.DiskReleased))
}

func TestADiskHandedToItsSnapshotLetsTheCleanupWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	var handed postgres.CleanupRecord
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		handed = c
		return followup.Done("snapshot_pending"), nil
	}
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateDone, report.State)
	require.Equal(t, "snapshot_pending", report.Outcome)
	require.Equal(t, "open", w.outcome(t))

	require.NoError(t, release(t.Context(), w.db, w.sql, handed, "snap-1"))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t), "the last step settles the cleanup, whoever finishes it")
	require.Equal(t, 1, w.facts(t, event.ReservationCleanedUp))
}

func TestTheDiskDoesNotWaitForOtherSteps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	var handed postgres.CleanupRecord
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		handed = c
		return followup.Done("snapshot_pending"), nil
	}
	w.before = func(call string) error {
		if strings.HasPrefix(call, "delete records") {
			return errors.New("throttled")
		}
		return nil
	}
	require.Equal(t, followup.StateFailed, w.deliver(t.Context(), t).State)
	require.NoError(t, release(t.Context(), w.db, w.sql, handed, "snap-1"))
	require.Equal(t, "open", w.outcome(t))
	w.before = nil
	require.Equal(t, followup.StateDone, w.deliver(t.Context(), t).State)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestADiskThatWaitsKeepsTheCleanupDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.keep = func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(7), nil }
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StatePostponed, report.State)
	require.EqualValues(t, 7, report.Next)
}

func TestADisksNameIsFoundWhereTheRowLacksIt(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	for name, c := range map[string]struct {
		prepare func(*testing.T, *world)
		want    string
	}{
		"in the disks table": {func(*testing.T, *world) {}, "default"},
		"in the disks table, by its volume": {func(t *testing.T, w *world) {
			w.exec(t, "update disks set reservation_id = null, ebs_volume_id = 'aws://us-east-1a/' || $1", volume)
		}, "default"},
		"in the volume's tags": {func(t *testing.T, w *world) {
			w.exec(t, "delete from disks")
			w.tags = map[string]string{"disk_name": "tagged"}
		}, "tagged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.exec(t, "update reservations set disk_name = null")
			c.prepare(t, w)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.want, read[string](t, w, "select disk_name from expiry.cleanups"))
			require.Contains(t, keys(w.objects), "alice/"+c.want+"/"+id+".txt")
		})
	}
}

func TestTheVolumeIsFoundWhereTheRowLacksIt(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	for name, c := range map[string]struct {
		prepare func(*testing.T, *world)
		from    string
	}{
		"the row, in its in-tree form": {func(t *testing.T, w *world) {
			w.exec(t, "update reservations set ebs_volume_id = 'aws://us-east-1a/' || $1", volume)
		}, "volume " + volume + " by the row"},
		"the pod's claim": {func(t *testing.T, w *world) {
			w.exec(t, "update reservations set ebs_volume_id = 'None'")
			w.exec(t, "update disks set ebs_volume_id = null")
		}, "volume " + volume + " by the pod"},
		"the pod itself": {func(t *testing.T, w *world) {
			w.exec(t, "update reservations set ebs_volume_id = null")
			p := w.pods[podKey]
			p.Claims, p.HomeClaim, p.VolumeIDs, p.HomeVolumeID = nil, "", []string{volume}, volume
			w.pods[podKey] = p
		}, "volume " + volume + " by the pod"},
		"the disk that it holds": {func(t *testing.T, w *world) {
			w.exec(t, "update reservations set ebs_volume_id = null")
			delete(w.pods, podKey)
		}, "volume " + volume + " by the disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			c.prepare(t, w)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Contains(t, w.step(t, postgres.StepIdentify), c.from)
			require.True(t, w.made("keep "+volume))
		})
	}
}
