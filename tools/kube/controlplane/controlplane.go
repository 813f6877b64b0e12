// Package controlplane runs etcd, the kube-apiserver and the few controllers that this project's objects need, in
// the present process. Every instance has its own ports, token and certificates.
package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// readyTime is how long the API server may take until /readyz says ok; it takes 3 s on two cores.
const readyTime = time.Minute

// Options say where the control plane lives.
type Options struct {
	Dir      string // state, made if absent
	AuditLog string // no audit log if empty
}

// ControlPlane is a running one.
type ControlPlane struct {
	Config         *rest.Config   // as a member of system:masters, without rate limits
	KubeletClients *x509.CertPool // whom a kubelet should let in: the API server
	Failed         <-chan error   // the API server ended by itself

	done sync.WaitGroup
}

// Start returns once the API server is ready. It all ends with ctx; Wait then waits for the last of it.
func Start(ctx context.Context, o Options) (*ControlPlane, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	// etcd has to outlive the API server, which still writes while it shuts down.
	etcdCtx, stopEtcd := context.WithCancel(context.WithoutCancel(ctx))
	p := &ControlPlane{}
	etcd, err := startEtcd(etcdCtx, filepath.Join(o.Dir, "etcd"), &p.done)
	if err != nil {
		stopEtcd()
		return nil, err
	}
	files, err := writeFiles(o.Dir)
	if err != nil {
		stopEtcd()
		return nil, err
	}
	p.KubeletClients = files.kubeletClients
	token := rand.Text()
	host, failed, err := startAPIServer(ctx, o, files, etcd, token, func() { stopEtcd() }, &p.done)
	if err != nil {
		stopEtcd()
		return nil, err
	}
	p.Failed = failed
	if p.Config, err = waitReady(ctx, host, token, files.apiServerCA, failed); err != nil {
		return nil, err
	}
	return p, startControllers(ctx, p.Config, &p.done)
}

// Wait returns when everything has ended, after the context given to Start has.
func (p *ControlPlane) Wait() { p.done.Wait() }

// WriteKubeconfig writes a self-contained kubeconfig, whole or not at all.
func (p *ControlPlane) WriteKubeconfig(path string) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["devcluster"] = &clientcmdapi.Cluster{Server: p.Config.Host, CertificateAuthorityData: p.Config.CAData}
	c.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: p.Config.BearerToken}
	c.Contexts["devcluster"] = &clientcmdapi.Context{Cluster: "devcluster", AuthInfo: "admin"}
	c.CurrentContext = "devcluster"
	if err := clientcmd.WriteToFile(*c, path+".tmp"); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// waitReady polls /readyz with this instance's token, which no stranger's server on the same port would accept.
func waitReady(ctx context.Context, host, token, caFile string, failed <-chan error) (*rest.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		config, err := readyConfig(ctx, host, token, caFile)
		if err == nil {
			return config, nil
		}
		select {
		case err := <-failed:
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("kube-apiserver is not ready: %w", err)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func readyConfig(ctx context.Context, host, token, caFile string) (*rest.Config, error) {
	ca, err := os.ReadFile(caFile) // the server makes it when it starts
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	config := &rest.Config{Host: host, BearerToken: token, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/readyz", nil)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		err = errors.New("/readyz says " + resp.Status)
	}
	return config, errors.Join(err, resp.Body.Close())
}
