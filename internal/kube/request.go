package kube

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// target is what a request is about.
type target struct {
	resource  string // "pods"
	namespace string // empty where the resource has none
	name      string
}

// clusterScoped resources have no namespace, all others need one.
var clusterScoped = map[string]bool{"namespaces": true, "nodes": true, "persistentvolumes": true}

func (t target) String() string {
	switch {
	case t.name == "":
		return t.resource + " in " + t.namespace
	case t.namespace == "":
		return t.resource + " " + t.name
	}
	return t.resource + " " + t.namespace + "/" + t.name
}

// check refuses a request that would be about something else: without its name it is about every object there is.
func (t target) check(verb string) error {
	if (t.namespace == "") != clusterScoped[t.resource] {
		return fault.Errorf(fault.Permanent, "%s %s: no namespace", verb, t)
	}
	if t.name == "" && verb != "list" {
		return fault.Errorf(fault.Permanent, "%s %s: no name", verb, t)
	}
	return nil
}

// call sends one request about t, decodes the answer into the object if there is one, and classifies the error.
func (c *Cluster) call(ctx context.Context, verb string, t target, into runtime.Object, build func(*rest.Request)) error {
	if err := t.check(verb); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	// The client's own log would go to this process's stderr as text; what matters comes back as the error.
	ctx = klog.NewContext(ctx, logr.Discard())
	client, _, err := c.connect(ctx)
	if err != nil {
		return classify(err, verb, t)
	}
	r := client.Verb(methods[verb]).Resource(t.resource).MaxRetries(retries)
	if t.namespace != "" {
		r.Namespace(t.namespace)
	}
	if t.name != "" {
		r.Name(t.name)
	}
	if build != nil {
		build(r)
	}
	if err := r.Error(); err != nil { // a name that no URL can hold
		return fault.Errorf(fault.Permanent, "%s %s: %w", verb, t, err)
	}
	result := r.Do(ctx)
	if into == nil {
		return classify(result.Error(), verb, t)
	}
	return classify(result.Into(into), verb, t)
}

// methods by the verbs that RBAC knows.
var methods = map[string]string{"get": "GET", "list": "GET", "patch": "PATCH", "delete": "DELETE"}

// object is any of Kubernetes' objects.
type object interface {
	metav1.Object
	runtime.Object
}

// get reads one object by name and makes sure that it is the one.
func (c *Cluster) get(ctx context.Context, t target, into object) error {
	if err := c.call(ctx, "get", t, into, nil); err != nil {
		return err
	}
	if into.GetName() != t.name || into.GetNamespace() != t.namespace || into.GetUID() == "" {
		return fmt.Errorf("get %s: the answer is not that object", t)
	}
	return nil
}

// noGrace leaves the grace period to the kind of object, which for all but pods is none.
const noGrace = -1

// delete asks for the object's deletion if it is still the one with that UID. Finalizers may keep it for a while.
func (c *Cluster) delete(ctx context.Context, t target, uid string, graceSeconds int64) error {
	if uid == "" {
		return fault.Errorf(fault.Permanent, "delete %s: no UID to tell it by", t)
	}
	id := types.UID(uid)
	options := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &id}}
	if graceSeconds != noGrace {
		options.GracePeriodSeconds = &graceSeconds
	}
	return c.call(ctx, "delete", t, nil, func(r *rest.Request) { r.Body(options) })
}
