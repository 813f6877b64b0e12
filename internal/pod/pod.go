// Package pod decides about a reservation's pod and what stands around it: is it dead, was a container OOM-killed,
// does it belong to this reservation. It turns values into decisions and talks to nobody.
package pod

import (
	"strings"
	"time"
	"unicode"
)

const (
	// MainContainer is the container that the user works in.
	MainContainer = "gpu-dev"
	// NamePrefix begins the name of every pod that the platform makes for a reservation.
	NamePrefix = "gpu-dev-"
	// Home is the user's home in the main container, where the disk is mounted.
	Home = "/home/dev"
	// UserLabel is the pod label that holds the user's id.
	UserLabel = "user-id"
)

// Phase is a pod's phase in Kubernetes' words. The zero value means that nobody has reported one.
type Phase string

// The phases of a pod. Unknown means that its node cannot be reached.
const (
	Pending   Phase = "Pending"
	Running   Phase = "Running"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
	Unknown   Phase = "Unknown"
)

// Pod is what decisions need to know of a pod. Times are zero where Kubernetes gives none.
type Pod struct {
	Namespace string
	Name      string
	UID       string
	UserID    string
	Labels    map[string]string
	Created   time.Time
	// Deleting is when a requested deletion is due, its grace period over; zero if nobody asked for one.
	Deleting time.Time
	Phase    Phase
	// Reason and Message are the kubelet's, such as "Evicted" and "The node was low on resource: memory".
	Reason  string
	Message string
	// Disruption is the DisruptionTarget condition while it is true: the pod is about to be, or has been, evicted,
	// preempted or collected.
	Disruption *Disruption
	Node       string
	Containers []Container
	// Claims names the PersistentVolumeClaims that the pod mounts, those of its ephemeral volumes included.
	Claims []string
	// VolumeIDs are the EBS volumes that the pod names itself, with no claim between.
	VolumeIDs []string
	// HomeClaim or HomeVolumeID is the one of these on which the main container has the user's home. Both are empty where
	// it has it on none of them, or on several.
	HomeClaim    string
	HomeVolumeID string
}

// Disruption says why a pod was chosen to go.
type Disruption struct {
	Reason  string
	Message string
}

// Kind tells a pod's containers apart.
type Kind string

// The kinds of container. A sidecar is an init container that is restarted for as long as the pod runs.
const (
	App       Kind = "app"
	Init      Kind = "init"
	Sidecar   Kind = "sidecar"
	Ephemeral Kind = "ephemeral"
)

// Container is the reported state of one container.
type Container struct {
	Name string
	Kind Kind
	// ID is that of the current run, such as "containerd://0123"; empty before the first.
	ID       string
	Restarts int
	Running  bool
	// Waiting is why the container does not run yet, or again; empty unless it waits.
	Waiting string
	// Current is set while the container is terminated, Last once a former run has ended.
	Current *Termination
	Last    *Termination
}

// Termination is how one run of a container ended.
type Termination struct {
	ContainerID string
	Reason      string
	ExitCode    int
	FinishedAt  time.Time
	Message     string
}

// Main returns the main container, and false where no state of it has been reported.
func (p Pod) Main() (Container, bool) {
	for _, c := range p.Containers {
		if c.Name == MainContainer && c.Kind == App {
			return c, true
		}
	}
	return Container{}, false
}

// HasVolumes reports whether the pod mounts any volume that may outlast it.
func (p Pod) HasVolumes() bool { return len(p.Claims)+len(p.VolumeIDs) > 0 }

// maxReason keeps a reason to what fits a table's cell and a log line.
const maxReason = 500

// tidy makes one printable line of what the kubelet, or the user's own process through a termination message,
// wrote: PostgreSQL refuses NUL and broken UTF-8, and a terminal obeys control characters.
func tidy(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > maxReason {
		s = string(runes[:maxReason-1]) + "…"
	}
	return s
}
