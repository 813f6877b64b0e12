package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

const (
	pageSize = 500
	// listRestarts is how often a list begins anew when the API server has forgotten its snapshot between two pages.
	listRestarts = 2
)

// listObject is a page of a list.
type listObject interface {
	metav1.ListInterface
	runtime.Object
}

// listAll reads every page of one snapshot and keeps of each what keep takes from it.
func listAll[L listObject, V any](ctx context.Context, c *Cluster, t target, fresh func() L, keep func(L, []V) []V) ([]V, error) {
	var err error
	for range 1 + listRestarts {
		var all []V
		if all, err = listOnce(ctx, c, t, fresh, keep); !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			return all, err
		}
	}
	return nil, err
}

func listOnce[L listObject, V any](ctx context.Context, c *Cluster, t target, fresh func() L, keep func(L, []V) []V) ([]V, error) {
	var all []V
	options := metav1.ListOptions{Limit: pageSize} // no resourceVersion: as current as a get
	for {
		page := fresh()
		if err := c.call(ctx, "list", t, page, func(r *rest.Request) { r.VersionedParams(&options, parameters) }); err != nil {
			return nil, err
		}
		if page.GetResourceVersion() == "" {
			return nil, fmt.Errorf("list %s: the answer is no list", t)
		}
		all = keep(page, all)
		next := page.GetContinue()
		if next == "" {
			return all, nil
		}
		if next == options.Continue {
			return nil, fmt.Errorf("list %s: the same page comes again", t)
		}
		options.Continue = next
	}
}
