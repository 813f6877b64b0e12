//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const ingressName = "ingress.e2e.svc.cluster.local"

// knativeIngress is the smallest that Serving can work with (in a cluster: Kourier, Istio, Contour): it brings requests
// where KIngress objects say by their host, reports these ready, and notes the events that go by.
type knativeIngress struct {
	*cluster

	mu    sync.Mutex
	paths map[string][]ingressPath // by host
	hops  []hop
}

// ingressPath is a part of a KIngress.
type ingressPath struct {
	Path          string
	Headers       map[string]struct{ Exact string }
	AppendHeaders map[string]string
	Splits        []struct {
		ServiceName, ServiceNamespace string
		ServicePort                   any
		AppendHeaders                 map[string]string
	}
}

var ingresses = schema.GroupVersionResource{Group: "networking.internal.knative.dev", Version: "v1alpha1", Resource: "ingresses"}

func serveIngress(t *testing.T, c *cluster) *knativeIngress {
	t.Helper()
	i := &knativeIngress{cluster: c}
	l, err := net.Listen("tcp", net.JoinHostPort(hostIP, "80"))
	require.NoError(t, err)
	server := &http.Server{Handler: i}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(stop)
	go func() {
		for ctx.Err() == nil {
			i.look(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return i
}

// look reads what is wanted, and reports that it is so.
func (i *knativeIngress) look(ctx context.Context) {
	all, err := i.dynamic.Resource(ingresses).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	paths := map[string][]ingressPath{}
	for _, o := range all.Items {
		var spec struct {
			Rules []struct {
				Hosts []string
				HTTP  struct{ Paths []ingressPath }
			}
		}
		text, _ := json.Marshal(o.Object["spec"])
		_ = json.Unmarshal(text, &spec)
		for _, rule := range spec.Rules {
			for _, host := range rule.Hosts {
				paths[host] = append(paths[host], rule.HTTP.Paths...)
			}
		}
	}
	i.mu.Lock()
	i.paths = paths
	i.mu.Unlock()
	for _, o := range all.Items {
		if seen, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration"); seen != o.GetGeneration() {
			i.report(ctx, &o)
		}
	}
}

func (i *knativeIngress) report(ctx context.Context, o *unstructured.Unstructured) {
	var conditions []any
	for _, kind := range []string{"LoadBalancerReady", "NetworkConfigured", "Ready"} {
		conditions = append(conditions, map[string]any{"type": kind, "status": "True", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)})
	}
	address := map[string]any{"ingress": []any{map[string]any{"domainInternal": ingressName}}}
	o.Object["status"] = map[string]any{
		"observedGeneration": o.GetGeneration(), "conditions": conditions, "publicLoadBalancer": address, "privateLoadBalancer": address,
	}
	_, _ = i.dynamic.Resource(ingresses).Namespace(o.GetNamespace()).UpdateStatus(ctx, o, metav1.UpdateOptions{}) // else the next look does
}

// ServeHTTP implements http.Handler.
func (i *knativeIngress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(r.Host, ":")
	h := hop{At: time.Now(), Path: r.URL.Path, Service: host, Type: r.Header.Get("Ce-Type"), ID: r.Header.Get("Ce-Id"), Time: r.Header.Get("Ce-Time")}
	i.mu.Lock()
	paths := i.paths[host]
	i.mu.Unlock()
	for _, p := range paths {
		if !strings.HasPrefix(r.URL.Path, p.Path) || len(p.Splits) == 0 || !p.wants(r) {
			continue
		}
		to := p.Splits[0] // all of the traffic goes to the newest revision
		service, err := i.CoreV1().Services(to.ServiceNamespace).Get(r.Context(), to.ServiceName, metav1.GetOptions{})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		for _, headers := range []map[string]string{p.AppendHeaders, to.AppendHeaders} {
			for name, value := range headers {
				r.Header.Set(name, value)
			}
		}
		(&httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", net.JoinHostPort(service.Spec.ClusterIP, fmt.Sprint(to.ServicePort)), r.Host
			},
			ModifyResponse: func(r *http.Response) error {
				h.Status = r.StatusCode
				return nil
			},
		}).ServeHTTP(w, r)
		h.Done = time.Now()
		i.mu.Lock()
		i.hops = append(i.hops, h)
		i.mu.Unlock()
		return
	}
	http.Error(w, "no way to "+host, http.StatusNotFound)
}

// wants says whether the request has the headers; Serving's own probes are told apart by one.
func (p ingressPath) wants(r *http.Request) bool {
	for name, value := range p.Headers {
		if r.Header.Get(name) != value.Exact {
			return false
		}
	}
	return true
}

// seen returns the events of a type that were brought to the service.
func (i *knativeIngress) seen(eventType string) []hop {
	i.mu.Lock()
	defer i.mu.Unlock()
	var found []hop
	for _, h := range i.hops {
		if h.Type == eventType {
			found = append(found, h)
		}
	}
	return found
}
