package cleanup_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestAVolumeThatNobodyNamesIsSoughtByItsTags(t *testing.T) {
	t.Parallel()
	hers := disk.Key{User: "alice", Name: "default"}
	volumeOf := func(key disk.Key, id string, age time.Duration, state disk.VolumeState) func(*world) {
		return func(w *world) {
			w.tagged = append(w.tagged, disk.Volume{ID: id, State: state, Tags: key.Tags(), CreatedAt: w.now().Add(-age)})
		}
	}
	made, older := volumeOf(hers, volume, time.Hour, disk.VolumeAvailable), volumeOf(hers, secondVolume, 48*time.Hour, disk.VolumeAvailable)
	for name, test := range map[string]struct {
		there      []func(*world)
		statements []string
		kept       string // the volume that is captured
		outcome    string // of the cleanup; open: the disk stays locked
		step       string
	}{
		"none":                       {outcome: postgres.OutcomeNothingToKeep, step: "nothing_to_keep: EC2 has no volume with its tags"},
		"one, made in its time":      {there: []func(*world){made}, kept: volume, outcome: postgres.OutcomeReleased},
		"one, made before":           {there: []func(*world){older}, outcome: "open", step: secondVolume},
		"several":                    {there: []func(*world){made, older}, outcome: "open", step: volume + ", " + secondVolume},
		"another disk's":             {there: []func(*world){volumeOf(disk.Key{User: "alice", Name: "other"}, volume, time.Hour, disk.VolumeAvailable)}, outcome: postgres.OutcomeNothingToKeep},
		"one that is being deleted":  {there: []func(*world){volumeOf(hers, volume, time.Hour, disk.VolumeDeleting)}, outcome: postgres.OutcomeNothingToKeep},
		"one that was set aside too": {there: []func(*world){made, older}, statements: []string{setAside}, kept: volume, outcome: postgres.OutcomeReleased},
		"a newer reservation's": {there: []func(*world){volumeOf(hers, volume, 0, disk.VolumeInUse)},
			statements: []string{"update disks set in_use = false, reservation_id = null"}, outcome: postgres.OutcomeSuperseded},
		"it never ran": {there: []func(*world){made}, statements: []string{"update reservations set launched_at = null"},
			outcome: postgres.OutcomeNothingToKeep, step: "nothing_to_keep: no volume is known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.reserve(t, id)
			w.nameNoVolume(t)
			for _, s := range test.statements {
				w.exec(t, s)
			}
			for _, put := range test.there {
				put(w)
			}
			kept, finish := "", w.keep
			w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
				kept = c.VolumeID
				return finish(c)
			}
			w.request(t)
			report := w.deliver(t.Context(), t)
			require.Equal(t, test.outcome, w.outcome(t), w.step(t, postgres.StepDisk))
			require.Equal(t, test.outcome == "open", report.State == followup.StateFailed, report.Error)
			require.Contains(t, w.step(t, postgres.StepDisk), test.step)
			require.Equal(t, test.kept, kept)
			if test.outcome == "open" {
				require.Equal(t, "true", read[string](t, w, "select in_use::text from disks"))
				require.Contains(t, read[string](t, w, "select last_error from expiry.follow_ups where kind = 'cleanup'"), "cannot tell which volume")
			}
		})
	}
}

const setAside = `insert into expiry.snapshots (intent_id, user_id, disk_name, volume_id, state, volume_aside_at)
	values (gen_random_uuid(), 'alice', 'default', '` + secondVolume + `', 'completed', now())`

func TestThatEC2HasNoVolumeIsBelievedOfOurAccountAlone(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*world){
		"another account answers": func(w *world) { w.account = disk.Account{ID: "444455556666", Region: "us-east-1"} },
		"EC2 does not answer":     func(w *world) { w.before = failing("find volumes") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.reserve(t, id)
			w.nameNoVolume(t)
			spoil(w)
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, "open", w.outcome(t))
			require.Equal(t, "true", read[string](t, w, "select in_use::text from disks"))
		})
	}
}

func TestThatEC2ListsNoVolumeIsNotBelievedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reserve(t, id)
	w.nameNoVolume(t)
	looks := 0
	w.before = func(call string) error {
		if call != "find volumes" {
			return nil
		}
		if looks++; looks == 2 {
			w.tagged = []disk.Volume{{ID: volume, State: disk.VolumeAvailable, Tags: disk.Key{User: "alice", Name: "default"}.Tags(), CreatedAt: w.now().Add(-time.Hour)}}
		}
		return nil
	}
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume), w.step(t, postgres.StepDisk))
}

