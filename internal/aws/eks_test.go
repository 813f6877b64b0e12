package aws_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/fault"
)

var _ oauth2.TokenSource = (*aws.EKS)(nil)

// apiServer is a TLS server that keeps the bearer tokens it is shown, and the EKS answer that leads to it.
type apiServer struct {
	mu     sync.Mutex
	tokens []string
	status int
}

func newAPIServer(t *testing.T) (*apiServer, answer) {
	api := &apiServer{status: http.StatusOK}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.mu.Lock()
		defer api.mu.Unlock()
		api.tokens = append(api.tokens, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		w.WriteHeader(api.status)
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return api, func(w http.ResponseWriter) {
		_, _ = fmt.Fprintf(w, `{"cluster":{"endpoint":%q,"certificateAuthority":{"data":%q}}}`,
			server.URL, base64.StdEncoding.EncodeToString(ca))
	}
}

func (a *apiServer) answerWith(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

func (a *apiServer) distinct() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	distinct := map[string]bool{}
	for _, token := range a.tokens {
		distinct[token] = true
	}
	return len(distinct)
}

// countingCredentials changes with every retrieval, so that every new token differs.
func countingCredentials(expires time.Time) awssdk.CredentialsProvider {
	var mu sync.Mutex
	n := 0
	return awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		return awssdk.Credentials{
			AccessKeyID: fmt.Sprintf("AKIA%d", n), SecretAccessKey: "secret", CanExpire: !expires.IsZero(), Expires: expires,
		}, nil
	})
}

func httpClient(t *testing.T, eks *aws.EKS) (*http.Client, string) {
	config, err := eks.RESTConfig(t.Context())
	require.NoError(t, err)
	client, err := rest.HTTPClientFor(config)
	require.NoError(t, err)
	return client, config.Host
}

func get(t *testing.T, client *http.Client, url string) {
	t.Helper()
	resp, err := client.Get(url)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
}

func TestATokenIsASignedQuestionForTheCallersIdentityBoundToTheCluster(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, lost)
	cfg.BaseEndpoint = nil
	now := time.Now()
	token, err := aws.NewEKS(cfg, "gpu-dev", func() time.Time { return now }).Token()
	require.NoError(t, err)
	require.Equal(t, "Bearer", token.Type())
	require.Equal(t, now.Add(13*time.Minute), token.Expiry)

	encoded, ok := strings.CutPrefix(token.AccessToken, "k8s-aws-v1.")
	require.True(t, ok)
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	require.NoError(t, err)
	u, err := url.Parse(string(decoded))
	require.NoError(t, err)
	require.Equal(t, "sts.us-east-1.amazonaws.com", u.Host)
	q := u.Query()
	require.Equal(t, "GetCallerIdentity", q.Get("Action"))
	require.Equal(t, "60", q.Get("X-Amz-Expires"))
	require.Equal(t, "host;x-k8s-aws-id", q.Get("X-Amz-SignedHeaders"))
	require.NotEmpty(t, q.Get("X-Amz-Signature"))
}

func TestATokenEndsNoLaterThanTheCredentialsThatSignedIt(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, lost)
	now := time.Now()
	cfg.Credentials = countingCredentials(now.Add(time.Minute))
	token, err := aws.NewEKS(cfg, "c", func() time.Time { return now }).Token()
	require.NoError(t, err)
	require.Equal(t, now.Add(time.Minute), token.Expiry)
}

func TestATokenIsKeptWhileItLastsAndRenewedWhenItEndsOrIsRefused(t *testing.T) {
	t.Parallel()
	api, cluster := newAPIServer(t)
	fake, cfg := newFake(t, cluster)
	cfg.Credentials = countingCredentials(time.Time{})
	client, host := httpClient(t, aws.NewEKS(cfg, "c", time.Now))
	fake.calls(t, 1)
	for range 3 {
		get(t, client, host)
	}
	require.Equal(t, 1, api.distinct())

	api.answerWith(http.StatusUnauthorized)
	get(t, client, host)
	api.answerWith(http.StatusOK)
	get(t, client, host)
	require.Equal(t, 2, api.distinct(), "a refused token is not used again")

	old := func() time.Time { return time.Now().Add(-13 * time.Minute) }
	client, host = httpClient(t, aws.NewEKS(cfg, "c", old))
	get(t, client, host)
	get(t, client, host)
	require.Equal(t, 4, api.distinct(), "a token past its life is not used again")
}

func TestCommandsCarryTheTokenToo(t *testing.T) {
	t.Parallel()
	api, cluster := newAPIServer(t)
	api.answerWith(http.StatusForbidden)
	_, cfg := newFake(t, cluster)
	config, err := aws.NewEKS(cfg, "c", time.Now).RESTConfig(t.Context())
	require.NoError(t, err)
	exec, err := url.Parse(config.Host + "/exec")
	require.NoError(t, err)
	overWebSocket, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, exec.String())
	require.NoError(t, err)
	overSPDY, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, exec)
	require.NoError(t, err)
	for _, executor := range []remotecommand.Executor{overWebSocket, overSPDY} {
		require.Error(t, executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}))
	}
	require.Len(t, api.tokens, 2)
	for _, token := range api.tokens {
		require.Contains(t, token, "k8s-aws-v1.")
	}
}

func TestAClusterThatCannotBeReachedIsSaidSo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer answer
		kind   fault.Kind
	}{
		"unknown":       {jsonError(404, "ResourceNotFoundException"), fault.Permanent},
		"forbidden":     {jsonError(403, "AccessDeniedException"), fault.Permanent},
		"being created": {func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"cluster":{"status":"CREATING"}}`)) }, fault.Transient},
		"no cluster":    {func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{}`)) }, fault.Transient},
		"broken CA data": {func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(`{"cluster":{"endpoint":"https://x","certificateAuthority":{"data":"%"}}}`))
		}, fault.Permanent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, cfg := newFake(t, test.answer)
			config, err := aws.NewEKS(cfg, "gpu-dev", time.Now).RESTConfig(t.Context())
			require.ErrorContains(t, err, "describe cluster gpu-dev: ")
			require.Equal(t, test.kind, fault.KindOf(err), err)
			require.Nil(t, config)
		})
	}
}

func TestWithoutCredentialsThereIsNoToken(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, lost)
	cfg.Credentials = awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
		return awssdk.Credentials{}, errors.New("none")
	})
	_, err := aws.NewEKS(cfg, "gpu-dev", time.Now).Token()
	require.ErrorContains(t, err, "get credentials for cluster gpu-dev: none")
}
