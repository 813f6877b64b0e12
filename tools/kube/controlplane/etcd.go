package controlplane

import (
	"context"
	"fmt"
	"net/url"
	"sync"

	"go.etcd.io/etcd/server/v3/embed"
)

// startEtcd returns the client URL of a one-member etcd that never syncs to disk: the data does not outlive the stack.
func startEtcd(ctx context.Context, dir string, done *sync.WaitGroup) (clientURL string, err error) {
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c := embed.NewConfig()
	c.Dir, c.UnsafeNoFsync, c.LogLevel, c.QuotaBackendBytes = dir, true, "error", 4<<30
	c.ListenClientUrls, c.AdvertiseClientUrls = anyPort, anyPort
	c.ListenPeerUrls, c.AdvertisePeerUrls = anyPort, anyPort
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	etcd, err := embed.StartEtcd(c)
	if err != nil {
		return "", fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case <-ctx.Done():
		etcd.Close()
		return "", ctx.Err()
	}
	done.Go(func() {
		<-ctx.Done()
		etcd.Close()
	})
	return "http://" + etcd.Clients[0].Addr().String(), nil
}
