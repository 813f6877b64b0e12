//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	nodeName = "genuine"
	bridge   = "expiry-e2e"
	hostIP   = "10.234.0.1" // this machine, as pods see it
	podRange = "10.234.0.0/16"
	services = "10.235.0.0/16"
)

// node is a genuine one under a control plane of its own: etcd, kube-apiserver, controller-manager and scheduler; kubelet,
// containerd and runc; kube-proxy. Pods on it are pods.
type node struct {
	*cluster
	dir     string
	debian  string
	environ []string // finds what the Debian packages hold
}

// nodePrograms are Debian's; the rest is built.
var nodePrograms = []string{
	"containerd", "runc", "containernetworking-plugins", "busybox-static",
	"nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libgmp10", "libedit2", "libxtables12",
}

// prepareNode says why there can be no genuine node on this machine, if so.
func prepareNode(t *testing.T) (*node, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil, errors.New("a kubelet needs root")
	}
	for _, program := range []string{"ip", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	debian := unpacked(t, nodePrograms...)
	n := &node{dir: filepath.Join(stacktest.Env(t, "STACK_DIR"), "node"), debian: debian}
	n.environ = []string{
		"PATH=" + strings.Join([]string{debian + "/usr/bin", debian + "/usr/sbin", os.Getenv("PATH")}, ":"),
		"LD_LIBRARY_PATH=" + debian + "/usr/lib/x86_64-linux-gnu",
	}
	n.clear()
	forwards, err := os.ReadFile(ipForward)
	require.NoError(t, err)
	n.write(t, "ip_forward", string(forwards))
	scratch := t.TempDir()
	for _, dir := range []string{"low", "up", "work", "both"} {
		require.NoError(t, os.Mkdir(filepath.Join(scratch, dir), 0o755))
	}
	layers := fmt.Sprintf("lowerdir=%[1]s/low,upperdir=%[1]s/up,workdir=%[1]s/work", scratch)
	if err := syscall.Mount("overlay", scratch+"/both", "overlay", 0, layers); err != nil {
		return nil, fmt.Errorf("mount an overlay: %w", err)
	}
	require.NoError(t, syscall.Unmount(scratch+"/both", 0))
	for _, try := range [][]string{
		{"ip", "link", "add", bridge, "type", "bridge"},
		{"ip", "addr", "add", hostIP + "/16", "dev", bridge},
		{"ip", "link", "set", bridge, "up"},
		{"nft", "list", "tables"},
		{"mkdir", "-p", controlGroups()[0]},
	} {
		if err := n.command(try[0], try[1:]...); err != nil {
			n.clear()
			return nil, err
		}
	}
	return n, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (n *node) command(program string, args ...string) error {
	_, err := n.ask(program, args...)
	return err
}

// ask runs a program of the node's.
func (n *node) ask(program string, args ...string) (string, error) {
	cmd := exec.Command("env", append(append(append([]string{}, n.environ...), program), args...)...)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return string(said), nil
}

func (n *node) ctr(args ...string) (string, error) {
	return n.ask("ctr", append([]string{"--address", n.socket(), "--namespace", "k8s.io"}, args...)...)
}

func (n *node) socket() string { return filepath.Join(n.dir, "containerd.sock") }

func (n *node) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(n.dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// up starts everything and waits until the node is ready.
func (n *node) up(t *testing.T, images ...string) {
	t.Helper()
	began := time.Now()
	t.Cleanup(n.clear)
	bin := stacktest.Env(t, "STACK_NODE_BIN") + "/"
	n.startControlPlane(t, bin)
	network := filepath.Dir(n.write(t, "cni/10-bridge.conflist", fmt.Sprintf(bridgeConfig, bridge, n.dir, podRange)))
	containerd := n.write(t, "containerd.toml", fmt.Sprintf(containerdConfig, n.dir, n.socket(), n.debian, network))
	start(t, "containerd", n.environ, n.debian+"/usr/bin/containerd", "--config", containerd)
	eventually(t, 30*time.Second, "containerd answers", func() error {
		_, err := n.ctr("version")
		return err
	})
	for _, archive := range images {
		_, err := n.ctr("images", "import", archive)
		require.NoError(t, err)
		require.NoError(t, os.Remove(archive)) // a gigabyte in all
	}
	say(t, "the node: containerd has its %d images, %d s after the start", len(images), int(time.Since(began).Seconds()))
	kubeconfig := filepath.Join(n.dir, "kubeconfig")
	start(t, "kubelet", n.environ, bin+"kubelet", "--config="+n.write(t, "kubelet.yaml", fmt.Sprintf(kubeletConfig, n.socket(), hostIP, n.dir)),
		"--kubeconfig="+kubeconfig, "--root-dir="+filepath.Join(n.dir, "kubelet"), "--cert-dir="+filepath.Join(n.dir, "pki"),
		"--hostname-override="+nodeName, "--node-ip="+hostIP)
	start(t, "kube-proxy", n.environ, bin+"kube-proxy", "--config="+n.write(t, "proxy.yaml", fmt.Sprintf(proxyConfig,
		kubeconfig, podRange, nodeName, local(freePort(t)), local(freePort(t)))))
	eventually(t, time.Minute, "the node is ready", func() error {
		node, err := n.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("%v", node.Status.Conditions)
	})
	say(t, "the node: kubelet, containerd, runc and kube-proxy are ready, %d s after the start", int(time.Since(began).Seconds()))
}

// startControlPlane starts a control plane that pods can reach.
func (n *node) startControlPlane(t *testing.T, bin string) {
	t.Helper()
	etcd, api, token := "http://"+local(freePort(t)), freePort(t), rand.Text()
	start(t, "etcd", nil, bin+"server", "--data-dir="+filepath.Join(n.dir, "etcd"), "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:0", "--unsafe-no-fsync", "--log-level=error")
	key, public := n.serviceAccountKey(t)
	certificate := filepath.Join(n.dir, "certs", "apiserver.crt")
	start(t, "kube-apiserver", nil, bin+"kube-apiserver", "--etcd-servers="+etcd, "--cert-dir="+filepath.Dir(certificate),
		"--bind-address="+hostIP, "--advertise-address="+hostIP, fmt.Sprintf("--secure-port=%d", api), "--service-cluster-ip-range="+services,
		"--token-auth-file="+n.write(t, "tokens.csv", token+",admin,admin,system:masters\n"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+public, "--service-account-signing-key-file="+key,
		"--allow-privileged=true", "--profiling=false", "--kubelet-preferred-address-types=InternalIP",
		"--audit-log-path="+filepath.Join(logDir(t), "node-audit.log"), "--audit-policy-file="+n.write(t, "audit.yaml", auditPolicy))
	kubeconfig := n.write(t, "kubeconfig", fmt.Sprintf(adminConfig, net.JoinHostPort(hostIP, fmt.Sprint(api)), certificate, token))
	eventually(t, time.Minute, "the API server is ready", func() error {
		if !exists(certificate) {
			return errors.New("it has no certificate yet")
		}
		n.cluster = clusterAt(t, kubeconfig)
		said, err := n.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		if err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
		return nil
	})
	start(t, "kube-controller-manager", nil, bin+"kube-controller-manager", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--service-account-private-key-file="+key, "--root-ca-file="+certificate)
	start(t, "kube-scheduler", nil, bin+"kube-scheduler", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0")
}

// serviceAccountKey writes the key by which tokens are signed and known.
func (n *node) serviceAccountKey(t *testing.T) (key, public string) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	private, err := x509.MarshalECPrivateKey(pair)
	require.NoError(t, err)
	shared, err := x509.MarshalPKIXPublicKey(pair.Public())
	require.NoError(t, err)
	return n.write(t, "service-account.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}))),
		n.write(t, "service-account.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: shared})))
}
