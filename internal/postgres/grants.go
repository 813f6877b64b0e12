package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// platformGrants is what the service needs of the platform's tables, by column: a privilege for what it never does is
// one that a mistake could use.
const platformGrants = `-- The platform's tables: read what is looked at, change what is decided, and delete only what leads to a server.
grant select (
    reservation_id, user_id, status, name, gpu_type, gpu_count, instance_type, failure_reason, current_detailed_status,
    created_at, launched_at, expires_at, updated_at, failed_at, cancelled_at, reservation_ended, pod_name, namespace,
    node_ip, node_port, ebs_availability_zone, domain_name, fqdn, disk_name, ebs_volume_id, is_multinode,
    master_reservation_id, node_index, total_nodes, oom_count, last_oom_at, oom_container, status_history, warnings_sent,
    last_warning_time
) on reservations to $role;
grant update (
    status, reservation_ended, failed_at, cancelled_at, failure_reason, current_detailed_status, status_history,
    oom_count, oom_container, last_oom_at, warnings_sent, last_warning_time
) on reservations to $role;
grant select (
    disk_id, disk_name, user_id, disk_size, created_at, last_used, in_use, reservation_id, is_backing_up, is_deleted,
    delete_date, marked_deleted_at, snapshot_count, pending_snapshot_count, ebs_volume_id, last_snapshot_at, operation_status,
    operation_error, latest_snapshot_content_s3, last_updated
) on disks to $role;
grant update (
    in_use, reservation_id, is_backing_up, last_updated, ebs_volume_id, operation_status, operation_error,
    snapshot_count, pending_snapshot_count, last_snapshot_at, disk_size, latest_snapshot_content_s3
) on disks to $role;
-- Nothing is changed in these two: PostgreSQL lets only those lock a row who may update some column of it.
grant select (domain_name, reservation_id), update (updated_at), delete on domain_mappings to $role;
grant select (reservation_id, jupyter_target_group_arn, jupyter_rule_arn), update (updated_at), delete
    on alb_target_groups to $role;
`

// ownGrants is what it needs of its own schema, now and after later migrations by the same owner, whoever runs this. It
// may change no table there, and its version least of all.
const ownGrants = `-- Its own schema: every row, but no table.
grant usage on schema expiry to $role;
grant select, insert, update, delete on all tables in schema expiry to $role;
do 'begin
    execute (
        select format(''alter default privileges for role %s in schema expiry
            grant select, insert, update, delete on tables to $nested'', relowner::regrole)
        from pg_class where oid = ''expiry.schema_version''::regclass
    );
end';
revoke insert, update, delete on expiry.schema_version from $role;
revoke all on expiry.migration_lock from $role;
`

// parts of what is granted, each by the owner of a table: they need not be one role.
var parts = []struct{ whose, table, grants string }{
	{"the platform's tables", "relname = 'reservations' and pg_table_is_visible(oid)", platformGrants},
	{"schema expiry", "relname = 'schema_version' and relnamespace = (select oid from pg_namespace where nspname = 'expiry')", ownGrants},
}

// owns asks whether whoever runs it may grant what is of a table.
const owns = "select coalesce(bool_or(pg_has_role(relowner, 'usage')), false) as owned from pg_class where "

// Grants returns a script for psql that lets a role run the service and nothing more. It grants what its runner owns,
// each part whole or not at all, and says what is left for another owner. It may be run again at any time.
func Grants(role string) string {
	script := []string{`\set ON_ERROR_STOP on`}
	for _, part := range parts {
		script = append(script, "", "-- For the owner of "+part.whose+".", owns+part.table+` \gset`,
			`\if :owned`, "begin;", grantsTo(part.grants, role)+"commit;",
			`\else`, `\warn 'left for its owner to grant: `+strings.ReplaceAll(part.whose, "'", "''")+"'", `\endif`, "")
	}
	return strings.Join(script, "\n")
}

func grantsTo(grants, role string) string {
	name := pgx.Identifier{role}.Sanitize()
	nested := strings.NewReplacer("'", "''''", "%", "%%").Replace(name) // in a format that is quoted twice
	return strings.NewReplacer("$role", name, "$nested", nested).Replace(grants)
}

// Grant grants what the owner that url logs in as owns, each part whole or not at all, and calls left for what another
// owner has to grant. It is idempotent, and fails where there is nothing that it could grant.
func Grant(ctx context.Context, url, role string, left ...func(whose string)) error {
	config, err := connConfig(url)
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // several statements, which are one transaction
	db := stdlib.OpenDB(*config)
	defer func() { _ = db.Close() }()
	granted := false
	for _, part := range parts {
		var owned bool
		if err := db.QueryRowContext(ctx, owns+part.table).Scan(&owned); err != nil {
			return fmt.Errorf("ask who owns %s: %w", part.whose, err)
		}
		if !owned {
			for _, tell := range left {
				tell(part.whose)
			}
			continue
		}
		granted = true
		if _, err := db.ExecContext(ctx, grantsTo(part.grants, role)); err != nil {
			return fmt.Errorf("grant to %s what the service needs of %s: %w", role, part.whose, err)
		}
	}
	if !granted {
		return fmt.Errorf("grant to %s what the service needs: only the owner of the tables may", role)
	}
	return nil
}
