-- What a trace says of its reservation, whose row the platform may delete while it lives.

-- +goose Up
alter table expiry.traces
    add column user_id     text,
    add column gpu_type    text,
    add column status      text,        -- when last something of it was to be written
    add column created_at  timestamptz,
    add column launched_at timestamptz;

-- +goose Down
alter table expiry.traces
    drop column user_id, drop column gpu_type, drop column status, drop column created_at, drop column launched_at;
