//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// recorder stands before the AWS emulator and notes what is called through it, by IAM's names.
type recorder struct {
	url string

	mu     sync.Mutex
	called map[string]int
}

func record(t *testing.T, endpoint string) *recorder {
	t.Helper()
	target, err := url.Parse(endpoint)
	require.NoError(t, err)
	r := &recorder{called: map[string]int{}}
	pass := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		request.Body = io.NopCloser(bytes.NewReader(body))
		r.mu.Lock()
		r.called[actionOf(request, body)]++
		r.mu.Unlock()
		pass.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

var (
	credential = regexp.MustCompile(`Credential=[^/]+/[^/]+/[^/]+/([^/]+)/`)
	restCalls  = []struct{ method, path, action string }{
		{"PUT", "^/[^/]+/.+", "s3:PutObject"},
		{"GET", "^/2013-04-01/hostedzone/[^/]+/rrset", "route53:ListResourceRecordSets"},
		{"POST", "^/2013-04-01/hostedzone/[^/]+/rrset", "route53:ChangeResourceRecordSets"},
		{"POST", "^/2015-03-31/functions/[^/]+/invocations", "lambda:InvokeFunction"},
		{"GET", "^/clusters/", "eks:DescribeCluster"},
	}
)

// actionOf names a call as a policy does.
func actionOf(r *http.Request, body []byte) string {
	service := "?"
	if found := credential.FindStringSubmatch(r.Header.Get("Authorization")); found != nil {
		service = found[1]
	}
	if form, err := url.ParseQuery(string(body)); err == nil && form.Get("Action") != "" {
		return service + ":" + form.Get("Action")
	}
	for _, one := range restCalls {
		if r.Method == one.method && strings.HasPrefix(one.action, service+":") && regexp.MustCompile(one.path).MatchString(r.URL.Path) {
			return one.action
		}
	}
	return service + ":" + r.Method + " " + r.URL.Path
}

// allowed returns the actions of the policy that is shipped, and what needs none.
func allowed(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "knative", "account", "iam-policy.json"))
	require.NoError(t, err)
	var policy struct{ Statement []struct{ Action any } }
	require.NoError(t, json.Unmarshal(text, &policy))
	actions := map[string]bool{"sts:GetCallerIdentity": true} // whoever has credentials may ask whose they are
	for _, s := range policy.Statement {
		switch a := s.Action.(type) {
		case string:
			actions[a] = true
		case []any:
			for _, one := range a {
				actions[one.(string)] = true
			}
		}
	}
	return actions
}
