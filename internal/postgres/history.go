package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// over is a condition on x.reservation_id: nothing will be done for that reservation any more, whether its row is still
// there or not.
const over = `
	not exists (select from reservations r where r.reservation_id = x.reservation_id
	            and coalesce(r.status, '') not in ('expired', 'cancelled', 'failed'))
	and not exists (select from expiry.cleanups c where c.reservation_id = x.reservation_id and c.settled_at is null)`

// history says which rows of ours are old news, by table. Each condition is on x, with $2 the age's limit.
//
// What was never announced, and a dead letter that nobody has replayed, are not. The rows that tell what has been dealt
// with (pods, out-of-memory kills) outlive the pod that shows it, and those that tell of a volume kept for good that it is
// no disk's any more stay with it.
var history = []struct{ table, old string }{
	{"follow_ups", `x.state = 'done' and x.finished_at < $2`},
	{"facts", `x.occurred_at < $2 and x.published_at is not null`},
	{"dead_letters", `x.received_at < $2 and x.replayed_at >= x.received_at`},
	{"oom_kills", `x.recorded_at < $2 and ` + over},
	{"pods", `x.first_seen_at < $2 and ` + over},
	{"snapshots", `x.state = 'purged' and x.settled_at < $2 and x.volume_kept_at is null`},
	{"cleanups", `x.settled_at < $2`},
	{"traces", `x.updated_at < $2
	     and not exists (select from reservations r where r.reservation_id = x.reservation_id)
	     and not exists (select from expiry.cleanups c where c.reservation_id = x.reservation_id)`},
}

// forgetHistory deletes from all tables in one statement: nearly always there is nothing to delete, and each statement of
// its own would be four trips to the database in every sweep.
//
// A reservation's sequence of facts is never forgotten: it may still have something to say. A sweep's has one fact only.
var forgetHistory = func() string {
	var deletions, sums strings.Builder
	for _, h := range history {
		deletions.WriteString(h.table + ` as (
		    delete from expiry.` + h.table + ` where ctid = any(array(
		        select x.ctid from expiry.` + h.table + ` x where ` + h.old + ` limit $1 for update skip locked))
		    returning 1),
		`)
		sums.WriteString(" + (select count(*) from " + h.table + ")")
	}
	return `
		with ` + deletions.String() + `sweeps as (
		    delete from expiry.sweeps where sweep_id in (
		        select sweep_id from expiry.sweeps where started_at < $2 and outcome <> 'running' order by started_at limit $1)
		    returning sweep_id::text),
		sequences as (delete from expiry.fact_sequences where subject in (select sweep_id from sweeps))
		select (select count(*) from sweeps)` + sums.String()
}()

// ForgetHistory deletes what is over since before the given time, at most limit rows of each table, and returns how
// many rows went.
func (db *DB) ForgetHistory(ctx context.Context, lease SweepLease, before time.Time, limit int) (int, error) {
	forgotten := 0
	err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, forgetHistory, limit, before).Scan(&forgotten); err != nil {
			return fmt.Errorf("forget what is long over: %w", err)
		}
		return nil
	})
	return forgotten, err
}
