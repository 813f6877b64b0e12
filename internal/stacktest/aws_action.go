package stacktest

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

var (
	credential = regexp.MustCompile(`Credential=[^/]+/[^/]+/[^/]+/([^/]+)/`)
	restCalls  = []struct {
		method string
		path   *regexp.Regexp
		action string
	}{
		{http.MethodPut, regexp.MustCompile("^/[^/]+/.+"), "s3:PutObject"},
		{http.MethodGet, regexp.MustCompile("^/2013-04-01/hostedzone/[^/]+/rrset"), "route53:ListResourceRecordSets"},
		{http.MethodPost, regexp.MustCompile("^/2013-04-01/hostedzone/[^/]+/rrset"), "route53:ChangeResourceRecordSets"},
		{http.MethodPost, regexp.MustCompile("^/2015-03-31/functions/[^/]+/invocations"), "lambda:InvokeFunction"},
		{http.MethodGet, regexp.MustCompile("^/clusters/"), "eks:DescribeCluster"},
	}
)

// ActionOf names a call to AWS as a policy does: "ec2:DeleteVolume". One that it does not know has its method and path.
func ActionOf(r *http.Request, body []byte) string {
	service := "?"
	if found := credential.FindStringSubmatch(r.Header.Get("Authorization")); found != nil {
		service = found[1]
	}
	if form, err := url.ParseQuery(string(body)); err == nil && form.Get("Action") != "" {
		return service + ":" + form.Get("Action")
	}
	for _, one := range restCalls {
		if r.Method == one.method && strings.HasPrefix(one.action, service+":") && one.path.MatchString(r.URL.Path) {
			return one.action
		}
	}
	return service + ":" + r.Method + " " + r.URL.Path
}
