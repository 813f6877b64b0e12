package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// startAPIServer serves on a free loopback port. Not app.NewAPIServerCommand, which takes over the signals.
func startAPIServer(ctx context.Context, o Options, files *files, etcd, token string, ended func(), done *sync.WaitGroup) (host string, failed <-chan error, err error) {
	tokens := filepath.Join(o.Dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return "", nil, fmt.Errorf("write tokens: %w", err)
	}
	args := []string{
		"--etcd-servers=" + etcd,
		"--cert-dir=" + filepath.Dir(files.apiServerCA),
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file=" + tokens,
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + files.serviceAccountPublicKey,
		"--service-account-signing-key-file=" + files.serviceAccountKey,
		"--kubelet-client-certificate=" + files.kubeletClientCert,
		"--kubelet-client-key=" + files.kubeletClientKey,
		"--kubelet-preferred-address-types=InternalIP", // else exec looks the node's name up in DNS
		// No controller makes the default ServiceAccounts or takes the not-ready taint off a new node.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
		"--allow-privileged=true",
		"--enable-priority-and-fairness=false",
		"--max-requests-inflight=2000",
		"--max-mutating-requests-inflight=1000",
		"--profiling=false",
	}
	if o.AuditLog != "" {
		args = append(args, "--audit-log-path="+o.AuditLog, "--audit-log-maxsize=100", "--audit-log-maxbackup=1",
			"--audit-policy-file="+files.auditPolicy)
	}
	server := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range server.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		return "", nil, fmt.Errorf("set kube-apiserver flags: %w", err)
	}
	if err := server.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return "", nil, fmt.Errorf("set kube-apiserver feature gates: %w", err)
	}
	if server.SecureServing.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return "", nil, fmt.Errorf("listen for kube-apiserver: %w", err)
	}
	complete, err := server.Complete(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("complete kube-apiserver options: %w", err)
	}
	if err := errors.Join(complete.Validate()...); err != nil {
		return "", nil, fmt.Errorf("kube-apiserver options: %w", err)
	}
	result := make(chan error, 1)
	done.Go(func() {
		defer ended()
		if err := app.Run(ctx, complete); ctx.Err() == nil {
			result <- errors.Join(errors.New("kube-apiserver ended by itself"), err)
		}
	})
	return "https://" + server.SecureServing.Listener.Addr().String(), result, nil
}
