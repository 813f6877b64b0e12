package disk_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
)

func TestDetachGoesFromWaitingToPlainToForced(t *testing.T) {
	t.Parallel()
	ended := now.Add(-time.Hour) // the volume was attached ten hours ago
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	tests := map[string]struct {
		holder disk.Holder
		want   disk.Action
		reason string
	}{
		"pod still there":                {disk.Holder{EndedAt: ended}, disk.Wait, "pod is still there"},
		"pod just gone":                  {disk.Holder{PodGoneAt: ago(time.Minute - 1)}, disk.Wait, "the driver has until"},
		"driver left it":                 {disk.Holder{PodGoneAt: ago(time.Minute)}, disk.DetachPlain, "driver left volume"},
		"driver's grace is shorter":      {disk.Holder{PodGoneAt: ago(10 * time.Second), DriverGrace: 10 * time.Second}, disk.DetachPlain, "driver left volume"},
		"driver's grace is longer":       {disk.Holder{PodGoneAt: ago(time.Hour), DriverGrace: time.Hour + 1}, disk.Wait, "the driver has until"},
		"instance halted under the pod":  {disk.Holder{InstanceHalted: true}, disk.DetachPlain, "stopped or gone"},
		"asked, still running":           {disk.Holder{PlainAt: ago(10*time.Minute - 1), ContainersTerminated: true}, disk.Wait, "has until"},
		"asked, nothing known of inside": {disk.Holder{PlainAt: ago(24 * time.Hour)}, disk.Wait, "not reported terminated"},
		"asked, containers terminated":   {disk.Holder{PlainAt: ago(10 * time.Minute), ContainersTerminated: true}, disk.DetachForced, "containers terminated"},
		"asked, then halted":             {disk.Holder{PlainAt: ago(time.Minute - 1), InstanceHalted: true}, disk.Wait, "has until"},
		"asked and halted for a minute":  {disk.Holder{PlainAt: ago(time.Minute), InstanceHalted: true}, disk.DetachForced, "stopped or gone"},
		"somebody else's attachment":     {disk.Holder{EndedAt: ago(11 * time.Hour), InstanceHalted: true, PlainAt: ago(11 * time.Hour)}, disk.Refuse, "after the reservation ended, and where its pod ran is unknown"},
		"under way as it ended":          {disk.Holder{InstanceID: "i-1", EndedAt: ago(11 * time.Hour), PodGoneAt: ago(10*time.Hour + 2*time.Minute)}, disk.DetachPlain, "driver left"},
		"under way, the pod still there": {disk.Holder{InstanceID: "i-1", EndedAt: ago(11 * time.Hour)}, disk.Wait, "pod is still there"},
		"attached after the pod":         {disk.Holder{InstanceID: "i-1", EndedAt: ago(11 * time.Hour), PodGoneAt: ago(10*time.Hour + 2*time.Minute + 1)}, disk.Refuse, "after the reservation's pod was gone"},
		"on another instance":            {disk.Holder{InstanceID: "i-2", InstanceHalted: true, PlainAt: ago(11 * time.Hour)}, disk.Refuse, "the pod ran on i-2"},
		"on the pod's instance":          {disk.Holder{InstanceID: "i-1", InstanceHalted: true}, disk.DetachPlain, "stopped or gone"},
		"attached as it ended":           {disk.Holder{EndedAt: ago(10 * time.Hour), InstanceHalted: true}, disk.DetachPlain, "stopped or gone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := attached("i-1")
			if !test.holder.PlainAt.IsZero() {
				v.Attachments[0].State = disk.Detaching
			}
			do, reason := disk.Detach(v, test.holder, now)
			require.Equal(t, test.want, do, reason)
			require.Contains(t, reason, test.reason)
		})
	}
}

