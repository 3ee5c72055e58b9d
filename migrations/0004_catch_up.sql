-- Reading WorkOS in order: how far catch-up has come, how far walks over the list of users have, and which process does it.
set local lock_timeout = '5s';

-- Catch-up's place in the Events API. Only a transaction that applied a page moves it, and only from the revision it read
-- it at: a process that lost its lease without noticing loses here.
create table workos.catch_up (
    singleton         boolean primary key default true,
    revision          bigint not null default 1,
    -- The last event of the last page applied, and when WorkOS made it; null until there was one.
    cursor            text collate "C",
    cursor_created_at timestamptz,
    -- Where reading begins while there is no cursor, and when, by WorkOS's clock, that was last decided.
    range_start       timestamptz not null,
    began_at          timestamptz not null,
    -- Everything WorkOS had done by then is in the table. Null until the end was reached once; never goes back.
    synced_through    timestamptz,
    -- Events may be lost for good: a full reconcile has to make up for them.
    reconcile_wanted  boolean not null default false,
    constraint catch_up_singleton check (singleton)
);

-- Walks over WorkOS's list of users. A backfill's position is moved by the transaction that applied its page, so that an
-- interrupted one goes on where it was; a reconcile starts over.
create table workos.walks (
    kind                text primary key,
    -- The last user of the last page applied; null at the beginning.
    position            text collate "C",
    position_created_at timestamptz,
    -- Null while none is under way.
    started_at          timestamptz,
    -- When one last came to its end; null until one has.
    completed_at        timestamptz,
    -- What the one under way, or else the last one, has found.
    created             bigint not null default 0,
    updated             bigint not null default 0,
    unchanged           bigint not null default 0,
    deleted             bigint not null default 0,
    quarantined         bigint not null default 0,
    constraint walks_kind check (kind in ('backfill', 'reconcile'))
);

-- One row per background job: who does it, and until when without another word. The database's clock decides.
create table workos.leases (
    job        text primary key,
    holder     text not null,
    expires_at timestamptz not null
);

alter table workos.environment
    -- The operator's word that deletions beyond the bound are meant; the next complete reconcile uses it up.
    add column deletions_accepted boolean not null default false,
    -- The release that last tried the quarantine again: another one may know more.
    add column retried_by text;
