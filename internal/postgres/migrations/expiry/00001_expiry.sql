-- The service's own state. Nothing here references the platform's tables: they must be free to change and to
-- delete their rows. Reservation ids are text for the same reason.
--
-- Once released, a migration stays as it is, and a later one only adds: the binary before it goes on beside it.

-- +goose Up

-- One sweep at a time. A crashed sweep's lease lapses by itself.
create table expiry.sweep_lease (
    singleton  boolean primary key default true check (singleton),
    token      uuid unique,                       -- the sweep; unique so that taking it over waits for its writes
    holder     text,
    expires_at timestamptz not null default '-infinity'
);
insert into expiry.sweep_lease default values;

create table expiry.sweeps (
    sweep_id    uuid primary key,
    trigger     text        not null,             -- the event's type, or 'shell'
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    outcome     text        not null default 'running'
        check (outcome in ('running', 'completed', 'partial', 'failed', 'abandoned')),
    braked      boolean     not null default false,
    paused      boolean     not null default false,
    counts      jsonb       not null default '{}',
    failures    jsonb       not null default '[]', -- [{"part": …, "error": …}]
    brake       jsonb,                            -- what would have ended of how many, and what was held back
    anomalies   jsonb       not null default '[]', -- rows that were reported and left alone
    durations   jsonb       not null default '{}' -- milliseconds, by part
);
create index sweeps_newest on expiry.sweeps (started_at desc);

create table expiry.pause (
    singleton boolean primary key default true check (singleton),
    paused_at timestamptz not null,
    until     timestamptz,                        -- null: until resumed
    why       text        not null
);

-- The kube-system UID of the cluster the reservations live in. While another cluster answers, nothing is missing.
create table expiry.cluster (
    singleton     boolean primary key default true check (singleton),
    uid           text        not null,
    first_seen_at timestamptz not null default clock_timestamp()
);

-- The AWS account and region the disks live in. While another one answers, no volume, snapshot or instance is gone.
create table expiry.aws_account (
    singleton     boolean primary key default true check (singleton),
    account_id    text        not null,
    region        text        not null,
    first_seen_at timestamptz not null default clock_timestamp()
);

-- Work that a sweep decided and a delivery carries out. Due until done; a row under lease is being worked on.
create table expiry.follow_ups (
    kind             text        not null check (kind in
        ('warning', 'notice', 'cleanup', 'snapshot.sync', 'snapshot.purge', 'availability.update')),
    key              text        not null,        -- what makes it one: (reservation, deadline, level), snapshot, …
    reservation_id   text,
    subject          text        not null,        -- the event's subject: reservation, snapshot or disk
    detail           jsonb       not null default '{}',
    state            text        not null default 'due' check (state in ('due', 'done')),
    outcome          text,                        -- one word once done: sent, passed_over, settled, superseded, …
    version          integer     not null default 1, -- raised when asked for again: finishing an older one leaves it due
    due_at           timestamptz not null default clock_timestamp(),
    dispatch         integer     not null default 0, -- how often an event was sent for it
    ask_again_at     timestamptz not null default '-infinity',
    attempts         integer     not null default 0, -- failures since the last success
    last_error       text,
    lease_token      uuid,
    lease_expires_at timestamptz,
    traceparent      text,                        -- of who asked for it
    created_at       timestamptz not null default clock_timestamp(),
    updated_at       timestamptz not null default clock_timestamp(),
    finished_at      timestamptz,
    primary key (kind, key)
);
create index follow_ups_due on expiry.follow_ups (due_at) where state = 'due';
create index follow_ups_done on expiry.follow_ups (finished_at) where state = 'done';
create index follow_ups_of_reservation on expiry.follow_ups (reservation_id, kind);

-- Pods seen serving a live reservation: the UID by which they are known when the reservation has ended.
create table expiry.pods (
    uid            text primary key,
    reservation_id text        not null,
    namespace      text        not null,
    name           text        not null,
    instance_id    text,                          -- of spot servers: what to ask EC2 about once pod and node are gone
    created_at     timestamptz not null,
    first_seen_at  timestamptz not null default clock_timestamp()
);
create index pods_of_reservation on expiry.pods (reservation_id);
create index pods_oldest on expiry.pods (first_seen_at);

-- Active reservations whose pod a direct GET did not find. Deleted as soon as the pod is seen again.
create table expiry.missing_pods (
    reservation_id text primary key,
    first_seen_at  timestamptz not null,
    last_seen_at   timestamptz not null
);

create table expiry.oom_kills (
    reservation_id text        not null,
    container_id   text        not null,
    finished_at    timestamptz not null,
    container      text        not null,
    recorded_at    timestamptz not null default clock_timestamp(),
    primary key (reservation_id, container_id, finished_at)
);

