package pod

import "time"

// Service is what decisions need to know of a Kubernetes service.
type Service struct {
	Namespace string
	Name      string
	UID       string
	Created   time.Time
	// Deleting is when its deletion was requested; zero if nobody asked for one.
	Deleting time.Time
	Selector map[string]string
}

// SSHService returns the name of the service through which a pod's user logs in.
func SSHService(podName string) string { return podName + "-ssh" }

// ServicesOf returns the services that stand before this pod and no other: the one named "<pod>-ssh", and those whose
// selector matches this pod's labels. A service that selects another pod as well is left out, whatever its name.
// Both lists must be whole; a pod that is gone is given by its namespace and name alone.
//
// Whether such a service belongs to a reservation is for BelongsTo to say.
func ServicesOf(p Pod, pods []Pod, services []Service) []Service {
	var found []Service
	for _, s := range services {
		if s.Namespace != p.Namespace || s.selectsOther(p, pods) {
			continue
		}
		if s.Name == SSHService(p.Name) || s.selects(p) {
			found = append(found, s)
		}
	}
	return found
}

// selects follows Kubernetes: a service without a selector selects nothing.
func (s Service) selects(p Pod) bool {
	if len(s.Selector) == 0 || s.Namespace != p.Namespace {
		return false
	}
	for key, value := range s.Selector {
		if got, ok := p.Labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func (s Service) selectsOther(p Pod, pods []Pod) bool {
	for _, other := range pods {
		if other.Name != p.Name && s.selects(other) {
			return true
		}
	}
	return false
}
