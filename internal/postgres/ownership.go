package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// Ownership is what the rows say, at one moment, about whose a pod name is.
type Ownership struct {
	Over       bool     // the reservation has ended, or its row is gone
	NameIsLive bool     // another reservation, which has not ended, has the pod name
	UIDs       []string // of the reservation's own pods, the one seen last first
	Theirs     bool     // a pod of the UID was seen as another reservation's
}

// Ownership reads who may have a pod called podName, of this UID if there is one: the reservation itself or a live one.
func (db *DB) Ownership(ctx context.Context, reservationID, podName, uid string) (Ownership, error) {
	o, _, err := first(query(ctx, db, pgx.RowToStructByPos[Ownership], `
		select not exists (select from reservations
		                   where reservation_id = $1 and coalesce(status, '') not in ('expired', 'cancelled', 'failed')),
		       exists (select from reservations
		               where reservation_id <> $1 and status in ('pending', 'queued', 'preparing', 'active')
		                 and coalesce(nullif(pod_name, ''), 'gpu-dev-' || left(reservation_id, 8)) = $2),
		       array(select uid from expiry.pods where reservation_id = $1 order by first_seen_at desc),
		       exists (select from expiry.pods where uid = $3 and reservation_id <> $1)`,
		reservationID, podName, uid))
	if err != nil {
		return Ownership{}, fmt.Errorf("look for the owner of pod %s: %w", podName, err)
	}
	return o, nil
}

// KnownCluster returns the UID of the cluster in which the reservations live, empty before the first sweep.
func (db *DB) KnownCluster(ctx context.Context) (string, error) {
	uid, _, err := first(query(ctx, db, pgx.RowTo[string], "select uid from expiry.cluster"))
	if err != nil {
		return "", fmt.Errorf("read the known cluster: %w", err)
	}
	return uid, nil
}

// KnownAccount returns the AWS account and region in which the disks live, the zero value before they were recorded.
func (db *DB) KnownAccount(ctx context.Context) (disk.Account, error) {
	a, _, err := first(query(ctx, db, pgx.RowToStructByPos[disk.Account], "select account_id, region from expiry.aws_account"))
	if err != nil {
		return disk.Account{}, fmt.Errorf("read the known AWS account: %w", err)
	}
	return a, nil
}

const recordAccount = "insert into expiry.aws_account (account_id, region) values ($1, $2) on conflict do nothing"

// RecordAccount remembers the AWS account and region in which the disks live. The first one stays.
func (db *DB) RecordAccount(ctx context.Context, a disk.Account) error {
	if _, err := db.exec(ctx, recordAccount, a.ID, a.Region); err != nil {
		return fmt.Errorf("record AWS account %s: %w", a, err)
	}
	return nil
}

// SweepAccount is RecordAccount for a sweep.
func (db *DB) SweepAccount(ctx context.Context, lease SweepLease, a disk.Account) error {
	return db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, recordAccount, a.ID, a.Region); err != nil {
			return fmt.Errorf("record AWS account %s: %w", a, err)
		}
		return nil
	})
}
