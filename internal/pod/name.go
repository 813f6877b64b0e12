package pod

import "regexp"

// defaultNamespace is where the platform puts its pods.
const defaultNamespace = "gpu-dev"

// maxName is the longest name that Kubernetes gives a pod.
const maxName = 253

var (
	podName       = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// NameFor returns the name of a reservation's pod: what its row names, else "gpu-dev-" and the first eight characters
// of the reservation's id. It is false for what cannot be a pod's name, and so never was one.
func NameFor(reservationID, named string) (name string, ok bool) {
	name = named
	if name == "" {
		id := []rune(reservationID)
		name = NamePrefix + string(id[:min(8, len(id))])
	}
	return name, len(name) <= maxName && podName.MatchString(name)
}

// Namespaces returns where a reservation's pod may be, most likely first, from the row's namespace column. The
// column's own default, "default", is a placeholder, and null or empty say nothing: then both it and the platform's
// namespace are to be looked at, and a pod is absent only if it is absent from each. It is nil for what cannot be a
// namespace's name.
func Namespaces(column string) []string {
	switch {
	case column == "" || column == "default":
		return []string{defaultNamespace, "default"}
	case namespaceName.MatchString(column):
		return []string{column}
	}
	return nil
}
