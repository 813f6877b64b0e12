package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// reservationColumns selects a whole row of the platform's table, under the given alias, for reservationFields. An
// outer join's absent row comes out with an empty id.
func reservationColumns(alias string) string {
	return strings.ReplaceAll(`
		coalesce(r.reservation_id, ''), coalesce(r.user_id, ''), coalesce(r.status, ''), coalesce(r.name, ''),
		coalesce(r.gpu_type, ''), coalesce(r.gpu_count, 0), coalesce(r.instance_type, ''), coalesce(r.failure_reason, ''),
		r.created_at, r.launched_at, r.expires_at, r.updated_at,
		r.failed_at, r.cancelled_at, r.reservation_ended,
		coalesce(r.pod_name, ''), coalesce(r.namespace, ''), coalesce(r.node_ip, ''), coalesce(r.node_port, 0),
		coalesce(r.ebs_availability_zone, ''), coalesce(r.domain_name, ''), coalesce(r.fqdn, ''),
		coalesce(r.disk_name, ''), coalesce(r.ebs_volume_id, ''),
		coalesce(r.is_multinode, false), coalesce(r.master_reservation_id, ''), coalesce(r.node_index, 0),
		coalesce(r.total_nodes, 0),
		coalesce(r.oom_count, 0), r.last_oom_at, coalesce(r.oom_container, ''),
		r.status_history, r.warnings_sent, coalesce(r.last_warning_time, 0)`, "r.", alias+".")
}

// reservationFields are the scan targets of reservationColumns, in its order.
func reservationFields(r *reservation.Reservation) []any {
	return []any{
		&r.ID, &r.UserID, &r.Status, &r.Name,
		&r.GPUType, &r.GPUCount, &r.InstanceType, &r.FailureReason,
		&r.CreatedAt, &r.LaunchedAt, &r.ExpiresAt, &r.UpdatedAt,
		&r.FailedAt, &r.CancelledAt, &r.ReservationEnded,
		&r.PodName, &r.NamespaceName, &r.NodeIP, &r.NodePort,
		&r.AvailabilityZone, &r.DomainName, &r.FQDN,
		&r.DiskName, &r.EBSVolumeID,
		&r.IsMultinode, &r.MasterID, &r.NodeIndex,
		&r.TotalNodes,
		&r.OOMCount, &r.LastOOMAt, &r.OOMContainer,
		&r.StatusHistory, &r.WarningsSent, &r.LastWarningTime,
	}
}

// Reservation reads one row of the platform's table. found is false, without an error, where there is none.
func (db *DB) Reservation(ctx context.Context, id string) (r reservation.Reservation, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select `+reservationColumns("r")+` from reservations r where r.reservation_id = $1`, id)
	if err == nil {
		var one []reservation.Reservation
		one, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r reservation.Reservation, err error) {
			return r, row.Scan(reservationFields(&r)...)
		})
		if err == nil && len(one) == 1 {
			return one[0], true, nil
		}
	}
	if err != nil {
		return reservation.Reservation{}, false, fmt.Errorf("read reservation %s: %w", id, err)
	}
	return reservation.Reservation{}, false, nil
}

// UnknownReservations returns those of the ids that are of no row in the platform's table.
func (db *DB) UnknownReservations(ctx context.Context, ids []string) ([]string, error) {
	unknown, err := query(ctx, db, pgx.RowTo[string], `
		select distinct id from unnest($1::text[]) as g (id)
		where not exists (select from reservations r where r.reservation_id = id)
		order by id`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for %d reservations: %w", len(ids), err)
	}
	return unknown, nil
}