func TestADiskWithoutAVolumeIsNotTakenFromAReservationThatIsLiveAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reserve(t, id)
	w.nameNoVolume(t)
	w.request(t)
	w.before = func(call string) error {
		if call == "find volumes" {
			w.exec(t, "update reservations set status = 'active'")
		}
		return nil
	}
	w.deliver(t.Context(), t)
	require.Equal(t, "true", read[string](t, w, "select in_use::text from disks"), "its disk is its own again")
	require.Equal(t, "open", w.outcome(t))
}

func TestOfSeveralVolumesOfAPodTheOneWithTheHomeIsTheDisk(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	hers, teams := disk.Key{User: "alice", Name: "default"}.Tags(), disk.Key{User: "team-vision", Name: "imagenet"}.Tags()
	for name, c := range map[string]struct {
		home         string            // the claim that is mounted there
		data, onDisk map[string]string // the tags of the two
		kept         string            // empty: nobody can tell
		from         string
	}{
		"mounted there":               {home: "disk-alice", data: teams, onDisk: hers, kept: volume, from: "by the pod"},
		"mounted there, without tags": {home: "disk-alice", kept: volume, from: "by the pod"},
		"by its tags":                 {data: teams, onDisk: hers, kept: volume, from: "by its tags"},
		"by its tags alone":           {onDisk: hers, kept: volume, from: "by its tags"},
		"both tagged so":              {data: hers, onDisk: hers},
		"without tags":                {},
		"only the other is tagged":    {data: teams},
	} {
		for order, claims := range map[string][]string{"first": {"disk-alice", "imagenet"}, "last": {"imagenet", "disk-alice"}} {
			t.Run(name+", "+order, func(t *testing.T) {
				t.Parallel()
				w := newWorldIn(t, shelf)
				w.stand(t)
				w.nameNoVolume(t)
				w.claims["gpu-dev/imagenet"] = pod.Claim{Namespace: "gpu-dev", Name: "imagenet", UID: "claim-2", VolumeName: "pv-imagenet"}
				w.volumes["pv-imagenet"] = pod.PersistentVolume{Name: "pv-imagenet", UID: "pv-2", VolumeID: secondVolume, ClaimName: "imagenet", ClaimNamespace: "gpu-dev"}
				w.tagged = []disk.Volume{{ID: volume, Tags: c.onDisk}, {ID: secondVolume, Tags: c.data}}
				p := w.pods[podKey]
				p.Claims, p.HomeClaim = claims, c.home
				w.pods[podKey] = p
				w.request(t)
				w.deliver(t.Context(), t)
				require.NotContains(t, keys(w.pods), podKey)
				require.False(t, w.made("keep "+secondVolume))
				if c.kept != "" {
					require.Contains(t, w.step(t, postgres.StepIdentify), "volume "+c.kept+" "+c.from)
					require.Equal(t, "pv-alice", read[string](t, w, "select pv_name from expiry.cleanups"))
					require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
					return
				}
				for range 2 { // the second delivery knows it from the rows
					require.Contains(t, w.step(t, postgres.StepDisk), "open: cannot tell which of these volumes is the disk: ")
					require.Equal(t, "open", w.outcome(t))
					require.Equal(t, "true", read[string](t, w, "select in_use::text from disks"))
					require.Empty(t, keys(w.records), "the rest goes on")
					w.deliver(t.Context(), t)
				}
				w.exec(t, "update reservations set ebs_volume_id = $1", volume)
				w.deliver(t.Context(), t)
				require.Equal(t, postgres.OutcomeReleased, w.outcome(t), "somebody has looked")
				require.True(t, w.made("keep "+volume))
			})
		}
	}
}

func TestTheFinalNoticePromisesNothingOfVolumesThatNobodyNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "update reservations set ebs_volume_id = null, disk_name = null")
	w.exec(t, "delete from disks")
	w.claims["gpu-dev/imagenet"] = pod.Claim{Namespace: "gpu-dev", Name: "imagenet", UID: "claim-2", VolumeName: "pv-imagenet"}
	w.volumes["pv-imagenet"] = pod.PersistentVolume{Name: "pv-imagenet", UID: "pv-2", VolumeID: secondVolume, ClaimName: "imagenet", ClaimNamespace: "gpu-dev"}
	p := w.pods[podKey]
	p.Claims, p.HomeClaim = []string{"disk-alice", "imagenet"}, ""
	w.pods[podKey] = p
	w.tagged = []disk.Volume{{ID: volume}, {ID: secondVolume}}
	w.request(t)
	w.deliver(t.Context(), t)
	require.Contains(t, w.files[podName+"/RESERVATION_ENDED.txt"], "perhaps what is on this server's volumes")
}

