-- A person may send two different events under one id: both are kept.

-- +goose Up
drop index expiry.dead_letters_of_event;
create unique index dead_letters_of_event on expiry.dead_letters (md5(event_source), md5(event_id), md5(event));

-- +goose Down
drop index expiry.dead_letters_of_event;
create unique index dead_letters_of_event on expiry.dead_letters (md5(event_source), md5(event_id));
