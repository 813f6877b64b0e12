package main

import (
	"context"
	"time"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// Reservations that end and leave a disk, and disks between reservations.

// explained is the reservation that the demo explains in the end.
const explained = "ended, with a disk"

var diskKept = []string{"reservation.expired", "disk.snapshotted", "disk.released", "reservation.cleanedUp"}

// Past its end: its listing kept, a snapshot made, the volume gone, the disk free.
func expiredWithDisk(s *stage) {
	s.reserve(explained, platform.Reservation{User: "uma", Disk: "work", EndsIn: -time.Minute}).onDisk().running().
		sh("mkdir -p /home/dev/project && echo data >/home/dev/project/results.csv").
		expect(is("expired"), podGone, serviceGone, listed("results.csv"), snapshotted, volumeGone, claimGone, diskFree(1),
			cleanup("released"), facts(diskKept...))
}

// Its row names neither disk nor volume: they are found by the pod's claim and the volume's tags.
func expiredWithUnnamedDisk(s *stage) {
	r := s.reserve("ended, its row names no disk", platform.Reservation{User: "vera", Disk: "notes", EndsIn: -time.Minute}).onDisk().running()
	r.also(func(ctx context.Context) error {
		return s.Exec(ctx, "update reservations set ebs_volume_id = null, disk_name = null where reservation_id = $1", r.ID)
	}).expect(is("expired"), podGone, snapshotted, volumeGone, claimGone, diskFree(1), cleanup("released"), facts(diskKept...))
}

// The volume driver dies before it has detached the volume: after a minute it is detached for it.
func driverLeftIt(s *stage) {
	r := s.reserve("ended, volume left attached", platform.Reservation{User: "walt", Disk: "models", EndsIn: -time.Minute}).onDisk().running()
	r.also(func(context.Context) error {
		s.Abandon(*r.Server)
		return nil
	}).expect(is("expired"), podGone, snapshotted, volumeGone, claimGone, diskFree(1), cleanup("released"), facts(diskKept...),
		equals("its volume was detached once, not by force", `
			select concat(detach_requested_at is not null, ' ', detach_forced_at is not null) from expiry.cleanups where reservation_id = $1`, "t f"))
}

// Cancelled by its user, and the pod was left over.
func cancelled(s *stage) {
	r := s.reserve("cancelled, its pod left over", platform.Reservation{User: "xena", Disk: "thesis", EndsIn: 2 * time.Hour}).onDisk().running()
	r.also(func(ctx context.Context) error { return s.End(ctx, r.ID, "cancelled", "cancelled by its user") }).
		expect(is("cancelled"), podGone, serviceGone, snapshotted, volumeGone, diskFree(1), cleanup("released"),
			facts("disk.snapshotted", "disk.released", "reservation.cleanedUp"))
}

// The platform gave disk and volume to a newer reservation before the old one was cleaned up: nothing is touched.
func diskTakenOver(s *stage) {
	old := s.reserve("ended, its disk taken over", platform.Reservation{User: "yuri", Disk: "shared", EndsIn: -time.Minute}).onDisk()
	newer := s.reserve("has taken over that disk", platform.Reservation{User: "yuri", Disk: "shared", EndsIn: 5 * time.Hour})
	newer.also(func(ctx context.Context) error {
		newer.Volume, newer.Node = old.Volume, old.Node
		return s.Exec(ctx, "update reservations set ebs_volume_id = $2 where reservation_id = $1", newer.ID, newer.Volume)
	}).running()
	old.expect(is("expired"), cleanup("superseded"), notSnapshotted, facts("reservation.expired", "reservation.cleanedUp"))
	newer.expect(is("active"), podStays, volumeAttached, notSnapshotted, untouched)
}

const day = 24 * time.Hour

// disk makes a disk that no reservation uses, with snapshots of the given ages, and sets its row's other columns.
func (s *stage) disk(title, name, columns string, tags map[string]string, ages ...time.Duration) *subject {
	const user = "zoe"
	r := s.add(title, platform.Server{User: user, Disk: name})
	s.try(func(ctx context.Context) error {
		if err := s.Exec(ctx, `insert into disks (user_id, disk_name, size_gb, created_at, last_updated, snapshot_count) values ($1, $2, 10, now() - interval '90 days',
			now() - interval '1 day', $3)`, user, name, len(ages)); err != nil {
			return err
		}
		return s.Exec(ctx, "update disks set "+columns+" where user_id = $1 and disk_name = $2", user, name)
	})
	if len(ages) == 0 {
		return r
	}
	s.try(func(ctx context.Context) error {
		volume, err := s.CreateVolume(ctx, user, name)
		if err != nil {
			return err
		}
		for _, age := range ages {
			id, err := s.Snapshot(ctx, user, name, volume, age, tags)
			if err != nil {
				return err
			}
			r.kept = append(r.kept, id)
		}
		return s.DeleteVolume(ctx, volume)
	})
	return r
}

// Of each disk the newest three stay; older ones go once they are past seven days.
func oldSnapshots(s *stage) {
	s.disk("a disk with old snapshots", "archive", "in_use = false", nil, 40*day, 30*day, 20*day, 10*day, 3*day, day).
		expect(keeps("those past 7 days are gone, but for the newest three", "---+++"),
			diskRow("its counter has followed", "free, no volume, 3 snapshots"))
}

// Copies carry the platform's tags along and are not the platform's: neither counted among the newest nor deleted.
func foreignSnapshots(s *stage) {
	r := s.disk("a disk with copied snapshots", "copied", "in_use = false", nil, 40*day, 30*day, 20*day)
	r.also(func(ctx context.Context) error {
		for _, age := range []time.Duration{50 * day, 3 * day, 2 * day, day} {
			id, err := s.Copy(ctx, r.kept[0], r.User, r.Disk, age)
			if err != nil {
				return err
			}
			r.kept = append(r.kept, id)
		}
		return nil
	}).expect(keeps("all its snapshots are there, old copies and the newest three of its own", "+++++++"),
		diskRow("its counter is as it was", "free, no volume, 3 snapshots"))
}

// Deleted by its user, and the day until which it could be restored is past: its snapshots go.
func deletedDisk(s *stage) {
	s.disk("a deleted disk, its date past", "purged", "is_deleted = true, delete_date = current_date - 1, marked_deleted_at = now() - interval '30 days'",
		nil, 3*day, day).
		expect(keeps("its snapshots are gone", "--"))
}

// Deleted by its user, who may still want it back: its snapshots are tagged with the day.
func deletedLately(s *stage) {
	r := s.disk("a deleted disk, days to go", "regretted", "is_deleted = true, delete_date = current_date + 5, marked_deleted_at = now()", nil, 3*day, day)
	r.expect(keeps("its snapshots are there", "++"), tagged("delete-date", time.Now().UTC().Add(5*day).Format(time.DateOnly)))
}

// Restored by its user after it was deleted: its snapshots lose the tags by which they would go.
func restoredDisk(s *stage) {
	s.disk("a restored disk", "restored", "is_deleted = false", map[string]string{
		"delete-date": time.Now().UTC().Add(-day).Format(time.DateOnly), "marked-deleted-at": "1700000000"}, 3*day, day).
		expect(keeps("its snapshots are there", "++"), tagged("delete-date", ""), tagged("marked-deleted-at", ""))
}

// Locked for nobody, for two hours: forgotten.
func staleLock(s *stage) {
	s.disk("a lock without reservation, 2 h old", "forgotten", "in_use = true, last_updated = now() - interval '2 hours', last_used = now() - interval '2 hours'", nil).
		expect(diskFree(0))
}

// Locked for nobody, ten minutes ago: a launch may be under way.
func freshLock(s *stage) {
	s.disk("a lock without reservation, 10 min old", "launching", "in_use = true, last_updated = now() - interval '10 minutes', last_used = now() - interval '10 minutes'", nil).
		expect(diskRow("its disk is left alone", "in use, no volume, 0 snapshots"), untouched)
}
