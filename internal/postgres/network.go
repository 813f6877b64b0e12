package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// networkBudget bounds how long a row stays locked while what it stands for is taken down: another service that
// writes the row waits meanwhile.
const networkBudget = 20 * time.Second

// ended holds while reservation $1 is over.
const ended = `not exists (
			    select from reservations own
			    where own.reservation_id = $1 and coalesce(own.status, '') not in ('expired', 'cancelled', 'failed'))`

// DomainsOf returns the names that the reservation's rows in domain_mappings hold.
func (db *DB) DomainsOf(ctx context.Context, reservationID string) ([]string, error) {
	names, err := query(ctx, db, pgx.RowTo[string], `
		select domain_name from domain_mappings where reservation_id = $1 order by domain_name`, reservationID)
	if err != nil {
		return nil, fmt.Errorf("read the domains of %s: %w", reservationID, err)
	}
	return names, nil
}

// RemoveDomain calls remove for a domain and deletes its row, while the row is the reservation's and no live one has
// the domain. The row is locked from the check to the deletion, so nobody takes the name over in between. It reports
// false, and calls nothing, where the domain is not the reservation's any more.
func (db *DB) RemoveDomain(ctx context.Context, reservationID, domain string, remove func(context.Context) error) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, networkBudget)
	defer cancel()
	var ours bool
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			select not exists (
			    select from reservations r
			    where r.reservation_id <> $1 and r.status in ('preparing', 'active') and lower(r.domain_name) = lower(m.domain_name))
			from domain_mappings m where m.domain_name = $2 and m.reservation_id = $1 and `+ended+`
			for update of m`, reservationID, domain).Scan(&ours)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil || !ours {
			return err
		}
		if err := remove(ctx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "delete from domain_mappings where domain_name = $1 and reservation_id = $2", domain, reservationID)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("remove domain %s of %s: %w", domain, reservationID, err)
	}
	return ours, nil
}

// LoadBalancer is what stands before a reservation in the load balancer. Each is empty where the row names none, or
// where the row of another reservation names it too.
type LoadBalancer struct {
	RuleARN        string
	TargetGroupARN string
}

// RemoveLoadBalancer calls remove with what the reservation's row in alb_target_groups names and deletes the row,
// locked from the reading on. It reports false, and calls nothing, where the reservation has no such row.
func (db *DB) RemoveLoadBalancer(ctx context.Context, reservationID string, remove func(context.Context, LoadBalancer) error) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, networkBudget)
	defer cancel()
	var ours bool
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		var lb LoadBalancer
		err := tx.QueryRow(ctx, `
			select case when not exists (select from alb_target_groups o where o.reservation_id <> $1 and o.jupyter_rule_arn = g.jupyter_rule_arn)
			            then coalesce(g.jupyter_rule_arn, '') else '' end,
			       case when not exists (select from alb_target_groups o where o.reservation_id <> $1 and o.jupyter_target_group_arn = g.jupyter_target_group_arn)
			            then coalesce(g.jupyter_target_group_arn, '') else '' end
			from alb_target_groups g where g.reservation_id = $1 and `+ended+`
			for update of g`, reservationID).Scan(&lb.RuleARN, &lb.TargetGroupARN)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		ours = true
		if err := remove(ctx, lb); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "delete from alb_target_groups where reservation_id = $1", reservationID)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("remove the load balancer's part of %s: %w", reservationID, err)
	}
	return ours, nil
}
