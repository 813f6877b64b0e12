package reservation

import (
	"regexp"
	"strings"
)

// hostLabel is a DNS label as the platform makes them: underscores included ("grumpy_bear").
var hostLabel = regexp.MustCompile(`^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?$`)

// DNSName returns the fully qualified name, lower-cased and without a trailing dot, under which a reservation's server
// is reached: fqdn, or else domain_name (a bare label, or qualified already) within zone, which is DOMAIN_NAME.
//
// ok is false where there is none: neither column says anything, no zone is configured, the name is no DNS name, or it
// lies outside the zone or is the zone itself. Such a name is not ours to take away.
func (r Reservation) DNSName(zone string) (name string, ok bool) {
	zone = canonicalHost(zone)
	name = canonicalHost(r.FQDN)
	if name == "" {
		name = canonicalHost(r.DomainName)
		if name != "" && name != zone && !strings.HasSuffix(name, "."+zone) {
			name += "." + zone
		}
	}
	if zone == "" || len(name) > 253 || !strings.HasSuffix(name, "."+zone) {
		return "", false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !hostLabel.MatchString(label) {
			return "", false
		}
	}
	return name, true
}

func canonicalHost(name string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), ".")
}
