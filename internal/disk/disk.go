// Package disk decides what may happen to a persistent disk: when its writer is gone, when its volume may be
// detached or deleted, which of its snapshots stay. It turns values into decisions and talks to nobody.
//
// Between reservations a disk exists as snapshots only, so a wrong "yes" here loses somebody's work. Every
// decision therefore answers no, with the reason, to whatever it does not know.
package disk

import (
	"regexp"
	"strings"
	"time"
)

// Key names a disk: two users may both have one called "default".
type Key struct {
	User string
	Name string
}

// Row is what the platform's disks table says of a disk, as far as its snapshots are concerned.
type Row struct {
	// InUse is true while some reservation, or the cleanup of one, holds the disk.
	InUse bool
	// Deleted is true once the user has deleted the disk. Until DeleteDate it can be restored.
	Deleted bool
	// DeleteDate is the UTC midnight from which the snapshots of a deleted disk may go; zero where the column is null.
	DeleteDate time.Time
	// MarkedDeletedAt is when the user deleted the disk; zero where the column is null.
	MarkedDeletedAt time.Time
}

// VolumeState is the state of an EBS volume in EC2's words.
type VolumeState string

// The states of a volume.
const (
	VolumeCreating  VolumeState = "creating"
	VolumeAvailable VolumeState = "available"
	VolumeInUse     VolumeState = "in-use"
	VolumeDeleting  VolumeState = "deleting"
	VolumeDeleted   VolumeState = "deleted"
	VolumeError     VolumeState = "error"
)

// AttachmentState is the state of an attachment in EC2's words.
type AttachmentState string

// The states of an attachment. Busy means that the instance's operating system still holds the device.
const (
	Attaching AttachmentState = "attaching"
	Attached  AttachmentState = "attached"
	Detaching AttachmentState = "detaching"
	Detached  AttachmentState = "detached"
	Busy      AttachmentState = "busy"
)

// Attachment ties a volume to an instance.
type Attachment struct {
	InstanceID          string
	Device              string
	State               AttachmentState
	DeleteOnTermination bool
	AttachedAt          time.Time
}

// Volume is an EBS volume as EC2 describes it.
type Volume struct {
	ID          string
	State       VolumeState
	Attachments []Attachment
	SizeGiB     int
	Tags        map[string]string
	CreatedAt   time.Time
	Zone        string
}

// InstanceState is the state of an EC2 instance in EC2's words.
type InstanceState string

// The states of an instance.
const (
	InstancePending      InstanceState = "pending"
	InstanceRunning      InstanceState = "running"
	InstanceShuttingDown InstanceState = "shutting-down"
	InstanceTerminated   InstanceState = "terminated"
	InstanceStopping     InstanceState = "stopping"
	InstanceStopped      InstanceState = "stopped"
)

// Instance is an EC2 instance as EC2 describes it.
type Instance struct {
	ID    string
	State InstanceState
	// StateReason is EC2's code for the last change of state, such as "Server.SpotInstanceTermination".
	StateReason string
	Spot        bool
}

// Halted reports whether nothing can run on the instance any more: it is stopped or terminated, not on its way there.
func (i Instance) Halted() bool {
	return i.State == InstanceStopped || i.State == InstanceTerminated
}

// Reclaimed reports whether EC2 took a spot instance back, as opposed to somebody ending it.
func (i Instance) Reclaimed() bool {
	return i.Spot && strings.HasPrefix(i.StateReason, "Server.SpotInstance")
}

var (
	volumeID   = regexp.MustCompile(`^vol-[0-9a-f]{8,17}$`)
	instanceID = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
)

// ParseVolumeID reads a volume's id from what the reservation's row or a PersistentVolume holds: the id itself,
// as the EBS CSI driver keeps it, or the in-tree form "aws://us-east-1a/vol-0123".
func ParseVolumeID(handle string) (id string, ok bool) {
	return lastSegment(handle, volumeID)
}

// ParseInstanceID reads an instance's id from a node's provider id, "aws:///us-east-1a/i-0123".
func ParseInstanceID(providerID string) (id string, ok bool) {
	return lastSegment(providerID, instanceID)
}

func lastSegment(s string, shape *regexp.Regexp) (string, bool) {
	if rest, found := strings.CutPrefix(s, "aws://"); found {
		s = rest[strings.LastIndex(rest, "/")+1:]
	}
	return s, shape.MatchString(s)
}