func TestTheVolumeWithTheHomeIsTheDiskThoughTheRowNamesAnother(t *testing.T) {
	t.Parallel()
	shelf := stacktest.NewShelf(t)
	hers, teams := disk.Key{User: "alice", Name: "default"}.Tags(), disk.Key{User: "team-vision", Name: "imagenet"}.Tags()
	for name, c := range map[string]struct {
		named, onHome map[string]string // their tags
		late          bool              // the row did not name it when the cleanup was asked for
		kept          string
	}{
		"without tags":               {kept: volume},
		"named late":                 {late: true, kept: volume},
		"tagged so":                  {onHome: hers, kept: volume},
		"both tagged so":             {named: hers, onHome: hers, kept: volume},
		"the named one is another's": {named: teams, kept: volume},
		"the named one is tagged so": {named: hers, kept: secondVolume},
		"it is another's":            {onHome: teams, kept: secondVolume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, shelf)
			w.stand(t)
			w.exec(t, "update disks set ebs_volume_id = null")
			w.tagged = []disk.Volume{{ID: secondVolume, Tags: c.named}, {ID: volume, Tags: c.onHome}}
			if c.late {
				w.exec(t, "update reservations set ebs_volume_id = null")
				w.request(t)
			}
			w.exec(t, "update reservations set ebs_volume_id = $1", secondVolume)
			p := w.pods[podKey]
			p.HomeClaim = "disk-alice"
			w.pods[podKey] = p
			var kept []string
			finish := w.keep
			w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
				if kept = append(kept, c.VolumeID); len(kept) == 1 {
					return followup.LookAgain(time.Second), nil
				}
				return finish(c)
			}
			if !c.late {
				w.request(t)
			}
			w.deliver(t.Context(), t)
			w.deliver(t.Context(), t)
			require.Equal(t, []string{c.kept, c.kept}, kept, "the second delivery knows it from the rows")
			require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
			again, err := w.db.EnsureCleanup(t.Context(), id)
			require.NoError(t, err)
			require.False(t, again, "what the row names is nothing new")
		})
	}
}

func TestAPodWithNothingButAnothersVolumesHasNoDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "delete from disks")
	w.exec(t, "update reservations set ebs_volume_id = null, disk_name = null")
	w.tags = disk.Key{User: "team-vision", Name: "imagenet"}.Tags()
	p := w.pods[podKey]
	p.HomeClaim = ""
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeNothingToKeep, w.outcome(t))
	require.Contains(t, w.step(t, postgres.StepIdentify), "the pod also has volume "+volume)
}

func TestAnothersVolumeNamesNoDiskOfTheUsers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "delete from disks")
	w.exec(t, "update reservations set disk_name = null")
	w.tags = disk.Key{User: "team-x", Name: "golden"}.Tags()
	w.request(t)
	w.deliver(t.Context(), t)
	require.Empty(t, read[string](t, w, "select coalesce(disk_name, '') from expiry.cleanups"))
}

func TestThePodsOnlyVolumeIsTheDiskWhereverItIsMounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.tagged = []disk.Volume{{ID: volume}}
	p := w.pods[podKey]
	p.HomeClaim = ""
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
	require.True(t, w.made("keep "+volume))
}

func TestAPodsOnlyVolumeIsNotTheDiskWhereTheTagsNameAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.tagged = []disk.Volume{{ID: volume}, {ID: secondVolume, Tags: disk.Key{User: "alice", Name: "default"}.Tags()}}
	p := w.pods[podKey]
	p.HomeClaim = ""
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.False(t, w.made("keep "+volume))
	require.Equal(t, "open", w.outcome(t))
}

func TestAVolumeSetAsideLeavesAPodItsOnlyVolumeThoughItHasTheTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.nameNoVolume(t)
	w.tagged = []disk.Volume{{ID: volume}, {ID: secondVolume, Tags: disk.Key{User: "alice", Name: "default"}.Tags()}}
	w.exec(t, setAside)
	p := w.pods[podKey]
	p.HomeClaim = ""
	w.pods[podKey] = p
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume), w.step(t, postgres.StepDisk))
}

