package pod

import "time"

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
