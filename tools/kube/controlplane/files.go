package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// files are the paths the API server is started with.
type files struct {
	apiServerCA                                string // self-signed by the server at its start
	serviceAccountKey, serviceAccountPublicKey string
	kubeletClientCert, kubeletClientKey        string
	auditPolicy                                string

	kubeletClients *x509.CertPool
}

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func writeFiles(dir string) (*files, error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	f := &files{
		apiServerCA:       in("certs/apiserver.crt"),
		serviceAccountKey: in("service-account.key"), serviceAccountPublicKey: in("service-account.pub"),
		kubeletClientCert: in("kubelet-client.crt"), kubeletClientKey: in("kubelet-client.key"),
		auditPolicy:    in("audit-policy.yaml"),
		kubeletClients: x509.NewCertPool(),
	}
	tokenKey, tokenPEM, tokenErr := newKey()
	clientKey, clientPEM, clientErr := newKey()
	public, publicErr := x509.MarshalPKIXPublicKey(tokenKey.Public())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, certErr := x509.CreateCertificate(rand.Reader, template, template, clientKey.Public(), clientKey)
	cert, parseErr := x509.ParseCertificate(der)
	if err := errors.Join(tokenErr, clientErr, publicErr, certErr, parseErr); err != nil {
		return nil, fmt.Errorf("make keys: %w", err)
	}
	f.kubeletClients.AddCert(cert)
	for path, content := range map[string][]byte{
		f.serviceAccountKey:       tokenPEM,
		f.serviceAccountPublicKey: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		f.kubeletClientKey:        clientPEM,
		f.kubeletClientCert:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		f.auditPolicy:             []byte(auditPolicy),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, fmt.Errorf("write keys: %w", err)
		}
	}
	return f, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}
