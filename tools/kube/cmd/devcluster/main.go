// Command devcluster is a Kubernetes cluster in one process, for tests and the demo: etcd, the genuine
// kube-apiserver, and simulated nodes whose pods can be exec'd into.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"gpudev.internal/reservation-expiry/tools/kube/controlplane"
	"gpudev.internal/reservation-expiry/tools/kube/node"
)

func main() {
	dir := flag.String("dir", "", "directory of the cluster's state, made if absent; kubeconfig appears in it once all is ready")
	nodes := flag.Int("nodes", 3, "simulated nodes to begin with; any Node labelled "+node.SimulatedLabel+" becomes one")
	audit := flag.String("audit-log", "", "file for the API server's audit log (none if empty)")
	flag.Parse()
	if err := run(*dir, *nodes, *audit); err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
}

func run(dir string, nodes int, audit string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if dir == "" {
		return errors.New("--dir is required")
	}
	logger := klog.Background()
	pods := &node.Sandboxes{Dir: filepath.Join(dir, "pods"), Volumes: filepath.Join(dir, "volumes")}
	if err := pods.Check(); err != nil {
		return err
	}
	defer pods.RemoveAll()
	ctx, cancel := context.WithCancel(ctx)
	plane, err := controlplane.Start(ctx, controlplane.Options{Dir: dir, AuditLog: audit})
	if err != nil {
		cancel()
		return err
	}
	defer plane.Wait()
	defer cancel()
	logger.Info("API server ready", "address", plane.Config.Host)
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	if err := node.Run(ctx, node.Options{Client: client, Sandboxes: pods, Nodes: nodes, KubeletClients: plane.KubeletClients}); err != nil {
		return err
	}
	logger.Info("nodes ready", "count", nodes)
	if err := plane.WriteKubeconfig(filepath.Join(dir, "kubeconfig")); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-plane.Failed:
		return err
	}
}
