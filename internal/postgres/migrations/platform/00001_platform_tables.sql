-- The platform's tables as this service finds them, for demos and tests only: in production they exist already
-- and belong to the platform. Every statement leaves what is already there alone.

-- +goose Up
-- +goose StatementBegin
create or replace function gpudev_touch_updated_at() returns trigger language plpgsql as $$
begin
    new.updated_at = clock_timestamp();
    return new;
end
$$;
-- +goose StatementEnd

create table if not exists reservations (
    reservation_id          varchar(36) primary key,
    user_id                 varchar(255),
    status                  varchar(50),
    gpu_type                varchar(50),
    gpu_count               integer,
    instance_type           varchar(100),
    duration_hours          double precision,
    created_at              timestamptz default now(),
    launched_at             timestamptz,
    expires_at              timestamptz,
    updated_at              timestamptz default now(),
    name                    text,
    github_user             varchar(255),
    pod_name                varchar(255),
    namespace               varchar(255) default 'default',
    node_ip                 varchar(64),
    node_port               integer,
    ebs_volume_id           varchar(64),
    disk_name               varchar(255),
    failure_reason          text,
    current_detailed_status text,
    status_history          jsonb default '[]',
    warning                 text,
    is_multinode            boolean default false,
    master_reservation_id   varchar(36),
    node_index              integer,
    total_nodes             integer,
    ebs_availability_zone   varchar(64),
    domain_name             varchar(255),
    fqdn                    varchar(255),
    alb_config              jsonb,
    node_private_ip         varchar(64),
    oom_count               integer default 0,
    last_oom_at             timestamptz,
    oom_container           varchar(255),
    warnings_sent           jsonb default '{}',
    last_warning_time       bigint,
    failed_at               timestamptz,
    cancelled_at            timestamptz,
    reservation_ended       timestamptz
);

create index if not exists idx_reservations_status on reservations (status);
create index if not exists idx_reservations_expires_at on reservations (expires_at);

create table if not exists disks (
    disk_id                    uuid primary key default gen_random_uuid(),
    disk_name                  text not null,
    user_id                    varchar(255) not null,
    size_gb                    integer,
    disk_size                  text,
    created_at                 timestamptz default now(),
    last_used                  timestamptz,
    in_use                     boolean default false,
    reservation_id             varchar(36) references reservations (reservation_id) on delete set null,
    is_backing_up              boolean default false,
    is_deleted                 boolean default false,
    delete_date                date,
    marked_deleted_at          timestamptz,
    snapshot_count             integer default 0,
    pending_snapshot_count     integer default 0,
    ebs_volume_id              varchar(64),
    last_snapshot_at           timestamptz,
    operation_id               uuid,
    operation_status           text,
    operation_error            text,
    latest_snapshot_content_s3 text,
    last_updated               timestamptz default now(),
    unique (user_id, disk_name)
);

create table if not exists domain_mappings (
    domain_name    varchar(255) primary key,
    node_ip        varchar(64),
    node_port      integer,
    reservation_id varchar(36) references reservations (reservation_id) on delete cascade,
    expires_at     timestamptz,
    created_at     timestamptz default now(),
    updated_at     timestamptz default now()
);

create table if not exists alb_target_groups (
    reservation_id           varchar(36) primary key references reservations (reservation_id) on delete cascade,
    domain_name              varchar(255),
    jupyter_target_group_arn text,
    jupyter_rule_arn         text,
    expires_at               timestamptz,
    created_at               timestamptz default now(),
    updated_at               timestamptz default now()
);

-- +goose StatementBegin
do $$
begin
    if not exists (select from pg_trigger where tgrelid = 'reservations'::regclass and not tgisinternal) then
        create trigger reservations_touch_updated_at before update on reservations
            for each row execute function gpudev_touch_updated_at();
    end if;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- The platform's tables are never dropped by this service.
select 1;
