package kube_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/kube"
)

// at returns the cluster whose API server answers at the address.
func at(host string, options kube.Options) *kube.Cluster {
	return kube.New(func(context.Context) (*rest.Config, error) { return &rest.Config{Host: host}, nil }, options)
}

// answering returns a cluster whose API server is the handler: for answers that a real one gives rarely or never.
func answering(t *testing.T, handler http.HandlerFunc) *kube.Cluster {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return at(server.URL, kube.Options{})
}

func write(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func status(code int, reason metav1.StatusReason, kind, name string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: string(reason),
		Details: &metav1.StatusDetails{Kind: kind, Name: name},
	}
}

func podObject(name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "gpu-dev", Name: name, UID: types.UID("uid-of-" + name), CreationTimestamp: metav1.NewTime(time.Unix(1772366400, 0))},
	}
}

func podPage(next string, names ...string) *corev1.PodList {
	page := &corev1.PodList{
		TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"},
		ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: next},
	}
	for _, name := range names {
		page.Items = append(page.Items, *podObject(name))
	}
	return page
}

// answeringWrapped returns a cluster that always has the pod asked for, and notes what passes its wrapped transport.
func answeringWrapped(t *testing.T, seen *[]string) *kube.Cluster {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { write(w, 200, podObject("p")) }))
	t.Cleanup(server.Close)
	return at(server.URL, kube.Options{WrapTransport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			*seen = append(*seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Accept")+" "+r.Header.Get("User-Agent"))
			return next.RoundTrip(r)
		})
	}})
}

// deleteOptions decodes a request's body as an API server would, protobuf or JSON.
func deleteOptions(r *http.Request) (*metav1.DeleteOptions, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	into := &metav1.DeleteOptions{}
	_, _, err = serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(body, nil, into)
	return into, err
}
