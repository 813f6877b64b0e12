package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// Purge carries out follow-ups of kind snapshot.purge; their key is the snapshot's id.
type Purge struct{ worker }

// NewPurge returns the action. It is safe for concurrent use.
func NewPurge(w World, o Options) *Purge { return &Purge{newWorker(w, o)} }

// Handle deletes a snapshot if, under the lock of its disk's row, disk.MayPurge still allows it by what EC2 lists then,
// without those that are gone by our books, or may be: a list may be minutes old.
// One in use stays: that is an error, kept on the follow-up's row, and it is tried again. So does, for a while and
// without an error, one beside which a volume is set aside.
func (p *Purge) Handle(ctx context.Context, f postgres.FollowUp) (result followup.Result, err error) {
	s, known, err := p.Store.SnapshotByID(ctx, f.Key)
	if err != nil {
		return followup.Result{}, err
	}
	s.SnapshotID = f.Key
	ctx, span := p.startApart(ctx, "snapshot.purge", s)
	defer func() { span.EndOr(result.Outcome, "waiting", err) }()

	seen, gone, err := p.snapshot(ctx, f.Key)
	switch {
	case err != nil:
		return followup.Result{}, err
	case gone && known && s.State != postgres.SnapshotPurged && justMade(s):
		return followup.LookAgain(growing(0)), nil
	case gone && known:
		_, err := p.Store.VanishedSnapshot(ctx, s)
		return followup.Done("already_gone"), err
	case gone:
		return followup.Done("already_gone"), nil
	}
	account, err := p.home.Account(ctx)
	if err != nil {
		return followup.Result{}, err
	}
	if !disk.Ours(seen, account) {
		return p.kept(ctx, f.Key, "it is not ours"), nil
	}
	if !known {
		if err := p.adopt(ctx, seen.Key(), account); err != nil {
			return followup.Result{}, err
		}
		if s, known, err = p.Store.SnapshotByID(ctx, f.Key); err != nil || !known {
			return followup.LookAgain(growing(0)), err
		}
	}
	for tag, value := range (disk.Key{User: s.User, Name: s.DiskName}).Tags() {
		if seen.Tags[tag] != value {
			return p.kept(ctx, f.Key, "its tags name another disk by now"), nil
		}
	}
	switch s.State {
	case postgres.SnapshotCompleted, postgres.SnapshotError:
		return p.purge(ctx, s, seen, account)
	case postgres.SnapshotPurged: // EC2 deletes what it has listed a moment ago
		return followup.Done("purged"), nil
	}
	return followup.LookAgain(growing(0)), nil // its sync counts it first
}

// adopt takes a disk's snapshots into the books: all of them, since which one somebody awaits shows only then.
func (p *Purge) adopt(ctx context.Context, key disk.Key, account string) error {
	all, err := p.EC2.FindSnapshots(ctx, key.Tags())
	if err != nil {
		return err
	}
	_, err = p.Store.AdoptSnapshots(ctx, slices.DeleteFunc(all, func(s disk.Snapshot) bool { return !disk.Ours(s, account) }))
	return err
}

func (p *Purge) purge(ctx context.Context, s postgres.SnapshotRecord, seen disk.Snapshot, account string) (followup.Result, error) {
	var why string
	var needed, unlisted bool
	purged, err := p.Store.PurgeSnapshot(ctx, s, func(ctx context.Context, s postgres.SnapshotRecord, row *disk.Row, going []string) (bool, error) {
		if needed = s.VolumeAside(); needed {
			return false, nil
		}
		all, err := p.EC2.FindSnapshots(ctx, seen.Key().Tags())
		if err != nil {
			return false, err
		}
		all = slices.DeleteFunc(all, func(o disk.Snapshot) bool { return o.ID != s.SnapshotID && slices.Contains(going, o.ID) })
		unlisted = !slices.ContainsFunc(all, func(o disk.Snapshot) bool { return o.ID == s.SnapshotID })
		var ok bool
		if ok, why = disk.MayPurge(s.SnapshotID, row, all, account, s.Now); !ok {
			return false, nil
		}
		err = p.EC2.DeleteSnapshot(ctx, s.SnapshotID)
		switch {
		case fault.Is(err, fault.Conflict):
			return false, fmt.Errorf("kept, since it is in use: %w", err)
		case err != nil && !fault.Is(err, fault.Gone):
			return false, err
		}
		return true, nil
	})
	switch {
	case err != nil:
		return followup.Result{}, err
	case needed:
		p.kept(ctx, s.SnapshotID, fmt.Sprintf("volume %s, which is set aside, is deleted only beside it", s.VolumeID))
		return followup.LookAgain(asidePause), nil
	case unlisted: // EC2 has yet to hear that it is gone, or that it is there
		return followup.LookAgain(growing(0)), nil
	case !purged:
		return p.kept(ctx, s.SnapshotID, cmp.Or(why, "it has not settled")), nil
	}
	p.opts.Log.InfoContext(ctx, "snapshot purged", "snapshot", s.SnapshotID, "disk", s.DiskName, "user", s.User, "reason", why)
	return followup.Done("purged"), nil
}

func (p *Purge) kept(ctx context.Context, snapshotID, why string) followup.Result {
	p.opts.Log.InfoContext(ctx, "snapshot kept", "snapshot", snapshotID, "reason", why)
	return followup.Done("kept")
}
