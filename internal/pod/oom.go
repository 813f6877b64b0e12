package pod

import (
	"fmt"
	"time"
)

// OOM is one run of a container that the kernel killed for want of memory.
type OOM struct {
	// Key is the same each time the same kill is seen and differs between kills: container id and finish time.
	Key string
	// ContainerID is the id of the run that was killed. Where the kubelet gave none it stands for the container and, if
	// there is no finish time either, for the run.
	ContainerID string
	Container   string
	Kind        Kind
	// At is when the run ended; zero where the kubelet did not say.
	At time.Time
}

// oomKilled is the kubelet's reason. Exit code 137 alone is not enough: any SIGKILL leaves it.
const oomKilled = "OOMKilled"

// OOMs returns every OOM kill that the pod's status still shows, each once, in the order of its containers, the earlier
// first. A status keeps the current and the last run only: of several kills between two looks at it the last is seen.
func OOMs(p Pod) []OOM {
	var found []OOM
	seen := map[string]bool{}
	collect := func(c Container, ended *Termination, run int) {
		if ended == nil || ended.Reason != oomKilled {
			return
		}
		id, key := runKey(p, c, ended, run)
		if !seen[key] {
			seen[key] = true
			found = append(found, OOM{Key: key, ContainerID: id, Container: c.Name, Kind: c.Kind, At: ended.FinishedAt})
		}
	}
	for _, c := range p.Containers {
		collect(c, c.Last, c.Restarts-1)
		collect(c, c.Current, c.Restarts)
	}
	return found
}

// runKey falls back, where the kubelet gave no container id, to the pod's container by name, and where it gave no
// finish time, to the number of the run. Only what the termination itself says is used: the id in the container's
// status is another one as soon as it runs again, and the same kill would be counted twice.
func runKey(p Pod, c Container, t *Termination, run int) (id, key string) {
	id = t.ContainerID
	if id == "" {
		owner := p.UID
		if owner == "" {
			owner = p.Namespace + "/" + p.Name
		}
		id = owner + "/" + c.Name
	}
	if t.FinishedAt.IsZero() {
		id = fmt.Sprintf("%s#%d", id, run)
		return id, id
	}
	return id, id + "@" + t.FinishedAt.UTC().Format(time.RFC3339Nano)
}
