package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
)

const (
	execIdleTime   = 4 * time.Hour // a kubelet's default
	execCreateTime = 30 * time.Second
)

// serve opens the kubelet API, of which the API server's exec is the only user: it must show its client certificate.
func (k *kubelet) serve(ctx context.Context) error {
	cert, err := selfSigned()
	if err != nil {
		return fmt.Errorf("make the kubelet's certificate: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the kubelet API: %w", err)
	}
	k.port = int32(listener.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port fits
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.handleExec)
	mux.HandleFunc("/exec/{namespace}/{pod}/{uid}/{container}", k.handleExec)
	server := &http.Server{
		Handler: mux,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: k.KubeletClients,
			NextProtos: []string{"http/1.1"}, // an HTTP/2 connection cannot be upgraded
		},
		ReadHeaderTimeout: execCreateTime,
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() {
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "The kubelet API has ended")
		}
	}()
	return nil
}

func (k *kubelet) handleExec(w http.ResponseWriter, r *http.Request) {
	// Asked afresh: what a client has just seen or set may not have reached the informers.
	pod, err := k.Client.CoreV1().Pods(r.PathValue("namespace")).Get(r.Context(), r.PathValue("pod"), metav1.GetOptions{})
	if err != nil {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return
	}
	node, err := k.Client.CoreV1().Nodes().Get(r.Context(), pod.Spec.NodeName, metav1.GetOptions{})
	if err != nil || !alive(node) {
		http.Error(w, "the node does not answer", http.StatusBadGateway)
		return
	}
	container := findRunning(pod, r.PathValue("container"))
	if container == nil {
		// The words and the code are the kubelet's.
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusInternalServerError)
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, &execution{k.Sandboxes, pod, container}, pod.Name, string(pod.UID), container.Name,
		r.URL.Query()["command"], options, execIdleTime, execCreateTime, remotecommand.SupportedStreamingProtocols)
}

func findRunning(pod *corev1.Pod, name string) *corev1.Container {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name != name || status.State.Running == nil {
			continue
		}
		for i, c := range pod.Spec.Containers {
			if c.Name == name {
				return &pod.Spec.Containers[i]
			}
		}
	}
	return nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubelet"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
