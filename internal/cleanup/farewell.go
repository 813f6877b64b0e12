package cleanup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/notice"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const (
	noticeBudget = 5 * time.Second
	// tries of the listing, and of storing it; each is bounded, and afterwards the pod goes without.
	listingTries = 2
	putBudget    = 10 * time.Second
)

// reachable returns the reservation's pod if a command can be run in it, else nil and why not.
func (a *Action) reachable(ctx context.Context, d *delivery) (*pod.Pod, string, error) {
	p, why, err := a.ownPod(ctx, d)
	if err != nil || p == nil {
		return nil, why, err
	}
	if main, _ := p.Main(); p.Phase != pod.Running || !main.Running {
		return nil, fmt.Sprintf("container %s of pod %s/%s does not run", pod.MainContainer, p.Namespace, p.Name), nil
	}
	return p, "", nil
}

// finalNotice tells whoever still works in the pod that it ends now. It is tried once.
func (a *Action) finalNotice(ctx context.Context, d *delivery) (result, error) {
	p, why, err := a.reachable(ctx, d)
	if err != nil || p == nil {
		return result{outcome: skipped, detail: why}, err
	}
	row, found, err := a.Store.Reservation(ctx, d.id)
	if err != nil || !found {
		return result{outcome: skipped, detail: "the reservation's row is gone"}, err
	}
	row.DiskName, row.EBSVolumeID = d.record.DiskName, d.record.VolumeID
	ended := d.record.Ended
	if ended.IsZero() {
		ended = a.now(d)
	}
	bounded, cancel := context.WithTimeout(ctx, noticeBudget)
	defer cancel()
	err = a.Cluster.WriteFile(bounded, p.Namespace, p.Name, pod.MainContainer, pod.File{
		Dir: notice.Home, Name: notice.FinalFile, Content: notice.Final(row, p.HasVolumes(), ended, d.record.Reason), Replaces: notice.WarningPrefix})
	if err != nil && ctx.Err() == nil {
		return finished(missing, err.Error())
	}
	return result{outcome: done}, err
}

// listing keeps what is on the disk as a text that people can read without restoring a snapshot. What cannot be had in
// a short while is recorded as missing: afterwards the pod is gone.
func (a *Action) listing(ctx context.Context, d *delivery) (result, error) {
	if d.record.VolumeID == "" {
		return finished(skipped, "no disk")
	}
	p, why, err := a.reachable(ctx, d)
	if err != nil {
		return result{}, err
	}
	if p == nil {
		return finished(missing, why)
	}
	listing, trouble := a.list(ctx, p)
	url := ""
	switch {
	case ctx.Err() != nil:
		return result{}, trouble
	case listing.Tree == "":
	case a.Bucket == nil:
		trouble = errors.Join(trouble, errors.New("DISK_CONTENTS_BUCKET is not set"))
	default:
		unnamed := a.nameDisk(ctx, d)
		var err error
		url, err = a.put(ctx, d.record, listing)
		trouble = errors.Join(trouble, unnamed, err)
	}
	outcome, detail := done, url
	switch {
	case a.Bucket == nil:
		outcome = skipped
	case url == "":
		outcome = missing
	}
	if trouble != nil {
		detail = trouble.Error()
	}
	if err := a.Store.RecordListing(ctx, d.id, listing.Size, url, outcome, detail); err != nil {
		return result{}, err
	}
	d.record.DiskSize, d.record.ContentURL = listing.Size, url
	return result{outcome: outcome, detail: detail, recorded: true}, nil
}

// list returns as much as two tries find, and what went wrong in the last one.
func (a *Action) list(ctx context.Context, p *pod.Pod) (found pod.Listing, err error) {
	for range listingTries {
		var listing pod.Listing
		listing, err = a.Cluster.RunListing(ctx, p.Namespace, p.Name, pod.MainContainer, pod.Home)
		if found.Size == "" {
			found.Size = listing.Size
		}
		if found.Tree == "" {
			found.Tree, found.Truncated = listing.Tree, listing.Truncated
		}
		if found.Size != "" && found.Tree != "" {
			return found, nil
		}
	}
	return found, err
}

func (a *Action) put(ctx context.Context, c postgres.CleanupRecord, l pod.Listing) (url string, err error) {
	key := disk.ListingKey(disk.Key{User: c.UserID, Name: c.DiskName}, c.ReservationID+".txt")
	text := fmt.Sprintf("%s\t%s\n%s", l.Size, pod.Home, l.Tree)
	for range listingTries {
		bounded, cancel := context.WithTimeout(ctx, putBudget)
		url, err = a.Bucket.PutListing(bounded, key, []byte(text))
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return url, err
}