func TestWhatTheRowAloneNamesIsKeptWhateverHasBecomeOfIt(t *testing.T) {
	t.Parallel()
	for name, there := range map[string]bool{"gone": false, "set aside, and there": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.reserve(t, id)
			w.exec(t, "update disks set ebs_volume_id = null")
			w.exec(t, "update reservations set ebs_volume_id = $1", secondVolume)
			w.exec(t, setAside)
			w.before = func(call string) error {
				if !there && call == "describe volume "+secondVolume {
					return fault.Errorf(fault.Gone, "no volume %s", secondVolume)
				}
				return nil
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.True(t, w.made("keep "+secondVolume), "the keeper says what has become of it")
			again, err := w.db.EnsureCleanup(t.Context(), id)
			require.NoError(t, err)
			require.False(t, again)
		})
	}
}

func TestTheTagsKnowNoBetterThanTheReservationsRow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	delete(w.pods, podKey)
	w.tagged = []disk.Volume{{ID: secondVolume, Tags: disk.Key{User: "alice", Name: "default"}.Tags(), CreatedAt: w.now().Add(-time.Hour)}}
	w.request(t)
	w.deliver(t.Context(), t)
	require.True(t, w.made("keep "+volume), w.step(t, postgres.StepIdentify))
}

// The disk's row may still name the volume of whoever had the disk before.
func TestOfAVolumeThatOnlyTheDisksRowNamesTheTagsMayKnowBetter(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	const before, within = 30 * time.Hour, time.Hour
	for name, c := range map[string]struct {
		row, other time.Duration // how long ago they were made; 0: not there
		kept       string
	}{
		"there is no other":                      {row: before, kept: volume},
		"the other was made before, too":         {row: before, other: before, kept: volume},
		"the other was made for the reservation": {row: before, other: within, kept: secondVolume},
		"both were made in its time":             {row: within, other: within},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stand(t)
			w.nameNoVolume(t)
			w.exec(t, "update disks set ebs_volume_id = $1", volume)
			delete(w.pods, podKey)
			w.tagged = []disk.Volume{{ID: volume, Tags: key.Tags(), CreatedAt: w.now().Add(-c.row)}}
			if c.other != 0 {
				w.tagged = append(w.tagged, disk.Volume{ID: secondVolume, Tags: key.Tags(), CreatedAt: w.now().Add(-c.other)})
			}
			w.request(t)
			w.deliver(t.Context(), t)
			require.Equal(t, c.kept != "", w.made("keep "+c.kept), w.step(t, postgres.StepIdentify))
			if c.kept == "" {
				require.Contains(t, w.step(t, postgres.StepDisk), volume+", "+secondVolume+"; all are kept")
			}
		})
	}
}

// One life. Its volume was set aside under an earlier reservation, somebody found a use for it (so it is kept for good),
// and gave it to this one: row, disk and pod name it. The pod has a data set, too, and its home cannot be told.
func TestAVolumeBackInUseAfterItWasSetAsideIsTheDisk(t *testing.T) {
	t.Parallel()
	for name, tags := range map[string]map[string]string{"untagged": nil, "tagged": disk.Key{User: "alice", Name: "default"}.Tags()} {
		for _, books := range []string{"volume_aside_at", "volume_kept_at"} {
			t.Run(name+" "+books, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.stand(t)
				w.exec(t, "update disks set ebs_volume_id = $1", volume)
				w.exec(t, "update reservations set ebs_volume_id = $1", volume)
				w.exec(t, `insert into expiry.snapshots (intent_id, user_id, disk_name, volume_id, state, intended_at, `+books+`)
					values (gen_random_uuid(), 'alice', 'default', $1, 'completed', now() - interval '20 days', now() - interval '10 days')`, volume)
				w.claims["gpu-dev/imagenet"] = pod.Claim{Namespace: "gpu-dev", Name: "imagenet", UID: "claim-2", VolumeName: "pv-imagenet"}
				w.volumes["pv-imagenet"] = pod.PersistentVolume{Name: "pv-imagenet", UID: "pv-2", VolumeID: secondVolume, ClaimName: "imagenet", ClaimNamespace: "gpu-dev"}
				w.tagged = []disk.Volume{{ID: volume, Tags: tags}, {ID: secondVolume}}
				p := w.pods[podKey]
				p.Claims, p.HomeClaim = []string{"disk-alice", "imagenet"}, ""
				w.pods[podKey] = p
				w.request(t)
				w.deliver(t.Context(), t)
				require.False(t, w.made("keep "+secondVolume), "a data set that no row names")
				require.True(t, w.made("keep "+volume))
			})
		}
	}
}
