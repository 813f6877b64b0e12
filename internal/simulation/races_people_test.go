package simulation

import (
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// act is something that somebody does; it reports false where the time for it has not come.
type act func(*races, *lane) bool

// fates are what becomes of the lanes of a round.
var fates = [][]act{
	{},
	{extend},
	{cancel},
	{extend, backUp, cancel},
	{startAgain, launch},
	{forget},
	{revive},
	{backUp, cancel, startAgain, forget, launch},
	{backUp, startAgain, launch},
}

// change has a user change a reservation's row as it is at that moment, and returns what its status was.
func (r *races) change(id, set string) (was string) {
	err := pgx.BeginFunc(r.t.Context(), r.sql, func(tx pgx.Tx) error {
		return tx.QueryRow(r.t.Context(), `
			with before as (select reservation_id, status from reservations where reservation_id = $1 for update)
			update reservations r set `+set+` from before where r.reservation_id = before.reservation_id
			returning before.status`, id).Scan(&was)
	})
	if err != nil {
		r.t.Errorf("a user was made to fail: %v", err)
	}
	return was
}

func (r *races) over(id string) bool {
	return r.read("select exists (select from reservations where reservation_id = $1 and status in ('expired', 'cancelled', 'failed'))", id) == "true"
}

func extend(r *races, l *lane) bool {
	l.was = r.change(l.first.id, "expires_at = clock_timestamp() + interval '9 hours'")
	l.wish = "active"
	r.note("ada", "extends %s, which was %s", l.first.id, l.was)
	return true
}

func cancel(r *races, l *lane) bool {
	l.was = r.change(l.first.id, "status = 'cancelled', cancelled_at = clock_timestamp(), reservation_ended = clock_timestamp()")
	l.wish = "cancelled"
	r.note("ada", "cancels %s, which was %s", l.first.id, l.was)
	return true
}

func backUp(r *races, l *lane) bool {
	r.lock.Lock()
	v := r.outside.EC2.Volume(l.first.volume)
	there := v != nil && v.State == disk.VolumeInUse
	r.lock.Unlock()
	if !there {
		return true
	}
	r.exec(`update disks set is_backing_up = true, pending_snapshot_count = pending_snapshot_count + 1, last_updated = clock_timestamp()
		where disk_name = $1`, l.first.disk)
	r.lock.Lock()
	defer r.lock.Unlock()
	tags := disk.Key{User: l.first.user, Name: l.first.disk}.Tags()
	tags[disk.TagType] = "periodic"
	s := r.outside.EC2.Snap(v, tags, "periodic backup")
	r.say("platform", "backs %s up as %s", l.first.disk, s.ID)
	return true
}

func startAgain(r *races, l *lane) bool {
	if !r.over(l.first.id) {
		return false
	}
	l.newer = r.reservation(l.first.disk, time.Now())
	r.note("ada", "starts again on %s as %s", l.first.disk, l.newer.id)
	return true
}

// launch gives the newer reservation a server once the former pod is gone: with the very volume, if that is free by then,
// else with one made from the newest snapshot.
func launch(r *races, l *lane) bool {
	r.lock.Lock()
	gone := !r.people.podOf(r.world, l.first)
	if v := r.outside.EC2.Volume(l.first.volume); v != nil && v.State == disk.VolumeAvailable {
		l.newer.volume = v.ID
	}
	r.lock.Unlock()
	if gone {
		r.launched(l.newer, 9*time.Hour)
		r.note("platform", "launches %s with %s", l.newer.id, l.newer.volume)
	}
	return gone
}

// forget comes once there is a cleanup, which remembers what the row said: nobody else would.
func forget(r *races, l *lane) bool {
	over := r.over(l.first.id) && r.read("select exists (select from expiry.cleanups where reservation_id = $1)", l.first.id) == "true"
	if over {
		r.exec("delete from reservations where reservation_id = $1", l.first.id)
		r.note("platform", "deletes the row of %s", l.first.id)
	}
	return over
}

func revive(r *races, l *lane) bool {
	if !r.over(l.first.id) {
		return false
	}
	r.lock.Lock()
	r.revived[l.first.id] = true
	r.lock.Unlock()
	r.exec(`update reservations set status = 'active', expires_at = clock_timestamp() + interval '9 hours', reservation_ended = null
		where reservation_id = $1`, l.first.id)
	r.note("platform", "brings %s back to life", l.first.id)
	return true
}
