// Package kube talks to the Kubernetes API server: pods, what stands around them, and commands run in them.
//
// Every method takes and returns plain values, takes a bounded time, and classifies its error with package fault:
// Gone only where the API server itself says that this very thing does not exist, Conflict where it is not as
// believed, Permanent where it was forbidden or invalid, Transient for all else. Nothing is dialled before first use.
package kube

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// MaxTimeout is the longest that one call may take.
const MaxTimeout = 20 * time.Second

// Options are what may be set apart from where the cluster is. The zero value is good.
type Options struct {
	// Timeout bounds each call, each page of a list being one; default 15 s, at most MaxTimeout. Commands have their own.
	Timeout time.Duration
	// WrapTransport, if set, sees every request, those that open a command's stream included.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

// Cluster is one Kubernetes API server. It is safe for concurrent use.
type Cluster struct {
	source  Source
	options Options

	mu     sync.Mutex
	client *rest.RESTClient
	config *rest.Config
}

// New returns the cluster that the source will tell of.
func New(source Source, options Options) *Cluster {
	options.Timeout = min(cmp.Or(options.Timeout, 15*time.Second), MaxTimeout)
	return &Cluster{source: source, options: options}
}

const (
	// A sweep of 10,000 pods needs some 20 pages and a bounded number of gets; cleanups a handful of calls each.
	clientQPS   = 50
	clientBurst = 100
	// attempts after the first, for answers that say when to come again; the next delivery does the rest.
	retries = 2
)

// The core group is all that is talked to. A scheme of it alone, in place of the typed client set, makes half the
// binary and starts in half the time, which counts for a process that is started for each tick.
var (
	scheme     = coreScheme()
	parameters = runtime.NewParameterCodec(scheme)
)

func coreScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(s))
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s
}

// connect returns the client, made at first use. A failure is not remembered.
func (c *Cluster) connect(ctx context.Context) (*rest.RESTClient, *rest.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, c.config, nil
	}
	found, err := c.source(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("find the cluster: %w", err)
	}
	config := rest.CopyConfig(found)
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.QPS, config.Burst = clientQPS, clientBurst
	config.UserAgent = "reservation-expiry"
	config.WarningHandler = rest.NoWarnings{} // deprecations are for whoever upgrades, not for each tick's log
	if c.options.WrapTransport != nil {
		config.Wrap(c.options.WrapTransport)
	}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, nil, fault.Errorf(fault.Permanent, "use the cluster's configuration: %w", err)
	}
	c.client, c.config = client, config
	return client, config, nil
}
