package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoMayPostIsSaidInFull(t *testing.T) {
	t.Parallel()
	const issuer, audience, secret = "EVENTS_OIDC_ISSUER=https://issuer.example.org/a", "EVENTS_OIDC_AUDIENCE=us", "EVENTS_BEARER_TOKEN=hunter2-hunter2-hunter2"
	for name, c := range map[string]struct {
		environ []string
		wrong   string // empty: it is right
	}{
		"nobody in particular":               {nil, ""},
		"a secret":                           {[]string{secret}, ""},
		"a secret with the last that prints": {[]string{secret + "~"}, ""},
		"a secret in a file":                 {[]string{"EVENTS_BEARER_TOKEN_FILE=/secrets/token"}, ""},
		"an issuer behind a sink":            {[]string{issuer, audience, "K_SINK=http://broker/"}, ""},
		"an issuer where Knative runs it":    {[]string{issuer, audience, "K_SERVICE=reservation-expiry"}, ""},
		"an issuer and a secret":             {[]string{issuer, audience, secret}, ""},
		"an issuer on the loopback":          {[]string{"EVENTS_OIDC_ISSUER=http://127.0.0.1:99", audience, secret}, ""},
		"both secrets":                       {[]string{secret, "EVENTS_BEARER_TOKEN_FILE=/secrets/token"}, "EVENTS_BEARER_TOKEN_FILE is set, and so is EVENTS_BEARER_TOKEN: choose one"},
		"a short secret":                     {[]string{"EVENTS_BEARER_TOKEN=hunter2"}, "EVENTS_BEARER_TOKEN must be 16 or more printable ASCII characters without a space"},
		"a secret with a space":              {[]string{"EVENTS_BEARER_TOKEN=hunter2 hunter2 hunter2"}, "EVENTS_BEARER_TOKEN must be 16 or more printable ASCII characters without a space"},
		"a secret with a line break":         {[]string{secret + "\n"}, "EVENTS_BEARER_TOKEN must be 16 or more printable ASCII characters without a space"},
		"an issuer that is its own sink":     {[]string{issuer, audience}, "EVENTS_BEARER_TOKEN is missing: without K_SINK the service sends itself events, and cannot make tokens of EVENTS_OIDC_ISSUER"},
		"an issuer without an audience":      {[]string{issuer, secret}, "EVENTS_OIDC_AUDIENCE is missing while EVENTS_OIDC_ISSUER is set"},
		"an audience without an issuer":      {[]string{audience}, "EVENTS_OIDC_ISSUER is missing while EVENTS_OIDC_AUDIENCE is set"},
		"subjects without an issuer":         {[]string{"EVENTS_OIDC_SUBJECTS=ada"}, "EVENTS_OIDC_ISSUER is missing while EVENTS_OIDC_SUBJECTS is set"},
		"an issuer without TLS":              {[]string{"EVENTS_OIDC_ISSUER=http://issuer.example.org", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"an issuer with a password":          {[]string{"EVENTS_OIDC_ISSUER=https://a:hunter2@issuer.example.org", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"an issuer that is no URL":           {[]string{"EVENTS_OIDC_ISSUER=issuer", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"an issuer without a host":           {[]string{"EVENTS_OIDC_ISSUER=https:///a", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"an issuer that cannot be read":      {[]string{"EVENTS_OIDC_ISSUER=https://is suer/", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"an issuer with more than a path":    {[]string{"EVENTS_OIDC_ISSUER=https://issuer.example.org/?a=b", audience, secret}, "EVENTS_OIDC_ISSUER must be an https URL (http on the loopback only) without user, password, query or fragment"},
		"subjects that are none, and no use": {[]string{"EVENTS_OIDC_SUBJECTS= , "}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(enough(c.environ...), noFile)
			_, replay := LoadReplay(enough(c.environ...))
			if c.wrong == "" {
				require.NoError(t, err)
				require.NoError(t, replay)
				return
			}
			require.EqualError(t, err, "environment: "+c.wrong)
			require.EqualError(t, replay, "environment: "+c.wrong)
		})
	}
}
