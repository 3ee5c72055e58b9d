-- Reads can be sent to a standby. The service must know which changes a standby has replayed, and how old they are.
set local lock_timeout = '2s';

-- One row: the mark. About once a second, one of the processes that read from a standby writes it on the primary. Replication keeps
-- the order of commits, so a standby that has replayed a mark has every change up to its horizon. If no process reads from a
-- standby, it is never written. The mark is not in workos.feed, because each update leaves an outdated version of the row, and every
-- read of the feed would have to skip these versions.
create table workos.feed_mark (
    singleton      boolean primary key default true,
    -- Increases by one with each mark.
    number         bigint not null default 0,
    -- The epoch of the feed. A server that was promoted begins a new one, so an old primary never has a mark of the new epoch.
    epoch          text not null default '',
    -- Every change up to this position was committed before the mark was written.
    horizon        bigint not null default 0,
    -- The users table was complete up to this time before the mark was written.
    synced_through timestamptz,
    -- The first backfills that were complete before the mark was written, by their kind in workos.scans.
    backfilled     text[] not null default '{}',
    -- When the mark was written, by the clock of the primary.
    written_at     timestamptz not null default 'epoch',
    constraint feed_mark_singleton check (singleton)
)
with (fillfactor = 50);

insert into workos.feed_mark default values;

comment on table workos.feed_mark is 'The mark that shows which changes a standby has replayed; written about once a second if a process reads from a standby';
