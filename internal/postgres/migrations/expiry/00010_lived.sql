-- What a reservation's row says of its end may be of an earlier life's, and stays when its cleanup begins anew.

-- +goose Up
alter table expiry.cleanups add column lived_at timestamptz; -- when it was last known to have come back to life

-- +goose Down
alter table expiry.cleanups drop column lived_at;