func TestADetachThatEC2KnowsNothingOfIsAskedForAgainAndNeverForced(t *testing.T) {
	t.Parallel()
	h := disk.Holder{PlainAt: now.Add(-time.Hour), PodGoneAt: now.Add(-2 * time.Hour), ContainersTerminated: true, InstanceHalted: true}
	for state, want := range map[disk.AttachmentState]disk.Action{
		disk.Attached: disk.DetachPlain, disk.Attaching: disk.DetachPlain, "": disk.DetachPlain,
		disk.Detaching: disk.DetachForced, disk.Busy: disk.DetachForced,
	} {
		v := attached("i-1")
		v.Attachments[0].State = state
		do, reason := disk.Detach(v, h, now)
		require.Equal(t, want, do, reason)
	}
}

func TestNothingIsDetachedFromAVolumeThatHasNone(t *testing.T) {
	t.Parallel()
	do, reason := disk.Detach(available(), disk.Holder{InstanceHalted: true, PlainAt: now.Add(-time.Hour)}, now)
	require.Equal(t, disk.Nothing, do)
	require.NotEmpty(t, reason)
}

func TestActionsHaveWords(t *testing.T) {
	t.Parallel()
	for action, word := range map[disk.Action]string{
		disk.Wait: "wait", disk.Nothing: "nothing", disk.DetachPlain: "detach", disk.DetachForced: "detach forced", disk.Refuse: "refuse",
	} {
		require.Equal(t, word, action.String())
	}
}

// The rule, said once more and the other way round: a forced detach needs one attachment, a plain detach that came
// first, and either an instance that cannot write or ten minutes and the kubelet's word.
func TestAForcedDetachIsAlwaysWarranted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		moment := rapid.Custom(func(t *rapid.T) time.Time {
			if rapid.Bool().Draw(t, "never") {
				return time.Time{}
			}
			return now.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "offset")))
		})
		v := disk.Volume{ID: "vol-1", State: disk.VolumeInUse}
		for range rapid.IntRange(0, 3).Draw(t, "attachments") {
			v.Attachments = append(v.Attachments, disk.Attachment{
				InstanceID: "i-1",
				State:      rapid.SampledFrom([]disk.AttachmentState{disk.Attached, disk.Detaching, disk.Busy, ""}).Draw(t, "state"),
				AttachedAt: moment.Draw(t, "attached at"),
			})
		}
		h := disk.Holder{
			InstanceID: rapid.SampledFrom([]string{"", "i-1"}).Draw(t, "instance"),
			EndedAt:    moment.Draw(t, "ended"), PodGoneAt: moment.Draw(t, "pod gone"), PlainAt: moment.Draw(t, "plain"),
			ContainersTerminated: rapid.Bool().Draw(t, "terminated"), InstanceHalted: rapid.Bool().Draw(t, "halted"),
		}
		do, reason := disk.Detach(v, h, now)
		if reason == "" {
			t.Fatal("no reason given")
		}
		if do == disk.DetachPlain || do == disk.DetachForced {
			if len(v.Attachments) != 1 {
				t.Fatalf("%s with %d attachments", do, len(v.Attachments))
			}
			at, unknown := v.Attachments[0].AttachedAt, h.InstanceID == ""
			late := !h.PodGoneAt.IsZero() && at.After(h.PodGoneAt.Add(disk.AttachTolerance))
			if !h.EndedAt.IsZero() && at.After(h.EndedAt) && (unknown || late) {
				t.Fatalf("%s of a younger attachment", do)
			}
		}
		if do == disk.DetachForced {
			if state := v.Attachments[0].State; state != disk.Detaching && state != disk.Busy {
				t.Fatalf("forced while %q: no plain one is under way", state)
			}
			waited := !h.PlainAt.IsZero() && now.Sub(h.PlainAt) >= 10*time.Minute
			if h.PlainAt.IsZero() || !h.InstanceHalted && (!waited || !h.ContainersTerminated) {
				t.Fatalf("forced without warrant: %+v", h)
			}
		}
	})
}
