package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// Cluster is the Kubernetes API, as far as a sweep looks at it; *kube.Cluster is one.
type Cluster interface {
	ClusterUID(ctx context.Context) (string, error)
	ListPods(ctx context.Context, namespace string) ([]pod.Pod, error)
	GetPod(ctx context.Context, namespace, name string) (pod.Pod, error)
	GetNode(ctx context.Context, name string) (pod.Node, error)
}

type listingStore interface {
	KnownCluster(ctx context.Context) (string, error)
	PodNamespaces(ctx context.Context, since time.Time) ([]string, error)
}

const (
	// namespacesMost bounds how many namespaces are listed: rows can name any number of them. The platform's own are
	// never cut, then those of the most live reservations come first.
	namespacesMost = 50
	// endedLately is how long the namespace of an ended reservation is still looked at: as long as a cleanup is begun.
	endedLately = 8 * 24 * time.Hour
)

// listing is what the API server showed of all pods, once for all parts of a sweep.
type listing struct {
	clusterUID string
	firstSight bool // no cluster was known before
	pods       []pod.Pod
	byName     map[podKey]pod.Pod
	listed     map[string]bool // namespaces of which every pod is known
	failures   error           // of the namespaces that could not be listed
}

type podKey struct{ namespace, name string }

// errOtherCluster says that nothing seen in this cluster tells anything about the reservations.
var errOtherCluster = fault.Errorf(fault.Conflict, "another cluster answers than the one the reservations live in")

// listPods looks at the cluster once, at first need. A listing that failed has failed for the whole sweep.
func listPods(store listingStore, cluster Cluster, now time.Time) func(context.Context) (*listing, error) {
	var once sync.Once
	var found *listing
	var err error
	return func(ctx context.Context) (*listing, error) {
		once.Do(func() { found, err = newListing(ctx, store, cluster, now) })
		return found, err
	}
}

func newListing(ctx context.Context, store listingStore, cluster Cluster, now time.Time) (*listing, error) {
	known, err := store.KnownCluster(ctx)
	if err != nil {
		return nil, err
	}
	l := &listing{byName: make(map[podKey]pod.Pod), listed: make(map[string]bool), firstSight: known == ""}
	if l.clusterUID, err = cluster.ClusterUID(ctx); err != nil {
		return nil, err
	}
	if known != "" && l.clusterUID != known {
		return nil, fmt.Errorf("%w: %s, not %s", errOtherCluster, l.clusterUID, known)
	}
	columns, err := store.PodNamespaces(ctx, now.Add(-endedLately))
	if err != nil {
		return nil, err
	}
	namespaces := pod.Namespaces("") // the platform's own, whatever else the rows name
	for _, column := range columns {
		for _, namespace := range pod.Namespaces(column) {
			if !slices.Contains(namespaces, namespace) {
				namespaces = append(namespaces, namespace)
			}
		}
	}
	if len(namespaces) > namespacesMost {
		over := namespaces[namespacesMost:]
		l.failures = fmt.Errorf("the rows name more than %d namespaces; of the others, with the fewest reservations, nothing is known: %s",
			namespacesMost, strings.Join(over, ", "))
		namespaces = namespaces[:namespacesMost]
	}
	for _, namespace := range namespaces {
		pods, err := cluster.ListPods(ctx, namespace)
		if err != nil {
			l.failures = errors.Join(l.failures, err)
			continue
		}
		l.listed[namespace] = true
		for _, p := range pods {
			l.pods = append(l.pods, p)
			l.byName[podKey{p.Namespace, p.Name}] = p
		}
	}
	return l, nil
}

// find returns the pod called name in the first of the namespaces that has one; there is one at least. whole is false
// where the absence of a pod would prove nothing, because not all of them could be listed.
func (l *listing) find(namespaces []string, name string) (p pod.Pod, found, whole bool) {
	whole = true
	for _, namespace := range namespaces {
		if p, found = l.byName[podKey{namespace, name}]; found {
			return p, true, true
		}
		whole = whole && l.listed[namespace]
	}
	return pod.Pod{}, false, whole
}
