package kube

import (
	"context"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Source tells where the cluster is and how to log in. It is asked at the first call, not before, and again after it
// has failed, so it may itself need the network.
type Source func(ctx context.Context) (*rest.Config, error)

// InCluster is the Source of a process that runs in a pod: the pod's own account, its token read anew as it changes.
func InCluster(context.Context) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("read the pod's account: %w", err)
	}
	return config, nil
}

// Kubeconfig is the Source named by KUBECONFIG: one file, or several that are merged, and their current context.
func Kubeconfig(context.Context) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read KUBECONFIG: %w", err)
	}
	return config, nil
}
