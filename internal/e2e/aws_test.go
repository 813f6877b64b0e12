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
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/stacktest"
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
		r.called[stacktest.ActionOf(request, body)]++
		r.mu.Unlock()
		pass.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
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
