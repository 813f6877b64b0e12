-- What a cleanup's trace says of its reservation, which the platform may delete before the cleanup is settled.

-- +goose Up
alter table expiry.cleanups
    add column gpu_type    text,
    add column status      text,        -- what it ended as
    add column created_at  timestamptz,
    add column launched_at timestamptz,
    add column expires_at  timestamptz;

-- +goose Down
alter table expiry.cleanups
    drop column gpu_type, drop column status, drop column created_at, drop column launched_at, drop column expires_at;
