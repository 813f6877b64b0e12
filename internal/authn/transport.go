package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// account is where a pod finds the service account that it runs under.
const account = "/var/run/secrets/kubernetes.io/serviceaccount"

// TransportFor returns the way to an issuer: to the cluster's own API server, which Kubernetes names as the issuer
// unless told otherwise, by the pod's service account; to any other as browsers go there.
func TransportFor(issuer string) http.RoundTripper {
	u, err := url.Parse(issuer)
	if err == nil && (u.Hostname() == "kubernetes.default.svc" || strings.HasPrefix(u.Hostname(), "kubernetes.default.svc.")) {
		return InCluster(account)
	}
	return newTransport(nil)
}

func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: askWithin}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: askWithin,
		IdleConnTimeout:     10 * time.Second,
		ForceAttemptHTTP2:   true,
	}
}

// InCluster returns the way to the API server by the service account in a directory.
func InCluster(directory string) http.RoundTripper { return &inCluster{directory: directory} }

// inCluster trusts the cluster's certificate authority and nobody else, and so can show its token to whoever answers:
// the API server gives its keys to none but accounts of the cluster.
type inCluster struct {
	directory string

	once sync.Once
	next *http.Transport
	err  error
}

// RoundTrip implements http.RoundTripper.
func (c *inCluster) RoundTrip(r *http.Request) (*http.Response, error) {
	c.once.Do(func() {
		var authority []byte
		if authority, c.err = os.ReadFile(filepath.Join(c.directory, "ca.crt")); c.err != nil {
			c.err = fmt.Errorf("read the cluster's certificate authority: %w", c.err)
			return
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(authority) {
			c.err = errors.New("the cluster's certificate authority cannot be read")
			return
		}
		c.next = newTransport(roots)
	})
	if c.err != nil {
		return nil, c.err
	}
	if r.URL.Scheme != "https" {
		return nil, errors.New("the API server names an address without TLS")
	}
	token, err := os.ReadFile(filepath.Join(c.directory, "token")) // anew: it is renewed
	if err != nil {
		return nil, fmt.Errorf("read the service account's token: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return c.next.RoundTrip(r) //nolint:wrapcheck // a transport's errors are its own
}
