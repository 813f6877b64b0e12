package cleanup_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const thirdVolume = "vol-0123456789abcdef2"

// mount gives the pod these claims, of which nobody can tell on which it has the user's home. `imagenet` is the second
// volume's.
func (w *world) mount(claims ...string) {
	w.claims["gpu-dev/imagenet"] = pod.Claim{Namespace: "gpu-dev", Name: "imagenet", UID: "claim-2", VolumeName: "pv-imagenet"}
	w.volumes["pv-imagenet"] = pod.PersistentVolume{Name: "pv-imagenet", UID: "pv-2", VolumeID: secondVolume, ClaimName: "imagenet", ClaimNamespace: "gpu-dev"}
	p := w.pods[podKey]
	p.Claims, p.HomeClaim = claims, ""
	w.pods[podKey] = p
}

// The disk's row names what the pod has; a volume with the disk's tags was made meanwhile, by a try that failed, say, or
// as a copy, and is attached nowhere.
func TestWhatThePodHasAndTheDisksRowNamesIsTheDiskWhateverElseHasItsTags(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	for name, c := range map[string]struct {
		claims []string
		tags   map[string]string
	}{
		"its only one, untagged": {claims: []string{"disk-alice"}},
		"its only one, tagged":   {claims: []string{"disk-alice"}, tags: key.Tags()},
		"one of two, untagged":   {claims: []string{"disk-alice", "imagenet"}},
		"one of two, tagged":     {claims: []string{"disk-alice", "imagenet"}, tags: key.Tags()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.exec(t, "update disks set ebs_volume_id = $1", volume)
			w.mount(c.claims...)
			attached := []disk.Attachment{{InstanceID: host, State: disk.Attached}}
			w.tagged = []disk.Volume{
				{ID: volume, State: disk.VolumeInUse, Attachments: attached, Tags: c.tags, CreatedAt: w.now().Add(-30 * time.Hour)},
				{ID: secondVolume, State: disk.VolumeInUse, Attachments: attached, CreatedAt: w.now().Add(-90 * time.Hour)},
				{ID: thirdVolume, State: disk.VolumeAvailable, Tags: key.Tags(), CreatedAt: w.now().Add(-time.Hour)},
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+volume), w.step(t, postgres.StepIdentify))
		})
	}
}

// The disk's row names the first volume. Neither may be taken where the evidence is of both.
func TestTheDisksRowIsWeighedAgainstWhatElseIsKnownOfVolumes(t *testing.T) {
	t.Parallel()
	hers := disk.Key{User: "alice", Name: "default"}.Tags()
	attached := []disk.Attachment{{InstanceID: host, State: disk.Attached}}
	const before, earlier, within = 40 * time.Hour, 30 * time.Hour, time.Hour
	for name, c := range map[string]struct {
		row, other disk.Volume
		claims     []string      // of the pod
		age, its   time.Duration // of the two
		gone       bool          // the pod
		kept       string        // empty: nothing, and somebody is asked
	}{
		"the other is attached where the pod ran": {
			row: disk.Volume{Tags: hers}, age: before, other: disk.Volume{Tags: hers, Attachments: attached}, its: earlier, kept: secondVolume},
		"it is, and the other was made meanwhile": {
			row: disk.Volume{Tags: hers, Attachments: attached}, age: before, other: disk.Volume{Tags: hers}, its: within},
		"the pod has the other": {
			claims: []string{"imagenet"}, age: before, other: disk.Volume{Attachments: attached}, its: 4 * within},
		"both were made in its time, and the other has the tags": {gone: true, age: 2 * within, other: disk.Volume{Tags: hers}, its: within},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.exec(t, "update disks set ebs_volume_id = $1", volume)
			w.mount(c.claims...)
			if c.gone {
				delete(w.pods, podKey)
			}
			c.row.ID, c.row.CreatedAt = volume, w.now().Add(-c.age)
			c.other.ID, c.other.CreatedAt = secondVolume, w.now().Add(-c.its)
			w.tagged = []disk.Volume{c.row, c.other}
			w.request(t)
			w.deliver(t.Context(), t)
			if c.kept != "" {
				require.True(t, w.made("keep "+c.kept), w.step(t, postgres.StepIdentify))
				return
			}
			require.Contains(t, w.step(t, postgres.StepDisk), volume+", "+secondVolume+"; all are kept", w.step(t, postgres.StepIdentify))
		})
	}
}

// Another account answers while the cleanup finds out which volume it is about. It has none with the tags.
func TestAnotherAccountsEmptyListDecidesNothingAboutTheDisksRow(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.exec(t, "update disks set ebs_volume_id = $1", volume)
	delete(w.pods, podKey)
	ours := w.account
	w.account = disk.Account{ID: "444455556666", Region: "us-east-1"}
	w.before = func(call string) error {
		if call == "keep "+volume {
			return fault.Errorf(fault.Transient, "another AWS account answers")
		}
		return nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	w.account, w.before, w.calls = ours, nil, nil
	w.tagged = []disk.Volume{
		{ID: volume, Tags: key.Tags(), CreatedAt: w.now().Add(-30 * time.Hour)},
		{ID: secondVolume, Tags: key.Tags(), CreatedAt: w.now().Add(-time.Hour)},
	}
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+secondVolume), w.step(t, postgres.StepIdentify))
}

func TestADisksRowThatNamesAVolumeLateKeepsItsDiskLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reserve(t, id)
	w.nameNoVolume(t)
	w.before = func(call string) error {
		if call == "find volumes" {
			w.exec(t, "update disks set ebs_volume_id = $1", volume)
		}
		return nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume), w.step(t, postgres.StepDisk))
}

// The reservation's row names the first volume, which was set aside once, and kept, since somebody had found a use for it.
func TestWhatTheRowNamesAndWasSetAsideOnceYieldsToWhatWasTheReservationsAlone(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	for name, c := range map[string]struct {
		age, its time.Duration // of the two
		kept     string        // empty: nobody can tell
	}{
		"the other was made before, too":         {300 * time.Hour, 200 * time.Hour, volume},
		"the other was made for the reservation": {300 * time.Hour, time.Hour, secondVolume},
		"both were made in its time":             {2 * time.Hour, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.reserve(t, id)
			w.exec(t, "update disks set ebs_volume_id = null")
			w.exec(t, `insert into expiry.snapshots (intent_id, user_id, disk_name, volume_id, state, intended_at, volume_kept_at)
				values (gen_random_uuid(), 'alice', 'default', $1, 'completed', now() - interval '20 days', now() - interval '10 days')`, volume)
			w.tagged = []disk.Volume{
				{ID: volume, Tags: key.Tags(), CreatedAt: w.now().Add(-c.age)},
				{ID: secondVolume, Tags: key.Tags(), CreatedAt: w.now().Add(-c.its)},
			}
			w.request(t)
			w.deliver(t.Context(), t)
			if c.kept != "" {
				require.True(t, w.made("keep "+c.kept), w.step(t, postgres.StepDisk))
				return
			}
			require.Contains(t, w.step(t, postgres.StepDisk), volume+", "+secondVolume+"; all are kept")
			w.exec(t, "update reservations set ebs_volume_id = null")
			w.deliver(t.Context(), t)
			require.Equal(t, "open", w.outcome(t))
			w.exec(t, "update reservations set ebs_volume_id = $1", volume) // by somebody who has looked
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+volume), w.step(t, postgres.StepDisk))
		})
	}
}
