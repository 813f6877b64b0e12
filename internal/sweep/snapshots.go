package sweep

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type snapshotStore interface {
	KnownAccount(ctx context.Context) (disk.Account, error)
	SweepAccount(ctx context.Context, lease postgres.SweepLease, a disk.Account) error
	SweepSnapshots(ctx context.Context, lease postgres.SweepLease, found []disk.Snapshot) (int, error)
	RequestSyncs(ctx context.Context, lease postgres.SweepLease, found []disk.Snapshot) (int, error)
	DiskRows(ctx context.Context) (map[disk.Key]disk.Row, error)
	PurgesDue(ctx context.Context) (map[string]bool, error)
	RequestPurges(ctx context.Context, lease postgres.SweepLease, purges []disk.Purge) ([]string, error)
}

// EC2 is EC2, as far as a sweep looks at it; *aws.EC2 is one.
type EC2 interface {
	Instances
	DescribeVolume(ctx context.Context, id string) (disk.Volume, error)
	FindVolumes(ctx context.Context, tags map[string]string) ([]disk.Volume, error)
	DescribeSnapshots(ctx context.Context) ([]disk.Snapshot, error)
	TagSnapshots(ctx context.Context, ids []string, tags map[string]string) error
	UntagSnapshots(ctx context.Context, ids, keys []string) error
}

// Account tells which AWS account is our own; *aws.STS does.
type Account interface {
	Account(ctx context.Context) (disk.Account, error)
}

// The actions on snapshots.
const (
	Tag   Action = "tag"
	Untag Action = "untag"
	Purge Action = "purge"
)

// snapshotList is what EC2 shows of snapshots, once for all parts of a sweep.
type snapshotList struct {
	account disk.Account
	ours    []disk.Snapshot
	foreign int // that carry our tags all the same
}

func listSnapshots(ec2 EC2, account Account) func(context.Context) (*snapshotList, error) {
	var once sync.Once
	var found *snapshotList
	var err error
	return func(ctx context.Context) (*snapshotList, error) {
		once.Do(func() { found, err = newSnapshotList(ctx, ec2, account) })
		return found, err
	}
}

func newSnapshotList(ctx context.Context, ec2 EC2, account Account) (*snapshotList, error) {
	own, err := account.Account(ctx)
	if err != nil {
		return nil, err
	}
	all, err := ec2.DescribeSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	l := &snapshotList{account: own}
	for _, s := range all {
		if disk.Ours(s, own.ID) {
			l.ours = append(l.ours, s)
		} else {
			l.foreign++
		}
	}
	return l, nil
}

// errOtherAccount says that no snapshot seen there is one of the platform's disks.
var errOtherAccount = fault.Errorf(fault.Conflict, "another AWS account answers than the one the disks live in")

// atHome returns the list, and whether no account was known before: it is an error in any other than the known one.
func atHome(ctx context.Context, store snapshotStore, p *pass) (l *snapshotList, firstSight bool, err error) {
	known, err := store.KnownAccount(ctx)
	if err != nil {
		return nil, false, err
	}
	if l, err = p.snapshots(ctx); err != nil {
		return nil, false, err
	}
	if firstSight = known == (disk.Account{}); !firstSight && l.account != known {
		return nil, false, fmt.Errorf("%w: %s, not %s", errOtherAccount, l.account, known)
	}
	return l, firstSight, nil
}

// syncs takes up snapshots that others made of the platform's disks, and has those that have ended settled.
func syncs(store snapshotStore) part {
	return part{name: "snapshots", everything: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		l, firstSight, err := atHome(ctx, store, p)
		if err != nil {
			return plan{}, err
		}
		return plan{
			counts: map[string]int{"snapshotsListed": len(l.ours), "foreignSnapshots": l.foreign},
			apply: func(ctx context.Context) (done, error) {
				if firstSight {
					if err := store.SweepAccount(ctx, p.lease, l.account); err != nil {
						return done{}, err
					}
				}
				adopted, err := store.SweepSnapshots(ctx, p.lease, l.ours)
				requested, failure := store.RequestSyncs(ctx, p.lease, l.ours)
				return done{counts: map[string]int{"snapshotsAdopted": adopted, "syncsRequested": requested}}, errors.Join(err, failure)
			},
		}, nil
	}}
}

// retention marks the snapshots of deleted disks, unmarks those of restored ones, and asks for the purge of what is
// not to be kept any longer.
func retention(store snapshotStore, ec2 EC2) part {
	return part{name: "retention", new: true, everything: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		l, _, err := atHome(ctx, store, p)
		if err != nil {
			return plan{}, err
		}
		rows, err := store.DiskRows(ctx)
		if err != nil {
			return plan{}, err
		}
		asked, err := store.PurgesDue(ctx)
		if err != nil {
			return plan{}, err
		}
		wanted := disk.PlanRetention(l.ours, rows, asked, l.account.ID, p.now)
		pl := plan{anomalies: keptSnapshots(wanted.Kept), decisions: retentionDecisions(wanted)}
		pl.apply = func(ctx context.Context) (done, error) {
			return applyRetention(ctx, p, store, ec2, wanted)
		}
		return pl, nil
	}}
}

func applyRetention(ctx context.Context, p *pass, store snapshotStore, ec2 EC2, wanted disk.Retention) (done, error) {
	var carried disk.Retention
	var failures error
	for _, t := range wanted.Tag {
		if err := ec2.TagSnapshots(ctx, t.SnapshotIDs, t.Tags); err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		carried.Tag = append(carried.Tag, t)
	}
	for _, u := range wanted.Untag {
		if err := ec2.UntagSnapshots(ctx, u.SnapshotIDs, disk.DeletionTagKeys()); err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		carried.Untag = append(carried.Untag, u)
	}
	requested, err := store.RequestPurges(ctx, p.lease, wanted.Purge)
	asked := make(map[string]bool, len(requested))
	for _, id := range requested {
		asked[id] = true
	}
	for _, purge := range wanted.Purge {
		if asked[purge.SnapshotID] {
			carried.Purge = append(carried.Purge, purge)
		}
	}
	return done{retentionDecisions(carried), map[string]int{
		"disksTagged": len(carried.Tag), "disksUntagged": len(carried.Untag), "purgesRequested": len(carried.Purge),
	}}, errors.Join(failures, err)
}

func retentionDecisions(r disk.Retention) []Decision {
	var decisions []Decision
	for _, t := range r.Tag {
		decisions = append(decisions, Decision{Subject: diskName(t.Disk), Action: Tag,
			Reason: fmt.Sprintf("the disk is deleted: %d snapshots get their delete date %s", len(t.SnapshotIDs), t.Tags[disk.TagDeleteDate])})
	}
	for _, u := range r.Untag {
		decisions = append(decisions, Decision{Subject: diskName(u.Disk), Action: Untag,
			Reason: fmt.Sprintf("the disk was restored: %d snapshots lose their delete date", len(u.SnapshotIDs))})
	}
	for _, purge := range r.Purge {
		decisions = append(decisions, Decision{Subject: purge.SnapshotID, Action: Purge, Reason: purge.Reason})
	}
	return decisions
}

func diskName(k disk.Key) string { return k.User + "/" + k.Name }

// keptSnapshots reports the disks whose snapshots stay although something about them is odd.
func keptSnapshots(kept []disk.Kept) anomalies {
	var all anomalies
	for _, k := range kept {
		all.about(reservation.Anomaly("snapshots_kept"), "snapshots are kept: "+k.Reason, diskName(k.Disk))
	}
	return all
}
