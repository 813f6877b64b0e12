package pod

import (
	"cmp"
	"fmt"
)

// Dead reports whether the pod exists but will never run again, and the kubelet's reason for it: it has failed or
// succeeded, or it was disrupted and its main container does not run.
//
// Whatever is not known is not death. A pod without a status, a pending one and one whose node is lost may run yet;
// an OOM-killed container is restarted; and a disrupted pod has its grace period for as long as its main container
// runs, or nobody has said how that stands.
func Dead(p Pod) (dead bool, reason string) {
	switch p.Phase {
	case Failed, Succeeded:
		return true, deathOf(p)
	case Running:
		main, reported := p.Main()
		stopped := reported && !main.Running && (main.Current != nil || main.Waiting != "")
		if p.Disruption != nil && stopped {
			return true, deathOf(p)
		}
	}
	return false, ""
}

// deathOf prefers the kubelet's own words, then those of whoever disrupted the pod, then the way a container ended.
func deathOf(p Pod) string {
	if reason := tidy(p.Reason); reason != "" {
		return sentence(reason, p.Message)
	}
	if p.Disruption != nil {
		return sentence(cmp.Or(tidy(p.Disruption.Reason), "Disrupted"), p.Disruption.Message)
	}
	if c, t := telling(p); t != nil {
		return sentence(t.Reason, fmt.Sprintf("container %s exited with code %d", c, t.ExitCode))
	}
	return sentence(string(p.Phase), p.Message)
}

// telling returns the termination that explains a pod's end best: the main container's, else the first that failed.
func telling(p Pod) (container string, t *Termination) {
	if main, ok := p.Main(); ok && main.Current != nil {
		return main.Name, main.Current
	}
	for _, c := range p.Containers {
		if c.Current != nil && c.Current.ExitCode != 0 {
			return c.Name, c.Current
		}
	}
	return "", nil
}

func sentence(reason, message string) string {
	reason, message = tidy(reason), tidy(message)
	switch {
	case message == "":
		return reason
	case reason == "":
		return message
	}
	return tidy(reason + ": " + message)
}
