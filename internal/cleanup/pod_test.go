package cleanup_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestThePodOfANewerReservationIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	newer := w.pod("uid-2")
	newer.Created = w.now().UTC().Add(time.Minute + time.Second) // past the clocks' tolerance after the end
	w.pods[podKey] = newer
	ssh := w.services[podKey+"-ssh"]
	ssh.Created = newer.Created
	w.services[podKey+"-ssh"] = ssh
	w.exec(t, "update reservations set reservation_ended = now() - interval '2 minutes'")
	w.request(t)
	w.deliver(t.Context(), t)

	require.Contains(t, keys(w.pods), podKey)
	require.Contains(t, keys(w.services), podKey+"-ssh")
	require.Contains(t, w.step(t, postgres.StepPod), "already_gone: pod "+podKey+": created")
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t), "ours is gone all the same")
	require.Empty(t, w.files)
}

func TestAPodWhoseNameALiveReservationHasBlocksItsCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "insert into reservations (reservation_id, user_id, status) values ('deadbeef-ffff', 'bob', 'preparing')")
	w.request(t)
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, w.step(t, postgres.StepIdentify), "a live reservation has pod name "+podName)
	require.Contains(t, keys(w.pods), podKey)
	require.False(t, w.made("keep "+volume), "a pod that may be ours may still write")

	w.exec(t, "update reservations set status = 'cancelled' where reservation_id = 'deadbeef-ffff'")
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestAPodSeenAsALiveReservationsOwnHoldsNoOthersCleanupUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "insert into reservations (reservation_id, user_id, status) values ('deadbeef-ffff', 'bob', 'active')")
	w.exec(t, "insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ('uid-1', 'deadbeef-ffff', 'gpu-dev', $1, now())", podName)
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Contains(t, keys(w.pods), podKey)
	require.Empty(t, w.files, "nothing is said to bob")
}

func TestAPodOfWhichNobodyKnowsWhoseItIsStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set created_at = 'infinity'")
	w.request(t)
	require.Equal(t, followup.StateFailed, w.deliver(t.Context(), t).State)
	require.Contains(t, keys(w.pods), podKey)

	// Seen while the reservation was live, its UID tells.
	w.exec(t, "insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ('uid-1', $1, 'gpu-dev', $2, now())", id, podName)
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.pods), podKey)
}

func TestAPodOfWhichNobodyKnowsWhoseItIsHoldsNothingUpWithoutTheDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	p := w.pod("uid-1")
	p.Claims, p.Created = nil, time.Now().Add(-90*time.Second) // after the end, within the clocks' tolerance
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Contains(t, keys(w.pods), podKey)
	require.Contains(t, w.step(t, postgres.StepPod), "within the clocks' tolerance")
}

func TestInAnotherClusterNothingIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.uid = "cluster-2"
	clear(w.pods)
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "another cluster answers")
	require.Equal(t, "null", read[string](t, w, "select coalesce(pod_gone_at::text, 'null') from expiry.cleanups"))
	require.False(t, w.made("keep "+volume))
	require.Empty(t, w.records, "DNS has nothing to do with it")
	require.Contains(t, w.step(t, postgres.StepIdentify), "open: ", "nothing is known by what it says")

	w.exec(t, "delete from expiry.cluster")
	require.Contains(t, w.deliver(t.Context(), t).Error, "no sweep has recorded yet")
}

func TestAClusterThatBecomesAnotherInMidDeliveryProvesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.after = func(call string) error {
		if call == "list disk" {
			w.mu.Lock()
			w.uid = "cluster-2"
			clear(w.pods)
			w.mu.Unlock()
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Contains(t, w.step(t, postgres.StepPod), "open: another cluster answers")
	require.False(t, w.made("keep "+volume))
}

func TestAnyPodSeenServingTheReservationIsItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set created_at = 'infinity'") // so that only the UID can tell
	w.exec(t, `insert into expiry.pods (uid, reservation_id, namespace, name, created_at, first_seen_at)
		values ('uid-1', $1, 'gpu-dev', $2, now(), now() - interval '1 hour'), ('uid-0', $1, 'gpu-dev', $2, now(), now())`, id, podName)
	w.request(t)
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.pods), podKey)
}

func TestAPodThatMayHoldAnUnknownDiskIsNotPassedOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set ebs_volume_id = null")
	p := w.pod("uid-1")
	p.Created = time.Now().Add(-90 * time.Second)
	w.pods[podKey] = p
	w.request(t)
	require.Equal(t, followup.StateFailed, w.deliver(t.Context(), t).State)
	require.Contains(t, w.step(t, postgres.StepIdentify), "it has "+volume)
}

