package config

import "net/url"

func (c Traces) check(p problems) {
	if c.JaegerQueryURL == "" {
		return
	}
	u, err := url.Parse(c.JaegerQueryURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		p.bad("JAEGER_QUERY_URL", "must be an http or https address")
	}
}
