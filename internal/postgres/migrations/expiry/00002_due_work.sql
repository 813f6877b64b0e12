-- What an autoscaler asks: is there anything to be awake for? One row.

-- +goose Up
create view expiry.due_work as
select follow_ups + leased + sweep as work, follow_ups, leased, sweep
from (
    select
        -- due, and not asked for a moment ago: as a dispatcher would pick them
        (select count(*) from expiry.follow_ups
         where state = 'due' and greatest(due_at, ask_again_at, lease_expires_at) <= clock_timestamp()) as follow_ups,
        -- under way: nobody may be scaled away under it
        (select count(*) from expiry.follow_ups where state = 'due' and lease_expires_at > clock_timestamp())
        + (select count(*) from expiry.facts where published_at is null and lease_expires_at > clock_timestamp())
        + (select count(*) from expiry.traces where lease_token is not null and lease_expires_at > clock_timestamp())
        + (select count(*) from expiry.sweep_lease where expires_at > clock_timestamp()) as leased,
        -- 1 where the next sweep is due, five minutes after the last began; while paused only if it finds something begun
        (select count(*) from expiry.sweep_lease
         where expires_at <= clock_timestamp()
           and not exists (select from expiry.sweeps where started_at > clock_timestamp() - interval '5 minutes')
           and (not exists (select from expiry.pause where until is null or until > clock_timestamp())
                or exists (select from expiry.cleanups where settled_at is null)
                or exists (select from expiry.snapshots where state in ('intended', 'pending')))) as sweep
) counted;

-- +goose Down
drop view expiry.due_work;
