package config

import (
	"net"
	"net/url"
	"slices"
	"strings"
)

// shortestToken is the least length of a shared secret.
const shortestToken = 16

func (c *Entry) check(p problems, d Delivery) {
	if c.Issuer != "" && !fitsAnIssuer(c.Issuer) {
		p.bad("EVENTS_OIDC_ISSUER", "must be an https URL (http on the loopback only) without user, password, query or fragment")
	}
	switch {
	case c.Issuer == "" && c.Audience != "":
		p.bad("EVENTS_OIDC_ISSUER", "is missing while EVENTS_OIDC_AUDIENCE is set")
	case c.Issuer != "" && c.Audience == "":
		p.bad("EVENTS_OIDC_AUDIENCE", "is missing while EVENTS_OIDC_ISSUER is set")
	}
	subjects := c.Subjects[:0]
	for _, subject := range c.Subjects {
		if subject = strings.TrimSpace(subject); subject != "" {
			subjects = append(subjects, subject)
		}
	}
	c.Subjects = subjects
	if len(c.Subjects) > 0 && c.Issuer == "" {
		p.bad("EVENTS_OIDC_ISSUER", "is missing while EVENTS_OIDC_SUBJECTS is set")
	}
	token := c.Token.Reveal()
	switch {
	case token != "" && c.TokenFile != "":
		p.bad("EVENTS_BEARER_TOKEN_FILE", "is set, and so is EVENTS_BEARER_TOKEN: choose one")
	case token != "" && (len(token) < shortestToken || slices.ContainsFunc([]byte(token), func(b byte) bool { return b <= ' ' || b > '~' })):
		p.bad("EVENTS_BEARER_TOKEN", "must be 16 or more printable ASCII characters without a space")
	case token == "" && c.TokenFile == "" && c.Issuer != "" && d.Sink == "" && d.Service == "":
		p.bad("EVENTS_BEARER_TOKEN", "is missing: without K_SINK the service sends itself events, and cannot make tokens of EVENTS_OIDC_ISSUER")
	}
}

// fitsAnIssuer follows OpenID Connect Discovery 1.0, section 2; the loopback is for tests.
func fitsAnIssuer(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback()
}
