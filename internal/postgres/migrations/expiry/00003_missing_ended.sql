-- The brake remembers for a while which reservations were expired for a missing pod: many a few at a time are as many as
-- all at once.

-- +goose Up
alter table expiry.missing_pods add column ended_at timestamptz; -- its reservation was expired for it; null: not so far

-- +goose Down
alter table expiry.missing_pods drop column ended_at;
