-- A row may name a volume that was not the reservation's: its pod had the user's home on another.

-- +goose Up
alter table expiry.cleanups add column misnamed_volume_id text; -- by the row; null: what it names is volume_id

-- +goose Down
alter table expiry.cleanups drop column misnamed_volume_id;
