package kube

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// Source tells where the cluster is and how to log in. It is asked at the first call, not before, and again after it
// has failed, so it may itself need the network.
type Source func(ctx context.Context) (*rest.Config, error)

// ErrNoCluster means that neither an in-cluster account nor KUBECONFIG is there, and no other source was given.
var ErrNoCluster = errors.New("no cluster: neither an in-cluster account nor KUBECONFIG")

// Environment returns the pod's own account where the process runs in a cluster, else what KUBECONFIG names, else
// what the fallback says; a nil fallback is ErrNoCluster.
func Environment(fallback Source) Source {
	return func(ctx context.Context) (*rest.Config, error) {
		config, err := rest.InClusterConfig()
		if !errors.Is(err, rest.ErrNotInCluster) {
			return config, err
		}
		if os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "" {
			rules := clientcmd.NewDefaultClientConfigLoadingRules()
			config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
			if err != nil {
				return nil, fmt.Errorf("read KUBECONFIG: %w", err)
			}
			return config, nil
		}
		if fallback == nil {
			return nil, fault.Errorf(fault.Permanent, "%w", ErrNoCluster)
		}
		return fallback(ctx)
	}
}
