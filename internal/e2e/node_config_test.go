//go:build e2e

package e2e

// The configuration of a genuine node; its programs take the rest as flags.

const adminConfig = `
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: node, context: {cluster: node, user: admin}}]
current-context: node
`

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:reservation-expiry:reservation-expiry"]
- level: None
`

// containerdConfig: directory, socket, where Debian's packages are unpacked, where the network's configuration is.
const containerdConfig = `
version = 2
root = "%[1]s/containerd"
state = "%[1]s/state"
[grpc]
  address = "%[2]s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:e2e"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "%[3]s/usr/sbin/runc"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s/usr/lib/cni"
    conf_dir = "%[4]s"
`

// bridgeConfig: bridge, directory, range of addresses.
const bridgeConfig = `{"cniVersion": "0.4.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": "%[1]s", "isGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": {
    "type": "host-local", "dataDir": "%[2]s/addresses", "ranges": [[{"subnet": "%[3]s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "loopback"}]}
`

// kubeletConfig: containerd's socket, address, directory. It is as open as its address is closed: only this machine and
// its pods reach it.
const kubeletConfig = `
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s
address: %[2]s
port: 11250
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /
enforceNodeAllocatable: []
evictionHard: {}
imageGCHighThresholdPercent: 100 # never: nothing could be pulled again
failSwapOn: false
makeIPTablesUtilChains: false
podLogsDir: %[3]s/pod-logs
resolvConf: /etc/resolv.conf
clusterDNS: [%[2]s]
clusterDomain: cluster.local
`

// proxyConfig: kubeconfig, range of addresses, node, two addresses to listen on.
const proxyConfig = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %s}
clusterCIDR: %s
conntrack: {maxPerCore: 0}
hostnameOverride: %s
healthzBindAddress: %s
metricsBindAddress: %s
`
