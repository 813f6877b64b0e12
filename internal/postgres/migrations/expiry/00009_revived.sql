-- A reservation that has ended may come back to life: the platform, or an operator, writes its status back.

-- +goose Up
alter table expiry.cleanups
    add column revived_at       timestamptz, -- the reservation was live after the cleanup was asked for
    add column redated_at       timestamptz, -- when it last began anew for what was written since, though nobody saw it live
    add column former_volume_id text;        -- that of the cleanup from which this one began anew, not kept until then

-- +goose Down
alter table expiry.cleanups drop column revived_at, drop column redated_at, drop column former_volume_id;