-- One row for each reservation that ended: what stood behind it and how far its cleanup is.
create table expiry.cleanups (
    reservation_id      text primary key,
    requested_at        timestamptz not null default clock_timestamp(),
    reason              text        not null,
    user_id             text,
    namespace           text,
    pod_name            text,
    pod_uid             text,
    node_name           text,
    instance_id         text,
    claim_name          text,
    claim_uid           text,
    pv_name             text,
    pv_uid              text,
    volume_id           text,
    disk_name           text,
    disk_size           text,                     -- as `du` says it, "1.2G"
    content_key         text,                     -- s3://…, the listing
    pod_gone_at         timestamptz,
    containers_terminated_at timestamptz,         -- the kubelet was seen to report all of them terminated
    detach_requested_at timestamptz,
    detach_forced_at    timestamptz,
    writer_gone_at      timestamptz,              -- the volume was seen available with no attachment
    disk_released_at    timestamptz,              -- the lock is gone; PersistentVolume and claim may still be there
    settled_at          timestamptz,
    outcome             text check (outcome in ('released', 'nothing_to_keep', 'superseded', 'lost'))
);
create index cleanups_unsettled on expiry.cleanups (requested_at) where settled_at is null;

create table expiry.cleanup_steps (
    reservation_id text        not null references expiry.cleanups on delete cascade,
    step           text        not null,
    started_at     timestamptz not null default clock_timestamp(),
    finished_at    timestamptz,
    outcome        text,                          -- done, already_gone, not_ours, missing, skipped, …
    detail         text,
    attempts       integer     not null default 0, -- failures, kept once it is finished
    last_error     text,
    primary key (reservation_id, step)
);

-- Snapshots of ours: those this service makes (intent first, id when EC2 has answered) and those it adopts.
create table expiry.snapshots (
    intent_id         uuid primary key,           -- a tag on the snapshot: found by it after an answer was lost
    snapshot_id       text unique,
    reservation_id    text,                       -- null: adopted, made by the platform or an earlier version
    user_id           text        not null,
    disk_name         text        not null,
    volume_id         text,
    attempt           integer     not null default 1,
    state             text        not null default 'intended'
        check (state in ('intended', 'pending', 'completed', 'error', 'abandoned', 'purged')),
    crash_consistent  boolean     not null default false,
    looks             integer     not null default 0, -- in vain, for what an unanswered request may have made
    detail            text,                       -- why it failed or was abandoned
    disk_size         text,
    content_key       text,
    intended_at       timestamptz not null default clock_timestamp(),
    started_at        timestamptz,                -- by EC2's clock
    settled_at        timestamptz,                -- when the state was last flipped
    volume_aside_at   timestamptz,                -- it stays for a while, but is not the disk's any more
    volume_deleted_at timestamptz
);
create index snapshots_of_disk on expiry.snapshots (user_id, disk_name);
create index snapshots_of_reservation on expiry.snapshots (reservation_id);
create unique index snapshots_attempts on expiry.snapshots (reservation_id, attempt);
create unique index snapshots_one_intent on expiry.snapshots (reservation_id) where state = 'intended';
create index snapshots_open on expiry.snapshots (state) where state in ('intended', 'pending');

-- Facts for others, written in the transaction that made them true.
create table expiry.facts (
    fact_id          uuid primary key,
    type             text        not null,
    subject          text        not null,
    sequence         bigint      not null,
    data             jsonb       not null,
    traceparent      text,
    occurred_at      timestamptz not null default clock_timestamp(),
    published_at     timestamptz,
    attempts         integer     not null default 0,
    last_error       text,
    try_again_at     timestamptz not null default '-infinity',
    lease_token      uuid,
    lease_expires_at timestamptz,
    unique (subject, sequence)
);
create index facts_oldest on expiry.facts (occurred_at);
create index facts_unpublished on expiry.facts (occurred_at) where published_at is null;

create table expiry.fact_sequences (
    subject text primary key,
    last    bigint not null
);

-- How far the trace of a reservation is written: spans that outlast every process are made from the rows when they
-- are over, each once.
create table expiry.traces (
    reservation_id   text primary key,
    stage            integer     not null default 0,    -- of its life, up to which all is written: see lifecycle.go
    written          text[]      not null default '{}', -- spans that the collector has acknowledged
    doubtful         boolean     not null default false, -- more may have arrived: somebody died, or got no answer
    lease_token      uuid,
    lease_expires_at timestamptz,                       -- without a token: not to be touched before
    updated_at       timestamptz not null default clock_timestamp()
);

-- What the broker gave up on. The same event given up on again is the same row; two events under one id, which a person
-- may send, are two.
create table expiry.dead_letters (
    dead_letter_id bigint generated always as identity primary key,
    received_at    timestamptz not null default clock_timestamp(), -- the last time
    arrivals       integer     not null default 1,
    event_id       text        not null,
    event_type     text        not null,
    event_source   text        not null,
    event_subject  text,
    event          text        not null,          -- structured mode; text, since jsonb refuses some valid JSON
    error_code     text,
    error_data     text,
    error_dest     text,
    replays        integer     not null default 0,
    replayed_at    timestamptz
);
-- Hashed, since an index entry has a size limit and a sender's id has none.
create unique index dead_letters_of_event on expiry.dead_letters (md5(event_source), md5(event_id), md5(event));

-- +goose Down
drop schema expiry cascade;
