//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// network is what a cluster's DNS and kube-proxy do, in the shape of an HTTP proxy: whatever is sent to a Service's name
// reaches the process behind it. It notes what goes by.
type network struct {
	cluster kubernetes.Interface
	proxy   *http.Server

	mu     sync.Mutex
	behind map[string]dial // by "service.namespace"
	hops   []*hop
}

type dial func(ctx context.Context) (net.Conn, error)

// hop is one request that has gone by, an event's most of the time.
type hop struct {
	At       time.Time `json:"-"`
	Done     time.Time `json:"-"` // zero: it is under way
	Service  string    `json:"-"` // "broker-ingress.knative-eventing"
	Path     string    `json:"-"`
	Type, ID string    // of the event, as its sender says
	Time     string
	Token    string `json:"-"` // that its sender showed
	Status   int    `json:"-"` // 0: it is under way, or the connection broke, or nobody was there
}

func newNetwork(t *testing.T, c *cluster) *network {
	t.Helper()
	n := &network{cluster: c, behind: map[string]dial{"kubernetes.default": func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(c.config.Host, "https://"))
	}}}
	n.proxy = &http.Server{Handler: n}
	t.Cleanup(func() { _ = n.proxy.Close() })
	return n
}

// serve takes requests from a listener, which may be inside a sandbox.
func (n *network) serve(l net.Listener) { go func() { _ = n.proxy.Serve(l) }() }

// put has a process stand behind a Service.
func (n *network) put(service string, to dial) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.behind[service] = to
}

// remove leaves nobody behind it.
func (n *network) remove(service string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.behind, service)
}

// find follows a name to who stands behind it; a Service may be a name for another.
func (n *network) find(ctx context.Context, host string) (service string, to dial, err error) {
	for range 3 {
		host, _, _ = strings.Cut(host, ":")
		service = strings.TrimSuffix(strings.TrimSuffix(host, ".cluster.local"), ".svc")
		n.mu.Lock()
		to = n.behind[service]
		n.mu.Unlock()
		if to != nil {
			return service, to, nil
		}
		name, namespace, _ := strings.Cut(service, ".")
		s, err := n.cluster.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return service, nil, fmt.Errorf("look %s up: %w", host, err)
		}
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			break
		}
		host = s.Spec.ExternalName
	}
	return service, nil, fmt.Errorf("nobody stands behind %s", service)
}

// ServeHTTP implements http.Handler.
func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect {
		n.tunnel(w, r)
		return
	}
	h, err := n.arrive(r)
	if err == nil {
		err = n.bring(w, r, h)
	}
	n.mu.Lock()
	h.Done = time.Now()
	n.mu.Unlock()
	if err != nil {
		panic(http.ErrAbortHandler) // to the sender, too, the connection just breaks
	}
}

// tunnel leads to a Service with which TLS is spoken.
func (n *network) tunnel(w http.ResponseWriter, r *http.Request) {
	_, to, err := n.find(r.Context(), r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	near, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		_ = near.Close()
		return
	}
	join(near, to)
}

// arrive notes a request, and whose event it is.
func (n *network) arrive(r *http.Request) (*hop, error) {
	h := &hop{At: time.Now(), Path: r.URL.Path, Type: r.Header.Get("Ce-Type"), ID: r.Header.Get("Ce-Id")}
	h.Token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/cloudevents+json") {
		_ = json.Unmarshal(body, h)
	}
	n.mu.Lock()
	n.hops = append(n.hops, h)
	n.mu.Unlock()
	return h, err
}

// bring has who stands behind the Service answer.
func (n *network) bring(w http.ResponseWriter, r *http.Request, h *hop) error {
	service, to, err := n.find(r.Context(), r.Host)
	n.mu.Lock()
	h.Service = service
	n.mu.Unlock()
	if err != nil {
		return err
	}
	host := r.Host
	(&httputil.ReverseProxy{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return to(ctx) }},
		Rewrite:   func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", "behind", host },
		ModifyResponse: func(r *http.Response) error {
			n.mu.Lock()
			h.Status = r.StatusCode
			n.mu.Unlock()
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, failure error) { err = failure },
	}).ServeHTTP(w, r)
	return err
}

// seen returns the hops to a service that the filter wants.
func (n *network) seen(service string, want func(hop) bool) []hop {
	n.mu.Lock()
	defer n.mu.Unlock()
	var found []hop
	for _, h := range n.hops {
		if h.Service == service && want(*h) {
			found = append(found, *h)
		}
	}
	return found
}
