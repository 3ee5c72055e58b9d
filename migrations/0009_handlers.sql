-- What reacts to changes: handlers, how far each has come, and what each has yet to do again.
set local lock_timeout = '5s';

create table workos.handlers (
    name        text collate "C" primary key,
    -- The types it takes, as `user.created`, `user.*` or `*`.
    types       text[] not null,
    -- A handler in SQL: its function, the role it runs as and how long it may take. A handler in Rust has none of these; the
    -- process that has it knows.
    function    text,
    role        text,
    timeout_ms  integer,
    paused      boolean not null default false,
    -- Every change up to here is done, or stands in the backlog. Only the transaction of a change moves it.
    position    bigint not null,
    -- Where it started.
    started_at  bigint not null,
    -- While it is told of every live user first: the last one told of, in id order.
    walked      text collate "C",
    -- Why it stands still as a whole.
    trouble     text,
    created_at  timestamptz not null default now(),
    constraint handlers_sql check (num_nulls(function, role, timeout_ms) in (0, 3))
);

-- Changes that a handler takes out of the feed's order: those that failed, until they succeed or are set aside, and those
-- of the same user behind them.
create table workos.handler_backlog (
    handler         text collate "C" not null references workos.handlers on delete cascade,
    position        bigint not null,
    -- Empty where the change is about no user.
    user_id         text collate "C" not null,
    -- It stands for a live user at the handler's start, not for a row of the feed.
    from_start      boolean not null,
    -- How often it was tried; 0 is behind another of its user.
    tries           integer not null,
    -- When it is tried next; null once it is set aside.
    due_at          timestamptz,
    -- The last failure. The message may hold personal data, and goes when the user is deleted.
    failed_at       timestamptz,
    sqlstate        text,
    constraint_name text,
    place           text,
    message         text,
    primary key (handler, position, user_id)
);

-- What is due; who waits, in order; and what holds a deleted user's data.
create index handler_backlog_due on workos.handler_backlog (handler, due_at, position) where due_at is not null;
create index handler_backlog_waiting on workos.handler_backlog (handler, user_id, position) where due_at is not null;
create index handler_backlog_messages on workos.handler_backlog (user_id) where message is not null;

-- Calls a handler's function as its role. Deferred constraints are checked before the role is given back, so that their
-- triggers run under it too. A function may give back the role itself: this keeps mistakes apart, not hostile code.
create function workos.run_handler(function text, role text, change jsonb) returns void
    language plpgsql
as $$
declare
    callee constant regprocedure := function::regprocedure;
    own    constant text := current_setting('role');
begin
    perform set_config('role', role, true);
    execute format('select %s($1)', callee::regproc) using change;
    set constraints all immediate;
    perform set_config('role', own, true);
end
$$;

revoke all on function workos.run_handler(text, text, jsonb) from public;

comment on table workos.handlers is 'What reacts to changes, and how far each handler has come';
comment on table workos.handler_backlog is 'Changes that failed in a handler: waiting for another try, or set aside (due_at null)';
