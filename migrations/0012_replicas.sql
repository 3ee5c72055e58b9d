-- The processes that serve this database, so that an operator sees their releases in one place.
set local lock_timeout = '2s';

-- One row for each process. It writes its row every 30 seconds, and deletes it when it stops. A process that was killed leaves its
-- row behind; the other processes delete it after 10 minutes. No index beside the key: the table has a handful of rows, and a write
-- of seen_at then writes to no index.
create table workos.replicas (
    -- The name of the process in workos.leases: random, new at each start.
    holder     text collate "C" primary key,
    -- The release of the process.
    version    text not null,
    -- When the process started, by its own clock.
    started_at timestamptz not null,
    -- When the process last wrote this row, by this database's clock.
    seen_at    timestamptz not null default now()
)
with (fillfactor = 50);

comment on table workos.replicas is 'The processes that serve this database, with their release; written every 30 seconds';
