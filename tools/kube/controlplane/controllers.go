package controlplane

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
)

// startControllers runs the genuine controllers behind the finalizers of namespaces, PVCs and PVs: without them
// nothing of these would ever be gone. Binding is left out: whoever makes a PVC names its PV.
func startControllers(ctx context.Context, config *rest.Config, done *sync.WaitGroup) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for controllers: %w", err)
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for controllers: %w", err)
	}
	logger := klog.FromContext(ctx)
	shared := informers.NewSharedInformerFactory(client, 0)
	core := shared.Core().V1()
	claims, err := pvcprotection.NewPVCProtectionController(logger, core.PersistentVolumeClaims(), core.Pods(), client)
	if err != nil {
		return fmt.Errorf("make the PVC protection controller: %w", err)
	}
	volumes := pvprotection.NewPVProtectionController(logger, core.PersistentVolumes(), client)
	namespaces := namespace.NewNamespaceController(ctx, client, objects,
		client.Discovery().ServerPreferredNamespacedResources, core.Namespaces(), 5*time.Minute, corev1.FinalizerKubernetes)
	shared.Start(ctx.Done())
	for _, run := range []func(context.Context, int){claims.Run, volumes.Run, namespaces.Run} {
		done.Go(func() { run(ctx, 5) })
	}
	return nil
}
