package cleanup_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// secondLife gives the reservation a second pod, whose home is on the second volume, and has its user cancel it. No
// sweep has seen it live.
func (w *world) secondLife(t *testing.T) {
	t.Helper()
	w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour', settled_at = settled_at - interval '1 hour'")
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp()")
	w.exec(t, "update disks set in_use = true, reservation_id = $1", id)
	p := w.pod("uid-2")
	p.Created = w.now().Add(-3 * time.Minute).UTC()
	w.pods[podKey] = p
	w.claims["gpu-dev/disk-alice"] = pod.Claim{Namespace: "gpu-dev", Name: "disk-alice", UID: "claim-2", VolumeName: "pv-2"}
	w.volumes["pv-2"] = pod.PersistentVolume{Name: "pv-2", UID: "pv-uid-2", VolumeID: secondVolume, ClaimName: "disk-alice", ClaimNamespace: "gpu-dev"}
}

// seePod has a sweep find the second pod, as its part `strays` does.
func (w *world) seePod(t *testing.T) (asked bool) {
	t.Helper()
	return w.listPod(t, w.pods[podKey], func() {})
}

// listPod has a sweep list a pod, and ask for its cleanup after what happens meanwhile.
func (w *world) listPod(t *testing.T, p pod.Pod, meanwhile func()) (asked bool) {
	t.Helper()
	seen := postgres.SeenPod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Created: p.Created}
	lease, _, _, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	meanwhile()
	asked, err = w.db.CleanUpAgain(t.Context(), lease, id, seen, "its pod is there")
	require.NoError(t, err)
	w.exec(t, "update expiry.sweep_lease set expires_at = '-infinity'")
	return asked
}

func TestACleanupThatHasSeenThePodGoneSinceItWasListedStaysSettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	p := w.pods[podKey]
	require.False(t, w.listPod(t, p, func() {
		w.deliver(t.Context(), t)
		require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	}))
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.True(t, w.listPod(t, p, func() {}), "it is there after all")
}

func TestTheVolumeOfASecondLifeIsKeptWhicheverTheFirstOneHad(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]string{"the row names none": "null", "the row names the former": "'" + volume + "'"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))

			w.secondLife(t)
			w.exec(t, "update reservations set ebs_volume_id = "+row)
			require.True(t, w.seePod(t))
			w.deliver(t.Context(), t)
			require.NotContains(t, keys(w.pods), podKey)
			require.True(t, w.made("keep "+secondVolume))
		})
	}
}

func TestAnUnsettledCleanupBeginsAnewForASecondPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.keep = func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(time.Minute), nil }
	w.request(t)
	w.deliver(t.Context(), t)
	w.secondLife(t)
	w.exec(t, "update reservations set cancelled_at = null") // whoever cancelled it wrote the status alone
	require.True(t, w.seePod(t))
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.pods), podKey)
	c, _, err := w.db.LoadCleanup(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, secondVolume, c.VolumeID)
	require.Contains(t, w.step(t, postgres.StepIdentify), "volume "+volume+" of its former life is left as it is")
}

func TestALifeWithoutAPodLeavesTheFormerVolumeToBeKept(t *testing.T) {
	t.Parallel()
	for name, live := range map[string]bool{"seen live": true, "a date tells": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.keep = func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(time.Minute), nil }
			w.request(t)
			w.deliver(t.Context(), t)
			w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour', writer_gone_at = now()")
			w.exec(t, "update reservations set status = 'active'")
			if live {
				w.deliver(t.Context(), t)
			}
			w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp()")
			w.calls = nil
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+volume))
			c, _, err := w.db.LoadCleanup(t.Context(), id)
			require.NoError(t, err)
			require.Zero(t, c.WriterGoneAt, "what was proven of its former life is forgotten")
		})
	}
}

func TestACleanupWhoseVolumeTheRowNamedLateIsOverOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	delete(w.pods, podKey)
	w.exec(t, "update reservations set disk_name = null")
	w.exec(t, "update disks set in_use = false, reservation_id = null")
	w.request(t)
	w.exec(t, "insert into expiry.cleanup_steps (reservation_id, step, finished_at, outcome) values ($1, 'identify', now(), 'missing')", id)
	w.exec(t, "update reservations set ebs_volume_id = $1", volume)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	asked, err := w.db.EnsureCleanup(t.Context(), id)
	require.NoError(t, err)
	require.False(t, asked)
}

