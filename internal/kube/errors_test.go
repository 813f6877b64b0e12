package kube_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/kube"
)

func TestWhatMayBeConcludedFromAnAnswer(t *testing.T) {
	t.Parallel()
	text := func(code int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	object := func(code int, o any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { write(w, code, o) }
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   fault.Kind
	}{
		"no such pod":                     {object(404, status(404, metav1.StatusReasonNotFound, "pods", "p")), fault.Gone},
		"no such pod, of another name":    {object(404, status(404, metav1.StatusReasonNotFound, "pods", "q")), fault.Transient},
		"no such namespace":               {object(404, status(404, metav1.StatusReasonNotFound, "namespaces", "gpu-dev")), fault.Transient},
		"no such resource":                {object(404, status(404, metav1.StatusReasonNotFound, "", "")), fault.Transient},
		"not found, without details":      {object(404, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 404, Reason: "NotFound"}), fault.Transient},
		"a proxy's page for not found":    {text(404, "text/html", "<h1>404</h1>"), fault.Transient},
		"not found, nothing more":         {text(404, "text/plain", ""), fault.Transient},
		"not found, other JSON":           {text(404, "application/json", `{"error":"no route"}`), fault.Transient},
		"gone for good, says a proxy":     {text(410, "text/html", "gone"), fault.Transient},
		"not logged in":                   {object(401, status(401, metav1.StatusReasonUnauthorized, "", "")), fault.Transient},
		"forbidden":                       {object(403, status(403, metav1.StatusReasonForbidden, "pods", "p")), fault.Permanent},
		"conflict":                        {object(409, status(409, metav1.StatusReasonConflict, "pods", "p")), fault.Conflict},
		"invalid":                         {object(422, status(422, metav1.StatusReasonInvalid, "pods", "p")), fault.Permanent},
		"too many requests":               {object(429, status(429, metav1.StatusReasonTooManyRequests, "", "")), fault.Transient},
		"internal error":                  {object(500, status(500, metav1.StatusReasonInternalError, "pods", "p")), fault.Transient},
		"unavailable":                     {text(503, "text/plain", "no backend"), fault.Transient},
		"time-out":                        {object(504, status(504, metav1.StatusReasonTimeout, "pods", "p")), fault.Transient},
		"a login page":                    {text(200, "text/html", "<form>"), fault.Transient},
		"nothing":                         {text(200, "application/json", ""), fault.Transient},
		"an empty object":                 {text(200, "application/json", "{}"), fault.Transient},
		"half an object":                  {text(200, "application/json", `{"kind":"Pod","apiVersion":"v1","meta`), fault.Transient},
		"another pod":                     {object(200, podObject("q")), fault.Transient},
		"another kind of object":          {object(200, podPage("")), fault.Transient},
		"a status that says all was well": {object(200, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"}), fault.Transient},
		"a connection cut in mid-answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"kind":"Pod"`)
			panic(http.ErrAbortHandler)
		}, fault.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := answering(t, c.answer).GetPod(t.Context(), "gpu-dev", "p")
			require.Error(t, err)
			require.Equal(t, c.want.String(), fault.KindOf(err).String(), err)
			require.ErrorContains(t, err, "get pods gpu-dev/p: ")
		})
	}
}

func TestAnAPIServerOutOfReachIsTransient(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	_, err := at(server.URL, kube.Options{}).GetPod(t.Context(), "gpu-dev", "p")
	require.Error(t, err)
	require.Equal(t, fault.Transient, fault.KindOf(err))
}

func TestACallThatHangsEndsInTime(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	cluster := at(server.URL, kube.Options{Timeout: 50 * time.Millisecond})
	began := time.Now()
	_, err := cluster.ListPods(t.Context(), "gpu-dev")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.Less(t, time.Since(began), 10*time.Second)
}

func TestThrottlingIsWaitedForBrieflyThenTransient(t *testing.T) {
	t.Parallel()
	asked := 0
	cluster := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Retry-After", "0")
		if asked > 5 {
			write(w, 200, podObject("p"))
			return
		}
		write(w, 429, status(429, metav1.StatusReasonTooManyRequests, "", ""))
	})
	_, err := cluster.GetPod(t.Context(), "gpu-dev", "p")
	require.Error(t, err)
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.Equal(t, 3, asked)
	_, err = cluster.GetPod(t.Context(), "gpu-dev", "p")
	require.NoError(t, err, "the server asked to come again and was well by then")
}

func TestNothingIsDialledBeforeTheFirstCallAndAFailureIsNotRemembered(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { write(w, 200, podObject("p")) }))
	t.Cleanup(server.Close)
	asked := 0
	cluster := kube.New(func(context.Context) (*rest.Config, error) {
		asked++
		if asked == 1 {
			return nil, errors.New("not yet")
		}
		return &rest.Config{Host: server.URL}, nil
	}, kube.Options{})
	require.Zero(t, asked)
	_, err := cluster.GetPod(t.Context(), "gpu-dev", "p")
	require.ErrorContains(t, err, "not yet")
	for range 2 {
		_, err = cluster.GetPod(t.Context(), "gpu-dev", "p")
		require.NoError(t, err)
	}
	require.Equal(t, 2, asked)
}

// A cluster or a token that is gone says nothing about a pod.
func TestAbsenceOfSomethingElseIsNotThePods(t *testing.T) {
	t.Parallel()
	noCluster := kube.New(func(context.Context) (*rest.Config, error) {
		return nil, fault.Errorf(fault.Gone, "describe cluster: it does not exist")
	}, kube.Options{})
	noToken := at("http://127.0.0.1:1", kube.Options{WrapTransport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(*http.Request) (*http.Response, error) { return nil, fault.Errorf(fault.Conflict, "no token") })
	}})
	refused := at("http://127.0.0.1:1", kube.Options{WrapTransport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(*http.Request) (*http.Response, error) {
			return nil, fault.Errorf(fault.Permanent, "no permission")
		})
	}})
	for cluster, want := range map[*kube.Cluster]fault.Kind{noCluster: fault.Transient, noToken: fault.Transient, refused: fault.Permanent} {
		_, err := cluster.GetPod(t.Context(), "gpu-dev", "p")
		require.Equal(t, want.String(), fault.KindOf(err).String(), err)
		_, err = cluster.Exec(t.Context(), kube.Command{Namespace: "gpu-dev", Pod: "p", Argv: []string{"true"}})
		require.Equal(t, want.String(), fault.KindOf(err).String(), err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
