package pod

import (
	"path"
	"strings"
	"time"
)

// Claim is a PersistentVolumeClaim.
type Claim struct {
	Namespace string
	Name      string
	UID       string
	Created   time.Time
	// Deleting is when its deletion was requested; zero if nobody asked. It stays for as long as a pod uses it.
	Deleting time.Time
	// VolumeName names the PersistentVolume it is bound to; empty while it is not.
	VolumeName string
	Phase      string
}

// RetainPolicy is the reclaim policy under which a volume outlives its claim.
const RetainPolicy = "Retain"

// PersistentVolume is Kubernetes' object for a volume, not the volume itself.
type PersistentVolume struct {
	Name    string
	UID     string
	Created time.Time
	// Deleting is when its deletion was requested; zero if nobody asked. It stays for as long as a claim is bound to it.
	Deleting      time.Time
	ReclaimPolicy string
	Phase         string
	// Driver is the CSI driver, or "kubernetes.io/aws-ebs" for the in-tree field; empty for other kinds.
	Driver string
	// VolumeID is the EBS volume's, "vol-…"; empty where the object names none.
	VolumeID string
	// ClaimNamespace, ClaimName and ClaimUID are those of the claim it is reserved for; empty where there is none.
	ClaimNamespace string
	ClaimName      string
	ClaimUID       string
}

// Retained reports whether the volume outlives its claim.
func (v PersistentVolume) Retained() bool { return v.ReclaimPolicy == RetainPolicy }

// Mount is where a container has one of its pod's volumes.
type Mount struct {
	Volume string // the pod's name for it
	Path   string
}

// HomeMount returns the volume on which the user's home is, by the mounts of the main container: the one mounted there,
// else the deepest above it. It is empty where there is none, or several.
func HomeMount(mounts []Mount) (volume string) {
	deepest := 0
	for _, m := range mounts {
		at := path.Clean("/" + m.Path)
		switch {
		case at != Home && !strings.HasPrefix(Home, at+"/") || len(at) < deepest:
		case len(at) == deepest && m.Volume != volume:
			volume = ""
		default:
			volume, deepest = m.Volume, len(at)
		}
	}
	return volume
}

// HomeVolume returns the EBS volume on which the pod has the user's home, of those that its claims are bound to and it
// names itself. Where that cannot be told it returns all of which one may be it.
func (p Pod) HomeVolume(bound []PersistentVolume) (id string, undecided []string) {
	for _, v := range bound {
		if p.HomeClaim != "" && v.ClaimName == p.HomeClaim {
			return v.VolumeID, nil
		}
		undecided = append(undecided, v.VolumeID)
	}
	if p.HomeClaim != "" || p.HomeVolumeID != "" {
		return p.HomeVolumeID, nil // a claim that was never bound leads to none
	}
	return "", append(undecided, p.VolumeIDs...)
}
