//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// deleteAll does as `kubectl delete --all` with kinds of Eventing's, and waits until what Knative made for them is gone.
func (c *cluster) deleteAll(t *testing.T, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		resource, err := c.resource(ofKind("eventing.knative.dev/v1", kind))
		require.NoError(t, err)
		require.NoError(t, resource.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	}
	eventually(t, time.Minute, "what was made for them is gone", func() error { return c.collectGarbage(t) })
}

// collectGarbage does as the controller-manager, which does not run here: what is owned by an object that is gone goes,
// too. It fails while there is any.
func (c *cluster) collectGarbage(t *testing.T) error {
	t.Helper()
	var left error
	for _, kind := range []*unstructured.Unstructured{
		ofKind("messaging.knative.dev/v1", "InMemoryChannel"),
		ofKind("messaging.knative.dev/v1", "Subscription"), ofKind("v1", "Service"),
	} {
		resource, err := c.resource(kind)
		require.NoError(t, err)
		all, err := resource.List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for _, one := range all.Items {
			owner := metav1.GetControllerOf(&one)
			if owner == nil {
				continue
			}
			o, err := c.get(t, owner.APIVersion, owner.Kind, namespace, owner.Name)
			if err == nil && o.GetUID() == owner.UID {
				continue
			}
			left = fmt.Errorf("%s %s is there: %w", one.GetKind(), one.GetName(), err)
			if err := resource.Delete(t.Context(), one.GetName(), metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
				require.NoError(t, err)
			}
		}
	}
	return left
}

func ofKind(apiVersion, kind string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	o.SetNamespace(namespace)
	return o
}
