-- The change feed, and the handlers that react to it. A change is written in the transaction that made it.
set local lock_timeout = '5s';

-- Numbers the changes. The numbers increase and have gaps.
create sequence workos.changes_position as bigint;

-- One row for each committed difference in a user, and for each event of any other type. It contains no personal data: readers
-- of the feed get the current state of the user with the change.
create table workos.changes (
    position   bigint primary key,
    -- `created`, `updated` or `deleted`. For an event that changes no user: its type, as in event_type.
    kind       text not null,
    -- The user of the change; null if it is about no user.
    user_id    text collate "C",
    -- The names of the fields that an update changed.
    changed    jsonb not null,
    -- The event that caused the change; null if a snapshot did.
    event_id   text collate "C",
    event_type text,
    -- How the observation arrived: webhook, catch_up, backfill, reconcile or read_through.
    origin     text not null,
    at         timestamptz not null default now()
);

-- A handler that starts with every live user reads which users were created after its start.
create index changes_user_id on workos.changes (user_id, position) where user_id is not null;

-- The validity of feed positions. A position belongs to an epoch. When the database is not the one that issued the position, a
-- new epoch begins, and positions of the old epoch are invalid.
create table workos.feed (
    singleton       boolean primary key default true,
    epoch           text not null,
    -- The server, its timeline, the database and the table of the epoch.
    identity        text not null,
    -- Changes up to this position have expired.
    expired_through bigint not null default 0,
    constraint feed_singleton check (singleton)
);

-- Returns the identity of this database. It differs after the restore of a dump, in a copy of the database and after the promotion
-- of a replica. Parts that a managed server does not reveal are omitted. It runs as its owner, so that every login gets the same
-- answer.
create function workos.feed_identity() returns text
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
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

-- Returns how far the feed can be read: every change up to `horizon` is committed and visible to the next statement, and no other
-- change will appear there.
--
-- A writer takes a shared advisory lock before it draws positions. The second number of the lock is the last position that was
-- drawn before, so that all positions of the writer are greater. A reader waits for no lock. Only our own writers take this lock: other
-- transactions, however long, do not delay the feed.
--
-- The function writes nothing, because lookups run in read-only transactions. The epoch is null when this database did not issue
-- it; then the service writes a new one.
create function workos.feed_head(out epoch text, out horizon bigint, out issued bigint, out expired_through bigint)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    own       constant text := workos.feed_identity();
    drawn     bigint;
    in_flight bigint[];
begin
    -- Each statement of a volatile function sees what was committed before it.
    select case when feed.identity operator(pg_catalog.=) own then feed.epoch end, feed.expired_through
    into epoch, expired_through
    from workos.feed;
    -- The order matters: first the last drawn position, then the open transactions, then the position that their numbers are
    -- relative to.
    select case when is_called then last_value else 0 end into drawn from workos.changes_position;
    select pg_catalog.array_agg(objid::pg_catalog.int8) into in_flight
    from pg_catalog.pg_locks
    where
        locktype operator(pg_catalog.=) 'advisory'
        and database operator(pg_catalog.=) (
            select oid from pg_catalog.pg_database
            where datname operator(pg_catalog.=) pg_catalog.current_database()
        )
        and classid::pg_catalog.int8 operator(pg_catalog.=) 1717921124::pg_catalog.int8
        and objsubid operator(pg_catalog.=) 2::pg_catalog.int2;
    select case when is_called then last_value else 0 end into issued from workos.changes_position;
    -- The number of a lock is the lowest 31 bits of a position a little below `issued`.
    select least(drawn, pg_catalog.min(issued - ((issued - number) & 2147483647::pg_catalog.int8))) into horizon
    from pg_catalog.unnest(in_flight) as number;
    -- After a crash, the position of a writer that rolled back may be drawn again. The position of a commit never is.
    select least(horizon, greatest(pg_catalog.max(position), expired_through)) into horizon from workos.changes;
end
$$;

revoke all on function workos.feed_identity() from public;
revoke all on function workos.feed_head() from public;

