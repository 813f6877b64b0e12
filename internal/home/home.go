// Package home makes sure that those who say that something is gone are those with whom the reservations live. Another
// cluster, another AWS account or another region answers "not found" to everything.
package home

import (
	"context"
	"errors"
	"fmt"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// Store remembers both; *postgres.DB is one.
type Store interface {
	KnownCluster(ctx context.Context) (uid string, err error)
	KnownAccount(ctx context.Context) (disk.Account, error)
	RecordAccount(ctx context.Context, a disk.Account) error
}

// Cluster knows which one it is; *kube.Cluster is one.
type Cluster interface {
	ClusterUID(ctx context.Context) (string, error)
}

// Identity knows whose credentials these are, and where they are used; *aws.STS is one.
type Identity interface {
	Account(ctx context.Context) (disk.Account, error)
}

// Guard compares who answers with who is known.
type Guard struct {
	Store    Store
	Cluster  Cluster
	Identity Identity
}

// SameCluster is an error unless the cluster that answers is the one in which the reservations live.
func (g Guard) SameCluster(ctx context.Context) error {
	known, err := g.Store.KnownCluster(ctx)
	if err != nil {
		return err
	}
	uid, err := g.Cluster.ClusterUID(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("tell which cluster answers: %w", err)
	case known == "":
		return errors.New("no sweep has recorded yet which cluster the reservations live in")
	case uid != known:
		return fault.Errorf(fault.Transient, "another cluster answers (%s, not %s): nothing is gone", uid, known)
	}
	return nil
}

// Account returns the number of our account, and an error where that, or the region, is another than the one in which
// the disks live. At first use they are recorded.
func (g Guard) Account(ctx context.Context) (string, error) {
	here, err := g.Identity.Account(ctx)
	if err != nil {
		return "", fmt.Errorf("tell which AWS account answers: %w", err)
	}
	known, err := g.Store.KnownAccount(ctx)
	if err == nil && known == (disk.Account{}) {
		if err = g.Store.RecordAccount(ctx, here); err == nil {
			known, err = g.Store.KnownAccount(ctx) // somebody may have been faster
		}
	}
	switch {
	case err != nil:
		return "", err
	case here != known:
		return "", fault.Errorf(fault.Transient, "another AWS account answers (%s, not %s): nothing is gone", here, known)
	}
	return here.ID, nil
}

// Gone reports whether err says that EC2 does not know a thing, which is believed of the account in which the disks
// live alone. Any other error is returned as it is.
func (g Guard) Gone(ctx context.Context, err error) (bool, error) {
	if !fault.Is(err, fault.Gone) {
		return false, err
	}
	_, elsewhere := g.Account(ctx)
	return elsewhere == nil, elsewhere
}
