package sweep

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A platform of some size has ended many within the week and given their disks to others. To see that nothing is owed of
// them is a fraction of a sweep's time, whether statistics have been made of the tables or not.
func TestASweepHasSoonSeenThatNothingIsOwedOfAWeeksEndings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`
		insert into reservations (reservation_id, user_id, status, created_at, launched_at, expires_at, disk_name, ebs_volume_id, reservation_ended)
		select md5(i::text)::uuid::text, 'user-' || i % 1500, case when i <= 3000 then 'active' else 'expired' end, now() - interval '3 days',
		       now() - interval '1 minute' * (5 + i / 5), now() + interval '1 day', 'disk-' || i % 3, 'vol-' || left(md5(i::text), 17),
		       case when i > 3000 then now() - interval '1 minute' * (i / 5) end
		from generate_series(1, 15000) i`)
	w.exec(`
		insert into expiry.cleanups (reservation_id, reason, user_id, disk_name, volume_id, requested_at, disk_released_at, settled_at, outcome)
		select reservation_id, 'expired', user_id, disk_name, ebs_volume_id, reservation_ended, reservation_ended, reservation_ended, 'released'
		from reservations where status = 'expired'`)
	w.exec(`
		insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id)
		select distinct on (user_id, disk_name) user_id, disk_name, status = 'active', case when status = 'active' then reservation_id end,
		       case when status = 'active' then ebs_volume_id end
		from reservations order by user_id, disk_name, status`)
	for _, statistics := range []bool{false, true} {
		if statistics {
			w.exec("analyze")
		}
		r := w.sweep()
		require.Empty(t, r.Failures)
		t.Log(r.Durations)
		require.Less(t, r.Durations["cleanups"]+r.Durations["locks"], (3 * time.Second).Milliseconds())
	}
}