-- Handlers and their progress.
create table workos.handlers (
    name                  text collate "C" primary key,
    -- The types of changes that it handles, as `user.created`, `user.*` or `*`.
    types                 text[] not null,
    -- For a SQL handler: its function, the role that runs it, and its time limit. Null for a Rust handler, which only the process
    -- that registered it knows.
    function              text,
    role                  text,
    timeout_ms            integer,
    paused                boolean not null default false,
    -- Every change up to this position is done or in the backlog. Only the transaction of a change moves it.
    position              bigint not null,
    -- The position at which the handler started.
    start_position        bigint not null,
    -- While the handler receives every live user first: the last user that it received, in order of user IDs ('' before the first
    -- one). Null when the handler reads the feed.
    initial_users_through text collate "C",
    -- Why the whole handler is blocked. Null if it is not.
    problem               text,
    created_at            timestamptz not null default now(),
    constraint handlers_sql check (num_nulls(function, role, timeout_ms) in (0, 3))
);

-- Changes that a handler processes outside the order of the feed: changes that failed, until they succeed or are dead-lettered,
-- and later changes of the same user.
create table workos.handler_backlog (
    handler         text collate "C" not null references workos.handlers on delete cascade,
    position        bigint not null,
    -- Empty if the change is about no user.
    user_id         text collate "C" not null,
    -- The entry is a live user at the start of the handler, not a row of the feed.
    from_start      boolean not null,
    -- The number of attempts. 0: it waits for an earlier change of the same user.
    attempts        integer not null,
    -- When the next attempt is due. Null when the change is dead-lettered.
    due_at          timestamptz,
    -- The last failure. The message may contain personal data; the deletion of the user erases it.
    failed_at       timestamptz,
    sqlstate        text,
    constraint_name text,
    -- The function and the line in it.
    location        text,
    message         text,
    primary key (handler, position, user_id)
);

-- Due entries; waiting entries of a user, in order; and messages to erase.
create index handler_backlog_due on workos.handler_backlog (handler, due_at, position) where due_at is not null;
create index handler_backlog_waiting on workos.handler_backlog (handler, user_id, position) where due_at is not null;
create index handler_backlog_messages on workos.handler_backlog (user_id) where message is not null;

-- Calls a handler's function as its role, with the search_path that a new session of that role in this database starts with:
-- `alter role … in database`, `alter role`, `alter database`, else PostgreSQL's default. The service's own path does not apply there,
-- and the function's path does not apply to the service's statements. Deferred constraints are checked under the role, so that
-- their triggers run under it too.
--
-- A function can reset the role itself. This prevents mistakes and does not contain hostile code.
create function workos.run_handler(function text, role text, change jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    own  constant text := current_setting('role');
    call text;
    path text;
begin
    select format('select %I.%I($1)', nspname, proname) into strict call
    from pg_proc
    join pg_namespace on pg_namespace.oid = pronamespace
    where pg_proc.oid = function::regprocedure;
    select substr(setting, length('search_path=') + 1) into path
    from pg_db_role_setting
    cross join unnest(setconfig) as setting
    where
        starts_with(lower(setting), 'search_path=')
        and setrole in (0, to_regrole(quote_ident(role)))
        and setdatabase in (0, (select oid from pg_database where datname = current_database()))
    order by setrole <> 0 desc, setdatabase <> 0 desc
    limit 1;
    perform set_config('role', role, true);
    perform set_config('search_path', coalesce(path, '"$user", public'), true);
    execute call using change;
    set constraints all immediate;
    -- The path that the handler's function set is still in effect here.
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    perform set_config('role', own, true);
end
$$;

revoke all on function workos.run_handler(text, text, jsonb) from public;

comment on table workos.changes is 'Ordered feed of changes to WorkOS users, without personal data; GET /changes returns it';
comment on table workos.handlers is 'Handlers of changes and their progress';
comment on table workos.handler_backlog is 'Changes that failed in a handler: waiting for a retry, or dead-lettered (due_at is null)';
