package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

type lockStore interface {
	snapshotStore
	VolumesSetAside(ctx context.Context, ids []string) ([]string, error)
	IdleLocks(ctx context.Context, now time.Time) ([]postgres.IdleLock, error)
	ReleaseIdleLocks(ctx context.Context, lease postgres.SweepLease, now time.Time, locks []postgres.IdleLock) ([]postgres.IdleLock, error)
}

// Release is the action of freeing a disk.
const Release Action = "release"

const (
	// unheldMost bounds the locks without a reservation of whose disks EC2 is asked in one sweep.
	unheldMost = 20
	// tick lies between two sweeps: each asks about those that come after the last one's.
	tick = 5 * time.Minute
)

// locks frees disks that nothing is owed to any more. It comes after the snapshots, by which an unsettled disk is known.
// One that no reservation has is freed only while EC2 has no volume of it: of what the platform deletes before anybody has
// seen its end there is no cleanup, and its server may still write to the disk.
func locks(store lockStore, ec2 EC2) part {
	return part{name: "locks", new: true, everything: true, plan: func(ctx context.Context, p *pass) (plan, error) {
		idle, err := store.IdleLocks(ctx, p.now)
		if err != nil {
			return plan{}, err
		}
		var pl plan
		idle, pl.failures = empty(ctx, p, store, ec2, idle, &pl)
		pl.decisions = lockDecisions(idle)
		if len(idle) == 0 {
			return pl, nil
		}
		pl.apply = func(ctx context.Context) (done, error) {
			released, err := store.ReleaseIdleLocks(ctx, p.lease, p.now, idle)
			return done{lockDecisions(released), map[string]int{"locksReleased": len(released)}}, err
		}
		return pl, nil
	}}
}

// empty returns the locks without those of a disk that no reservation has and that EC2 may have a volume of. What it has
// is reported, and how many of them are left to the sweeps that follow.
func empty(ctx context.Context, p *pass, store lockStore, ec2 EC2, idle []postgres.IdleLock, pl *plan) (free []postgres.IdleLock, failures error) {
	var unheld []postgres.IdleLock
	for _, l := range idle {
		if l.Unheld {
			unheld = append(unheld, l)
		} else {
			free = append(free, l)
		}
	}
	if len(unheld) == 0 || ec2 == nil {
		return free, nil
	}
	if deadline, ok := ctx.Deadline(); ok { // the other half is for freeing, whatever EC2 does
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer stop()
	}
	if _, firstSight, err := atHome(ctx, store, p); err != nil || firstSight { // another account has none of the volumes
		return free, err
	}
	start := int(p.now.Round(tick).Unix()/int64(tick.Seconds())) * unheldMost % len(unheld)
	unheld = slices.Concat(unheld[start:], unheld[:start])
	if left := len(unheld) - unheldMost; left > 0 {
		unheld, pl.counts = unheld[:unheldMost], map[string]int{"locksNotAskedAbout": left}
	}
	for _, l := range unheld {
		volume, err := volumeOf(ctx, store, ec2, l)
		switch {
		case err != nil:
			failures = errors.Join(failures, fmt.Errorf("look for volumes of disk %s/%s: %w", l.UserID, l.DiskName, err))
		case volume != "":
			pl.anomalies.about(reservation.Anomaly("lock_without_reservation"),
				"a disk that no reservation has stays locked: its volume is there, and nobody knows whether a snapshot holds what is on it",
				diskName(disk.Key{User: l.UserID, Name: l.DiskName})+": "+volume)
		default:
			free = append(free, l)
		}
	}
	return free, failures
}

// volumeOf returns a volume that is the disk's by its row or by its tags, empty where EC2 has none. One set aside keeps its
// tags, and waits for the disk: it counts only while something may write to it. A list may be empty for nothing: it is asked
// for twice.
func volumeOf(ctx context.Context, store lockStore, ec2 EC2, l postgres.IdleLock) (string, error) {
	if l.VolumeID != "" {
		v, err := ec2.DescribeVolume(ctx, l.VolumeID)
		if err == nil && !v.Deleting() {
			return v.ID, nil
		}
		if err != nil && !fault.Is(err, fault.Gone) {
			return "", err
		}
	}
	for range 2 {
		tagged, err := ec2.FindVolumes(ctx, disk.Key{User: l.UserID, Name: l.DiskName}.Tags())
		if err != nil {
			return "", err
		}
		for _, v := range tagged {
			idle, _ := disk.WriterGone(v)
			aside, err := store.VolumesSetAside(ctx, []string{v.ID})
			if err != nil {
				return "", err
			}
			if !v.Deleting() && (!idle || len(aside) == 0) {
				return v.ID, nil
			}
		}
	}
	return "", nil
}

func lockDecisions(locks []postgres.IdleLock) []Decision {
	var decisions []Decision
	for _, l := range locks {
		decisions = append(decisions, Decision{ReservationID: l.ReservationID, Subject: fmt.Sprintf("%s/%s", l.UserID, l.DiskName),
			Action: Release, Reason: "the disk is locked for nothing: " + l.Reason})
	}
	return decisions
}
