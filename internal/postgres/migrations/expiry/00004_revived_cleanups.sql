-- A cleanup remembers that its reservation was seen live since it was asked for: what it learnt is of an earlier life.

-- +goose Up
alter table expiry.cleanups add column revived_at timestamptz;

-- +goose Down
alter table expiry.cleanups drop column revived_at;
