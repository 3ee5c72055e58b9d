-- Reads can be sent to a standby. The service must know which changes a standby has replayed, and how old they are.
set local lock_timeout = '2s';

-- One row: the mark. About once a second, one of the processes that use a standby writes it on the primary. Replication keeps the
-- order of commits, so a standby that shows a mark has replayed every change up to its horizon. If no process uses a standby, it is
-- never written. This is a separate table, because each read of the feed would have to skip the outdated versions of its row.
create table workos.feed_mark (
    singleton      boolean primary key default true,
    -- Increases by one with each mark.
    number         bigint not null default 0,
    -- The epoch of the feed. A server that was promoted begins a new one, so an old primary never shows a mark of the new epoch.
    epoch          text not null default '',
    -- Every change up to this position was committed before the mark was written.
    horizon        bigint not null default 0,
    -- The users table was complete up to this time before the mark was written.
    synced_through timestamptz,
    -- When it was written, by this database's clock.
    written_at     timestamptz not null default '-infinity',
    constraint feed_mark_singleton check (singleton)
)
with (fillfactor = 50);

insert into workos.feed_mark default values;

comment on table workos.feed_mark is 'Which changes a standby has replayed; written about once a second if reads use a standby';
