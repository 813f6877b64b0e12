package cleanup_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestClaimsThatLeadToNoVolumeHideNoneBehindThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.claim("its-volume-is-gone", pod.PersistentVolume{Name: "pv-gone"})
	w.claim("never-bound", pod.PersistentVolume{})
	w.claim("gone", pod.PersistentVolume{})
	delete(w.claims, "gpu-dev/gone")
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.volumes["pv-alice"].Retained())
	require.True(t, w.made("keep "+volume))
	require.False(t, w.made("describe volume "), "none is asked for by no id")
}

func TestTheVolumeThatTheRowNamesIsTheDiskWhereThePodDoesNotTell(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.claim("data", pod.PersistentVolume{Name: "pv-data", UID: "pv-2", VolumeID: secondVolume})
	p := w.pods[podKey]
	p.HomeClaim = ""
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume), w.step(t, postgres.StepIdentify))
	require.False(t, w.made("describe volume "), "none is asked for by no id")
}

func TestOfTheRowsVolumeAndThePodsTheOneThatIsGoneIsNotTheDisk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ gone, kept string }{
		"the pod's is gone": {secondVolume, volume}, "the row's is gone": {volume, secondVolume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			p := w.pods[podKey]
			p.Claims, p.HomeClaim, p.VolumeIDs, p.HomeVolumeID = nil, "", []string{secondVolume}, secondVolume
			w.pods[podKey] = p
			w.before = func(call string) error {
				if call == "describe volume "+c.gone {
					return fault.Errorf(fault.Gone, "no volume %s", c.gone)
				}
				return nil
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+c.kept), w.step(t, postgres.StepIdentify))
		})
	}
}

func TestAPodOfWhichNobodyKnowsWhoseItIsHoldsUpWhatMayBeOnItsVolumesAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		row    string // the volume that it names
		mounts []string
		waits  bool
	}{
		"the disk's":                {row: volume, mounts: []string{volume}, waits: true},
		"another's":                 {row: volume, mounts: []string{secondVolume}},
		"any, the disk's not known": {mounts: []string{secondVolume}, waits: true},
		"none, not known either":    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.exec(t, "update reservations set ebs_volume_id = nullif($1, '')", c.row)
			p := w.pods[podKey]
			p.Claims, p.HomeClaim, p.VolumeIDs = nil, "", c.mounts
			p.Created = time.Now().Add(-90 * time.Second) // after the end, within the clocks' tolerance
			w.pods[podKey] = p
			w.request(t)
			w.deliver(t.Context(), t)
			require.Contains(t, keys(w.pods), podKey)
			require.Equal(t, c.waits, w.outcome(t) == "open", w.step(t, postgres.StepIdentify))
		})
	}
}

func TestTheTagsOfTheVolumeNameNoDiskThatHasAName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.tags = map[string]string{"disk_name": "tagged"}
	var kept postgres.CleanupRecord
	finish := w.keep
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		kept = c
		return finish(c)
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, "default", kept.DiskName)
	require.Equal(t, []string{"alice/default/" + id + ".txt"}, keys(w.objects))
}

func TestADiskThatNobodyNamesIsKeptWithoutAName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "delete from disks")
	w.exec(t, "update reservations set disk_name = null")
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume))
	require.True(t, read[bool](t, w, "select disk_name is null from expiry.cleanups"))
}
