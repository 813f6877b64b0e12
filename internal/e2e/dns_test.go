//go:build e2e

package e2e

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// serveDNS answers pods with the addresses of Services. The one name that is no Service's is the ingress's.
func serveDNS(t *testing.T, cluster kubernetes.Interface) {
	t.Helper()
	socket, err := net.ListenPacket("udp", net.JoinHostPort(hostIP, "53"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	go func() {
		question := make([]byte, 1500)
		for {
			n, from, err := socket.ReadFrom(question)
			if err != nil {
				return
			}
			if said := resolve(cluster, question[:n]); said != nil {
				_, _ = socket.WriteTo(said, from)
			}
		}
	}()
}

func resolve(cluster kubernetes.Interface, question []byte) []byte {
	var asked dnsmessage.Message
	if asked.Unpack(question) != nil || len(asked.Questions) == 0 {
		return nil
	}
	q := asked.Questions[0]
	said := dnsmessage.Message{
		Header: dnsmessage.Header{ID: asked.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: asked.Questions,
	}
	if ip := addressOf(cluster, strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")); ip != nil {
		said.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			said.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 2}, Body: &dnsmessage.AResource{A: [4]byte(ip)},
			}}
		}
	}
	packed, _ := said.Pack()
	return packed
}

// addressOf follows a name to a Service's address; nil: there is none.
func addressOf(cluster kubernetes.Interface, name string) net.IP {
	for range 3 {
		if name == ingressName {
			return net.ParseIP(hostIP).To4()
		}
		short, ours := strings.CutSuffix(name, ".svc.cluster.local")
		service, namespace, two := strings.Cut(short, ".")
		if !ours || !two || strings.Contains(namespace, ".") {
			return nil
		}
		s, err := cluster.CoreV1().Services(namespace).Get(context.Background(), service, metav1.GetOptions{})
		if err != nil {
			return nil
		}
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			return net.ParseIP(s.Spec.ClusterIP).To4()
		}
		name = s.Spec.ExternalName
	}
	return nil
}
