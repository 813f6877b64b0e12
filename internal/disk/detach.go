package disk

import (
	"cmp"
	"fmt"
	"time"
)

const (
	// DriverGrace is how long the volume driver is left to detach the volume by itself once the pod is gone, where nobody
	// says otherwise.
	DriverGrace = time.Minute
	// ForceAfter is how long a plain detach is given before a forced one may follow on an instance that still runs.
	ForceAfter = 10 * time.Minute
	// ForceAfterHalted is the same for an instance that is stopped or gone: EC2 needs a moment to see it, and a
	// volume that leaves by a plain detach needs no marking as crash-consistent.
	ForceAfterHalted = time.Minute
	// AttachTolerance is how long after its pod is gone an attachment to the pod's own instance may still be one that was
	// under way for it: the driver asks EC2, waits, and asks again. EC2's clock and ours differ by far less.
	AttachTolerance = 2 * time.Minute
)

// Action is what to do about a volume's attachment.
type Action int

const (
	// Wait means that nothing may be done now; the reason says what is waited for.
	Wait Action = iota
	// Nothing means that no attachment is left.
	Nothing
	// DetachPlain asks the instance's operating system to let go of the device.
	DetachPlain
	// DetachForced takes the device away without asking. What had not reached the disk is lost.
	DetachForced
	// Refuse means that this will not become right by waiting: somebody has to look.
	Refuse
)

// String returns the action as the word used in logs and stored reasons.
func (a Action) String() string {
	switch a {
	case Nothing:
		return "nothing"
	case DetachPlain:
		return "detach"
	case DetachForced:
		return "detach forced"
	case Refuse:
		return "refuse"
	default:
		return "wait"
	}
}

// Holder is what is known of those who may still write to a volume.
type Holder struct {
	// Disk is the reservation's. A volume whose tags name another is left alone.
	Disk Key
	// EndedAt is when the reservation ended. An attachment made later is the pod's only on the pod's own instance.
	EndedAt time.Time
	// InstanceID is the instance on which the pod ran; empty where unknown. An attachment to another is somebody else's.
	InstanceID string
	// PodGoneAt is when the pod was first seen to be gone; zero while it is there. An attachment made later than
	// AttachTolerance after it is somebody else's.
	PodGoneAt time.Time
	// ContainersTerminated is true where the kubelet reported every container of the pod terminated.
	ContainersTerminated bool
	// InstanceHalted is true where EC2 said that the instance is stopped, terminated or unknown to it.
	InstanceHalted bool
	// PlainAt is when this cleanup last asked for a plain detach, whatever came of it; zero if it has not.
	PlainAt time.Time
	// DriverGrace is how long the volume driver is left to detach the volume by itself; 0: the constant.
	DriverGrace time.Duration
}

// Detach decides what may be done about the volume's attachment, and why.
func Detach(v Volume, h Holder, now time.Time) (do Action, reason string) {
	if why := h.Disk.Others(v); why != "" {
		return Refuse, why
	}
	switch len(v.Attachments) {
	case 0:
		return Nothing, fmt.Sprintf("volume %s has no attachment", v.ID)
	case 1:
	default:
		return Refuse, fmt.Sprintf("volume %s has %d attachments", v.ID, len(v.Attachments))
	}
	a := v.Attachments[0]
	if h.InstanceID != "" && a.InstanceID != h.InstanceID {
		return Refuse, fmt.Sprintf("volume %s is attached to %s, the pod ran on %s", v.ID, a.InstanceID, h.InstanceID)
	}
	if whose := h.othersAttachment(a); whose != "" {
		return Refuse, fmt.Sprintf("volume %s was attached to %s %s", v.ID, a.InstanceID, whose)
	}
	if !h.PlainAt.IsZero() {
		return force(v, a, h, now)
	}
	driverUntil := h.PodGoneAt.Add(cmp.Or(h.DriverGrace, DriverGrace))
	switch {
	case h.InstanceHalted:
		return DetachPlain, fmt.Sprintf("instance %s is stopped or gone", a.InstanceID)
	case h.PodGoneAt.IsZero():
		return Wait, "the pod is still there"
	case now.Before(driverUntil):
		return Wait, fmt.Sprintf("the driver has until %s to detach volume %s", driverUntil.UTC().Format(time.RFC3339), v.ID)
	}
	return DetachPlain, fmt.Sprintf("the driver left volume %s %s to %s", v.ID, a.State, a.InstanceID)
}

// othersAttachment says why an attachment cannot be the pod's by the time at which it was made, empty where it can. One
// that was under way when the reservation ended, to an instance where its pod is known to have been, still is.
func (h Holder) othersAttachment(a Attachment) string {
	switch {
	case h.EndedAt.IsZero() || !a.AttachedAt.After(h.EndedAt):
		return ""
	case h.InstanceID == "":
		return "after the reservation ended, and where its pod ran is unknown"
	case !h.PodGoneAt.IsZero() && a.AttachedAt.After(h.PodGoneAt.Add(AttachTolerance)):
		return "after the reservation's pod was gone"
	}
	return ""
}

func force(v Volume, a Attachment, h Holder, now time.Time) (Action, string) {
	patience := ForceAfter
	if h.InstanceHalted {
		patience = ForceAfterHalted
	}
	switch {
	case a.State != Detaching && a.State != Busy: // the last request was lost, refused, or for another attachment
		return DetachPlain, fmt.Sprintf("volume %s is %s to %s although a detach was asked for", v.ID, a.State, a.InstanceID)
	case now.Before(h.PlainAt.Add(patience)):
		return Wait, fmt.Sprintf("instance %s has until %s to let go of volume %s",
			a.InstanceID, h.PlainAt.Add(patience).UTC().Format(time.RFC3339), v.ID)
	case h.InstanceHalted:
		return DetachForced, fmt.Sprintf("instance %s is stopped or gone and volume %s still %s", a.InstanceID, v.ID, a.State)
	case h.ContainersTerminated:
		return DetachForced, fmt.Sprintf("volume %s still %s %s after a plain detach, containers terminated", v.ID, a.State, patience)
	}
	return Wait, fmt.Sprintf("volume %s is still %s to %s, which runs, and its containers were not reported terminated",
		v.ID, a.State, a.InstanceID)
}
