-- The state of synchronization: the WorkOS environment of this database, the releases that can read it, the progress of
-- catch-up and of scans, and the process that runs each background job.
set local lock_timeout = '5s';

-- One database serves one WorkOS environment. The first start records its client ID. Another client ID is refused, because the
-- users of one environment would look like mass deletion to the other one.
create table workos.environment (
    singleton             boolean primary key default true,
    client_id             text not null,
    recorded_at           timestamptz not null default now(),
    -- The operator has permitted deletions beyond the limit. The next complete reconcile resets this.
    deletions_accepted    boolean not null default false,
    -- The release that last retried the quarantine. Another release may be able to apply more.
    quarantine_retried_by text,
    constraint environment_singleton check (singleton)
);

-- The oldest schema version that a release must know to read this database. Only a contract migration, which removes what
-- older releases read, raises it. Until then older releases continue to work beside newer ones.
create table workos.contract (
    singleton boolean primary key default true,
    version   bigint not null,
    constraint contract_singleton check (singleton)
);

insert into workos.contract (version) values (1);

-- Every write calls this function. It raises 25006 on a server that is read-only (after a failover: the old primary), AK001
-- (message: the recorded client ID, detail: the given one) when the database belongs to another client ID, and AK002 when it
-- belongs to none yet. A write holds the table lock until it ends, and `rebind` takes a conflicting one, so that no write of the
-- old client ID commits after it. It is a table lock, because any login that may connect to this database can hold an advisory
-- lock for ever. An operator's command that works for any client ID gives an empty text.
create function workos.check_client(given text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    recorded text;
begin
    if pg_catalog.pg_is_in_recovery() or pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' then
        raise exception using errcode = '25006', message = 'the server is read-only';
    end if;
    if given operator(pg_catalog.=) '' then
        return;
    end if;
    lock table workos.environment in row share mode;
    select environment.client_id into recorded from workos.environment;
    if recorded is null then
        raise exception using errcode = 'AK002', message = 'the database is bound to no client ID yet';
    elsif recorded operator(pg_catalog.<>) given then
        raise exception using errcode = 'AK001', message = recorded, detail = given;
    end if;
end
$$;

revoke all on function workos.check_client(text) from public;

-- The position of catch-up in the Events API. Only a transaction that applied a page moves it, and only from the revision that
-- the process read: a process that lost its lease without noticing fails here.
create table workos.catch_up (
    singleton            boolean primary key default true,
    revision             bigint not null default 1,
    -- The last event of the last applied page, and WorkOS's time of it. Null until there was one.
    cursor               text collate "C",
    cursor_created_at    timestamptz,
    -- Where reading begins while there is no cursor, and when that was last decided, by WorkOS's clock.
    range_start          timestamptz not null,
    range_decided_at     timestamptz not null,
    -- The earliest range_start of this row. Catch-up applies no event from before it: such an event could revive a user whose
    -- deletion was never received.
    earliest_range_start timestamptz not null,
    -- The table contains everything that happened at WorkOS until this instant. Null until the end of the events was reached
    -- once.
    synced_through       timestamptz,
    -- Events may be lost: a full reconcile is required.
    needs_reconcile      boolean not null default false,
    constraint catch_up_singleton check (singleton)
);

-- Scans of WorkOS's list of users: one row for each kind. The transaction that applied a page moves the position of a backfill, so
-- that an interrupted backfill continues there. A reconcile starts at the first page.
create table workos.scans (
    kind                text primary key,
    -- The last user of the last applied page. Null at the beginning.
    position            text collate "C",
    position_created_at timestamptz,
    -- When the current scan began, by WorkOS's clock and by this database's clock. started_at is null while none is running.
    started_at          timestamptz,
    database_started_at timestamptz,
    -- When a scan of this kind was last completed. Null until then.
    completed_at        timestamptz,
    -- What the current scan has found, or the last one if none is running.
    created             bigint not null default 0,
    updated             bigint not null default 0,
    unchanged           bigint not null default 0,
    deleted             bigint not null default 0,
    quarantined         bigint not null default 0,
    -- A complete reconcile has confirmed every live row whose version was last written before confirmed_before (this database's
    -- clock): the row shows WorkOS's state at confirmed_at (WorkOS's clock). So a scan writes only rows that differ.
    confirmed_at        timestamptz,
    confirmed_before    timestamptz,
    constraint scans_kind check (kind in ('backfill', 'reconcile'))
);

-- One row for each background job: the process that runs it, and until when. The database's clock decides.
create table workos.leases (
    job          text primary key,
    holder       text not null,
    expires_at   timestamptz not null,
    -- The job sends no request to WorkOS before this instant, in any process, because WorkOS asked for a pause (`Retry-After`).
    -- Null if there is no pause.
    paused_until timestamptz
);

comment on table workos.scans is 'Progress and result of the last backfill and the last reconcile';
comment on table workos.catch_up is 'The position of catch-up in the Events API';
comment on table workos.leases is 'The process that runs each background job';