func TestAPodHasItsGracePeriodEvenOnAStoppedInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.stubborn = true
	w.instances[host] = disk.Instance{ID: host, State: disk.InstanceStopped}
	w.request(t)
	var asked, forced time.Time
	w.before = func(call string) error {
		switch call {
		case "delete pod " + podKey:
			asked = w.now()
		case "force pod " + podKey:
			forced = w.now()
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Greater(t, forced.Sub(asked), 30*time.Second)
}

func TestThePodIsLookedForInBothNamespacesOfAPlaceholder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	p := w.pod("uid-1")
	p.Namespace, p.Claims = "default", nil
	delete(w.pods, podKey)
	w.pods["default/"+podName] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, []string{"gpu-dev/gpu-dev-other"}, keys(w.pods))
	require.Equal(t, "default", read[string](t, w, "select namespace from expiry.cleanups"))
}

func TestAReservationThatIsLiveAgainKeepsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.exec(t, "update reservations set status = 'active'")
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateDone, report.State)
	require.Empty(t, w.calls)
	require.Equal(t, "void", read[string](t, w, "select outcome from expiry.follow_ups"))

	w.exec(t, "update reservations set status = 'expired'")
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

// revive has the platform bring the reservation back with a new pod and volume, and somebody cancel it a while later.
func (w *world) revive(t *testing.T) {
	t.Helper()
	w.exec(t, "update expiry.cleanups set requested_at = requested_at - interval '1 hour'")
	w.exec(t, "update reservations set status = 'cancelled', launched_at = now() - interval '10 minutes', cancelled_at = now(), ebs_volume_id = $1", secondVolume)
	w.exec(t, "update disks set in_use = true, reservation_id = $1, ebs_volume_id = $2", id, secondVolume)
	p := w.pod("uid-2")
	p.Created, p.Claims, p.HomeClaim = w.now().Add(-10*time.Minute).UTC(), nil, ""
	p.VolumeIDs, p.HomeVolumeID = []string{secondVolume}, secondVolume
	w.pods[podKey] = p
	w.exec(t, "update expiry.cleanups set revived_at = now()") // by a sweep
}

const secondVolume = "vol-0123456789abcdef1"

func TestAReservationThatEndedAgainSinceItsCleanupIsCleanedUpFromTheStart(t *testing.T) {
	t.Parallel()
	for name, waits := range map[string]bool{"settled": false, "its disk waits for EC2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.request(t)
			var kept []string
			finish := w.keep
			w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
				if waits && c.VolumeID == volume {
					return followup.LookAgain(time.Minute), nil
				}
				kept = append(kept, c.VolumeID)
				return finish(c)
			}
			w.deliver(t.Context(), t)
			require.NotContains(t, keys(w.pods), podKey)
			w.revive(t)

			verdict, err := w.db.WithDisk(t.Context(), id, nil)
			require.NoError(t, err)
			require.NotEqual(t, postgres.DiskOurs, verdict, "what was learnt before proves nothing about its disk now")

			w.request(t)
			w.deliver(t.Context(), t)
			require.NotContains(t, keys(w.pods), podKey)
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			require.Equal(t, secondVolume, kept[len(kept)-1])
			asked, err := w.db.EnsureCleanup(t.Context(), id)
			require.NoError(t, err)
			require.False(t, asked, "once is enough")
		})
	}
}

func TestAReservationRevivedInMidCleanupKeepsItsPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.after = func(call string) error {
		if call == "list disk" {
			w.exec(t, "update reservations set status = 'active'")
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Contains(t, keys(w.pods), podKey)
	w.after = nil
	w.deliver(t.Context(), t)
	require.Equal(t, "void", read[string](t, w, "select outcome from expiry.follow_ups"))
}

func TestAStubbornPodIsWaitedForAndForcedOnlyWhereItCannotRunOn(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	halted := func(s disk.InstanceState) func(*world) {
		return func(w *world) { w.instances[host] = disk.Instance{ID: host, State: s} }
	}
	bothGone := func(w *world) {
		delete(w.nodes, node)
		delete(w.instances, host)
	}
	unknownHost := func(_ *testing.T, w *world) { w.nodes[node] = pod.Node{Name: node} }
	noDisk := func(t *testing.T, w *world) {
		w.exec(t, "update reservations set ebs_volume_id = null, disk_name = null")
		w.exec(t, "delete from disks")
		p := w.pods[podKey]
		p.Claims = nil
		w.pods[podKey] = p
	}
	for name, c := range map[string]struct {
		setup  func(*testing.T, *world)
		then   func(*world)
		forced bool
		after  time.Duration // its grace period
	}{
		"instance runs":           {then: func(*world) {}, after: time.Hour},
		"instance stops":          {then: halted(disk.InstanceStopping), after: time.Hour},
		"instance stopped":        {then: halted(disk.InstanceStopped), forced: true},
		"instance terminated":     {then: halted(disk.InstanceTerminated), forced: true},
		"instance forgotten":      {then: func(w *world) { delete(w.instances, host) }, after: time.Hour},
		"node gone":               {then: func(w *world) { delete(w.nodes, node) }, after: time.Hour},
		"both gone":               {then: bothGone, forced: true},
		"both, and elsewhere":     {then: func(w *world) { bothGone(w); w.account.Region = "us-west-2" }, after: time.Hour},
		"gone, and never known":   {setup: unknownHost, then: func(w *world) { delete(w.nodes, node) }, forced: true},
		"node not ready":          {then: func(w *world) { w.nodes[node] = pod.Node{Name: node, InstanceID: host} }, after: time.Hour},
		"nobody can tell":         {then: func(w *world) { w.before = failing("get instance") }, after: time.Hour},
		"without a disk, at once": {setup: noDisk, then: func(*world) {}},
		"without a disk, later":   {setup: noDisk, then: func(*world) {}, after: 3 * time.Minute, forced: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.stubborn = true
			if c.setup != nil {
				c.setup(t, w)
			}
			w.request(t)
			began := w.now()
			report := w.deliver(t.Context(), t)
			require.Equal(t, followup.StatePostponed, report.State, report.Error)
			require.Contains(t, w.step(t, postgres.StepPod), "is stopping")
			require.InDelta(t, time.Minute, w.now().Sub(began), float64(5*time.Second), "looked for a minute")
			require.False(t, w.made("force pod "+podKey))

			c.then(w)
			p := w.pods[podKey]
			p.Deleting = time.Now().Add(-10*time.Second - c.after) // by the database's clock
			w.pods[podKey] = p
			report = w.deliver(t.Context(), t)
			require.Equal(t, c.forced, w.made("force pod "+podKey))
			if !c.forced {
				require.Contains(t, keys(w.pods), podKey)
				require.False(t, w.made("keep "+volume))
			}
			if c.after >= time.Hour {
				require.Equal(t, followup.StateFailed, report.State, "waiting for ever is a failure")
			}
		})
	}
}

