-- A volume set aside may have to stay for good. It is no disk's any more, whatever becomes of its snapshot.

-- +goose Up
alter table expiry.snapshots add column volume_kept_at timestamptz; -- until then it was set aside

-- +goose Down
alter table expiry.snapshots drop column volume_kept_at;