// The second pod has its user's home on none of its volumes that anybody could name.
func TestWhichVolumeASecondLifeIsKeptOnWhereItsPodDoesNotTell(t *testing.T) {
	t.Parallel()
	const third = "vol-0123456789abcdef2"
	for name, test := range map[string]struct {
		disk   string            // the volume that its row names now
		claims map[string]string // of the second pod
		tagged disk.Volume
		want   string
	}{
		"its only one is another's": {"", map[string]string{"data": secondVolume},
			disk.Volume{ID: secondVolume, Tags: disk.Key{User: "bob", Name: "x"}.Tags()}, volume},
		"so it is, and the disk names the former": {volume, map[string]string{"data": secondVolume},
			disk.Volume{ID: secondVolume, Tags: disk.Key{User: "bob", Name: "x"}.Tags()}, volume},
		"the disk and the tags name one of them": {secondVolume, map[string]string{"a": secondVolume, "b": third},
			disk.Volume{ID: secondVolume, Tags: disk.Key{User: "alice", Name: "default"}.Tags()}, secondVolume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.keep = func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(time.Minute), nil }
			w.request(t)
			w.deliver(t.Context(), t)
			w.exec(t, "update reservations set status = 'active'")
			w.deliver(t.Context(), t)
			w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp()")
			w.exec(t, "update disks set ebs_volume_id = nullif($1, '')", test.disk)
			p := w.pod("uid-2")
			p.HomeClaim, p.Claims = "", nil
			for claim, v := range test.claims {
				p.Claims = append(p.Claims, claim)
				w.claims["gpu-dev/"+claim] = pod.Claim{Namespace: "gpu-dev", Name: claim, UID: "uid-" + claim, VolumeName: "pv-" + claim}
				w.volumes["pv-"+claim] = pod.PersistentVolume{Name: "pv-" + claim, UID: "uid-pv-" + claim, VolumeID: v, ClaimName: claim, ClaimNamespace: "gpu-dev"}
			}
			w.pods[podKey] = p
			w.tagged = append(w.tagged, disk.Volume{ID: volume}, test.tagged)
			w.calls = nil
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+test.want), w.step(t, postgres.StepIdentify))
		})
	}
}

func TestAVanishedReservationsSecondLifeKeepsTheNameOfItsDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	w.secondLife(t)
	require.True(t, w.seePod(t))
	w.exec(t, "delete from domain_mappings")
	w.exec(t, "delete from alb_target_groups")
	w.exec(t, "update disks set reservation_id = null, ebs_volume_id = null")
	w.exec(t, "delete from reservations")
	w.deliver(t.Context(), t)
	c, _, err := w.db.LoadCleanup(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, "default", c.DiskName)
	require.True(t, c.Launched)
	require.Equal(t, "skipped: the reservation's row is gone", w.step(t, postgres.StepNotice))
}

func TestTheDateOfTheFirstEndHidesNoPodOfASecondLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	w.secondLife(t)
	w.exec(t, "update expiry.cleanups set revived_at = now() - interval '20 minutes'") // by a sweep
	w.exec(t, "update reservations set reservation_ended = now() - interval '1 hour', cancelled_at = null")
	w.request(t)
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.pods), podKey)
	require.True(t, w.made("keep "+secondVolume))
}

func TestAPodSeenAsAnothersIsNotAnnouncedAtEachTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp()")
	p := w.pod("uid-9")
	p.Created = w.now().Add(-3 * time.Minute)
	w.pods[podKey] = p
	w.exec(t, "insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ('uid-9', 'deleted', 'gpu-dev', $1, now() - interval '3 minutes')", podName)
	for range 4 {
		w.seePod(t)
		w.deliver(t.Context(), t)
	}
	require.LessOrEqual(t, w.facts(t, "dev.gpudev.reservation.cleanedUp.v1"), 2)
}

// The first life's volume is gone, and nothing names the second one's but its tags.
func TestAFormerVolumeThatIsGoneDoesNotHideTheOneWithTheDisksTags(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"there is one": secondVolume, "there is none": volume} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.keep = func(postgres.CleanupRecord) (followup.Result, error) { return followup.LookAgain(time.Minute), nil }
			w.request(t)
			w.deliver(t.Context(), t)
			w.exec(t, "update reservations set status = 'active'")
			w.deliver(t.Context(), t)
			w.exec(t, "update reservations set status = 'cancelled', cancelled_at = clock_timestamp()")
			if want == secondVolume {
				w.tagged = []disk.Volume{{ID: secondVolume, CreatedAt: w.now().Add(-10 * time.Minute), Tags: disk.Key{User: "alice", Name: "default"}.Tags()}}
			}
			w.before = func(call string) error {
				if call == "describe volume "+volume {
					return fault.Errorf(fault.Gone, "no volume %s", volume)
				}
				return nil
			}
			w.calls = nil
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+want), "%s; %v", w.step(t, postgres.StepIdentify), w.calls)
			require.Contains(t, w.step(t, postgres.StepIdentify), "volume "+volume+" is no disk's any more")
		})
	}
}

func TestAVolumeSetAsideIsNotTheDiskThoughTheRowNamesIt(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]string{
		"the pod has another":    "update disks set ebs_volume_id = null",
		"the disk names another": `update disks set ebs_volume_id = '` + secondVolume + `'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			w.exec(t, `insert into expiry.snapshots (intent_id, user_id, disk_name, volume_id, state, volume_aside_at)
				values (gen_random_uuid(), 'alice', 'default', $1, 'completed', now())`, volume)
			w.tagged = []disk.Volume{{ID: volume, Tags: disk.Key{User: "alice", Name: "default"}.Tags()}, {ID: secondVolume}}
			w.secondLife(t)
			require.True(t, w.seePod(t))
			w.exec(t, left)
			if name == "the disk names another" {
				delete(w.pods, podKey)
			}
			w.calls = nil
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+secondVolume), w.step(t, postgres.StepIdentify))
			require.Equal(t, volume, read[string](t, w, "select misnamed_volume_id from expiry.cleanups"))
			require.Contains(t, w.step(t, postgres.StepIdentify), "the row names volume "+volume)
		})
	}
}