func failing(call string) func(string) error {
	return func(c string) error {
		if len(c) >= len(call) && c[:len(call)] == call {
			return errors.New("throttled")
		}
		return nil
	}
}

func TestTheVolumeIsRetainedThoughThePodWentFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.before = failing("retain")
	w.deliver(t.Context(), t)
	w.before = nil
	delete(w.pods, podKey)
	w.deliver(t.Context(), t)
	require.True(t, w.outside.volumes["pv-alice"].Retained())
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestAServiceThatIsMissingFromAListingIsNotGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.unlisted = podName + "-ssh"
	w.request(t)
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.services), podKey+"-ssh")
}

func TestServicesUnderALiveReservationsNameStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	delete(w.pods, podKey)
	w.exec(t, "insert into reservations (reservation_id, user_id, status) values ('deadbeef-ffff', 'bob', 'preparing')")
	w.request(t)
	w.deliver(t.Context(), t)
	require.Contains(t, keys(w.services), podKey+"-ssh")
	require.Contains(t, w.step(t, postgres.StepServices), "not_ours: ")
}

func TestAPodReplacedWhileItStopsIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.stubborn = true
	w.after = func(call string) error {
		if call == "delete pod "+podKey {
			w.mu.Lock()
			w.pods[podKey] = pod.Pod{Namespace: "gpu-dev", Name: podName, UID: "uid-2", Created: w.now()}
			w.mu.Unlock()
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.Equal(t, "uid-2", w.pods[podKey].UID)
}

func TestTheKubeletsWordOnTerminationIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	p := w.pods[podKey]
	p.Phase = pod.Failed
	p.Containers = []pod.Container{{Name: pod.MainContainer, Kind: pod.App, Current: &pod.Termination{ExitCode: 137}}}
	w.pods[podKey] = p
	w.request(t)
	var told bool
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		told = c.ContainersTerminated && !c.PodGoneAt.IsZero()
		return followup.Done("snapshot_pending"), nil
	}
	w.deliver(t.Context(), t)
	require.True(t, told)
	require.Contains(t, w.step(t, postgres.StepListing), "does not run")
}

func TestASettledCleanupIsReopenedForAPodThatIsStillThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.deliver(t.Context(), t)
	w.exec(t, "delete from expiry.pods")
	w.pods[podKey] = w.pod("uid-late")

	lease, _, begun, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, begun)
	seen := postgres.SeenPod{Namespace: "gpu-dev", Name: podName, UID: "uid-late", Created: w.pods[podKey].Created}
	reopened, err := w.db.CleanUpAgain(t.Context(), lease, id, seen, "pod still there")
	require.NoError(t, err)
	require.True(t, reopened)
	again, err := w.db.CleanUpAgain(t.Context(), lease, id, seen, "pod still there")
	require.NoError(t, err)
	require.False(t, again)
	w.calls = nil
	w.deliver(t.Context(), t)
	require.NotContains(t, keys(w.pods), podKey)
	require.False(t, w.made("keep "+volume), "the disk is not touched twice")
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))

	w.exec(t, "update reservations set status = 'active'")
	reopened, err = w.db.CleanUpAgain(t.Context(), lease, id, seen, "pod there")
	require.NoError(t, err)
	require.False(t, reopened, "a live reservation's pod belongs there")
}
