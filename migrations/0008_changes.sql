-- The change feed: what downstream code reacts to. A change is written in the transaction that made it.
set local lock_timeout = '5s';

-- Numbers the changes. They increase, with gaps.
create sequence workos.changes_position as bigint;

-- One row per committed difference in a user, and one per event of any other type. It holds no personal data: whoever
-- delivers a change adds the user as it stands then.
create table workos.changes (
    position   bigint primary key,
    -- `created`, `updated` or `deleted`; of an event that changes no user, its type, as in event_type.
    kind       text not null,
    -- The user it is about, null where it is about none.
    user_id    text collate "C",
    -- The names of the fields that an update changed.
    changed    jsonb not null,
    -- The event that brought it, null where a snapshot did.
    event_id   text collate "C",
    event_type text,
    -- How it reached us.
    origin     text not null,
    at         timestamptz not null default now()
);

-- A handler that starts with every live user asks who was created behind its start.
create index changes_user_id on workos.changes (user_id, position) where user_id is not null;

-- What a position is worth. Positions that were handed out are void when the database is not the one that handed them out:
-- then the epoch is another.
create table workos.feed (
    singleton       boolean primary key default true,
    epoch           text not null,
    -- The server, its timeline, the database and the table that the epoch belongs to.
    identity        text not null,
    -- Changes up to here are no longer kept.
    expired_through bigint not null default 0,
    constraint feed_singleton check (singleton)
);

-- A restored dump, a copied database and a promoted replica each answer something else. What a managed server does not
-- tell is left out; it is asked as the owner, so that every login hears the same.
create function workos.feed_identity() returns text
    language plpgsql security definer
    set search_path = ''
as $$
declare
    server   text := '';
    timeline text := '';
begin
    begin
        select system_identifier::pg_catalog.text into server from pg_catalog.pg_control_system();
    exception when others then
        null;
    end;
    begin
        timeline := pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8);
    exception when others then
        null;
    end;
    return pg_catalog.concat_ws(
        '/',
        server,
        timeline,
        (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()),
        'workos.changes'::pg_catalog.regclass::pg_catalog.oid
    );
end
$$;

insert into workos.feed (epoch, identity)
values (left(gen_random_uuid()::text, 8), workos.feed_identity());

-- How far the feed can be read: every change up to `horizon` is committed and visible to whatever is asked next, and none
-- will ever appear there.
--
-- A writer takes a shared advisory lock before it draws positions; the lock's second number is the last position drawn by
-- then, so that all of its own are greater. Reading waits for no lock, and only our writers take this one: a transaction of
-- anybody else, however long, holds up nothing.
create function workos.feed_head(out epoch text, out horizon bigint, out issued bigint, out expired_through bigint)
    language plpgsql
    set search_path = ''
as $$
declare
    own       constant text := workos.feed_identity();
    drawn     bigint;
    in_flight bigint[];
begin
    -- Each statement of a volatile function sees what was committed before it.
    select feed.epoch, feed.expired_through into epoch, expired_through from workos.feed where feed.identity = own;
    if not found then
        update workos.feed
        set epoch = pg_catalog.left(pg_catalog.gen_random_uuid()::pg_catalog.text, 8), identity = own
        where feed.identity <> own;
        select feed.epoch, feed.expired_through into epoch, expired_through from workos.feed;
    end if;
    -- The order is what makes it right: first what was drawn, then who is at it, last what their numbers are relative to.
    select case when is_called then last_value else 0 end into drawn from workos.changes_position;
    select pg_catalog.array_agg(objid::pg_catalog.int8) into in_flight
    from pg_catalog.pg_locks
    where
        locktype = 'advisory'
        and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
        and classid = 1717921124
        and objsubid = 2;
    select case when is_called then last_value else 0 end into issued from workos.changes_position;
    -- Numbers of locks are 31 bits of a position that lies a little behind `issued`.
    select least(drawn, min(issued - ((issued - number) & 2147483647))) into horizon
    from pg_catalog.unnest(in_flight) as number;
    -- A position whose writer gave up may be drawn again after a crash. What a commit has made durable never is.
    select least(horizon, greatest(max(position), expired_through)) into horizon from workos.changes;
end
$$;

revoke all on function workos.feed_identity() from public;
revoke all on function workos.feed_head() from public;

comment on table workos.changes is 'What happened to WorkOS users, in order, without personal data; read it by GET /changes';
