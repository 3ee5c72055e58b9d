-- Users: the rows that WorkOS describes, the view of live users, and the functions that read one user.
--
-- Every object is in the schema `workos`, so that it can share a database with the application it serves. The command
-- `authkit-sync migrate` creates the schema before it runs this file, because a role that owns an existing schema may not be
-- allowed to create one.
set local lock_timeout = '5s';

-- One row for each user that was ever seen: a live user or a tombstone. Foreign keys of applications reference this table, so
-- that a deletion at WorkOS never breaks one. Inside a transaction, a row with only an ID is a placeholder to lock.
create table workos.user_records (
    -- WorkOS's user ID: opaque text. It is compared bytewise, so that order and uniqueness do not depend on the locale.
    id                    text collate "C" primary key,
    -- WorkOS's fields under WorkOS's names. Only the ID is unique: WorkOS may give an e-mail address or an external ID to another
    -- user, and the two updates may arrive in either order.
    email                 text,
    email_verified        boolean,
    first_name            text,
    last_name             text,
    name                  text,
    profile_picture_url   text,
    external_id           text collate "C",
    metadata              jsonb,
    last_sign_in_at       timestamptz,
    locale                text,
    created_at            timestamptz,
    updated_at            timestamptz,
    -- All other fields that WorkOS sent, so that a new field is not lost.
    synced_extra          jsonb,
    -- Together with updated_at: the version of the observation that this row shows.
    synced_observed_at    timestamptz,
    synced_observation_id text collate "C",
    -- When this row last changed in this database.
    synced_at             timestamptz,
    -- A tombstone has only these two columns and the ID. Everything else is null (erased).
    synced_deleted        boolean not null default false,
    synced_deleted_at     timestamptz,
    -- When the version was last written, by this database's clock. Null in a tombstone.
    synced_version_at     timestamptz,
    constraint user_records_live_or_tombstone check (
        case
            when synced_deleted or email is null then
                num_nonnulls(
                    email, email_verified, first_name, last_name, name, profile_picture_url, external_id, metadata,
                    last_sign_in_at, locale, created_at, updated_at, synced_extra, synced_observed_at,
                    synced_observation_id, synced_at
                ) = 0
                and (synced_deleted or synced_deleted_at is null)
            else
                num_nulls(
                    email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at
                ) = 0
                and synced_deleted_at is null
        end
    )
)
-- Room in each page for the next version of a row, so that an update of columns without an index writes to no index.
with (fillfactor = 85);

-- Lookups by the application's own ID and by e-mail address (case-insensitive).
create index user_records_external_id on workos.user_records (external_id) where external_id is not null;
create index user_records_email on workos.user_records (lower(email collate "C")) where email is not null;

-- Live users only, so that a query without a condition returns no deleted user. Columns are only ever appended.
create view workos.users as
select
    id,
    email,
    email_verified,
    first_name,
    last_name,
    name,
    profile_picture_url,
    external_id,
    metadata,
    last_sign_in_at,
    locale,
    created_at,
    updated_at,
    synced_extra,
    synced_at
from workos.user_records
where not synced_deleted;

-- Returns the user behind a verified token's `sub`. The body is text, so that columns appended to the view are returned.
--
-- The search_path of functions: an unqualified name (a function, an operator, a type) is resolved by search_path. Somebody who
-- may create objects in a schema of that path can add a better match, whose code then runs as the caller of our function. So
-- every function here sets its own search_path to `pg_catalog, pg_temp`. It names pg_temp last: PostgreSQL searches an empty
-- path's temporary schema first for types, where anybody may create a domain `jsonb` whose check runs their code.
--
-- A function with a setting is never inlined, and a query that joins this one needs the index behind the view. So this function
-- qualifies its only operator instead.
create function workos.get_auth_user(subject text) returns setof workos.users
    language sql stable parallel safe rows 1
as $$
    select * from workos.users where id operator(pg_catalog.=) subject
$$;

-- Returns the token's `sub`, for row-level security as PostgREST and Supabase set it up: the claims of a verified access token
-- are in the setting `request.jwt.claims`. It reads no table. A setting that is empty, malformed or without a text `sub` returns
-- null. PostgreSQL 15 cannot test whether text is JSON without an attempt, and an attempt is a subtransaction, so this function
-- is not parallel safe. Write `(select workos.current_subject())` in a policy: PostgreSQL evaluates that once for a statement.
create function workos.current_subject() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    claims jsonb;
begin
    claims := nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb;
    if pg_catalog.jsonb_typeof(claims -> 'sub') = 'string' then
        return nullif(claims ->> 'sub', '');
    end if;
    return null;
exception
    -- Classes 22 and 54: not JSON, a character that PostgreSQL does not store, nested too deeply.
    when data_exception or program_limit_exceeded then
        return null;
end
$$;

-- Returns the caller's own row and no other: it has no argument. It reads as its owner, so that a caller needs no right on a
-- table.
create function workos.current_auth_user() returns setof workos.users
    language sql stable security definer rows 1
    set search_path = pg_catalog, pg_temp
as $$
    select * from workos.users where id = (select workos.current_subject())
$$;

-- By default everybody may call a function.
revoke all on function workos.get_auth_user(text) from public;
revoke all on function workos.current_subject() from public;
revoke all on function workos.current_auth_user() from public;

-- The latest sign-in of each user, from `session.created` events, if AUTHKIT_SYNC_SESSION_SIGN_INS is on: WorkOS updates
-- last_sign_in_at late and sends no event for it. It is separate from the users, because the event of a session may arrive
-- before the event of its user. The deletion of the user deletes the row.
create table workos.sign_ins (
    user_id      text collate "C" primary key,
    -- When the latest session without an impersonator began.
    signed_in_at timestamptz not null
);

-- Locks users for a write that was decided before it began, if none of them has changed since. `revisions` holds the xmin of each
-- user's row as the decision saw it, and null for a user without a row. It raises 40001 if a row has changed, or if another
-- transaction holds its lock: the caller then decides again under the lock. It never waits.
create function workos.lock_unchanged(ids text[], revisions text[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    unchanged bigint;
begin
    if cardinality(ids) = 0 then
        return;
    end if;
    select count(*) into unchanged
    from (
        select stored.id, stored.xmin::text as revision
        from workos.user_records as stored
        where stored.id = any(ids)
        order by stored.id
        for no key update skip locked
    ) as locked
    join unnest(ids, revisions) as named (id, revision)
        on named.id = locked.id and named.revision = locked.revision;
    if unchanged <> cardinality(array_remove(revisions, null)) then
        raise exception using errcode = '40001', message = 'a user has changed since it was read';
    end if;
end
$$;

-- Confirms that a write inserted every user that it meant to insert, and that each row shows the latest stored sign-in. It raises
-- 40001 if another transaction inserted one of the users first, or stored a sign-in of one while the insertion waited for it.
create function workos.confirm_inserted(expected bigint, ids text[], last_sign_ins timestamptz[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if expected <> cardinality(ids) then
        raise exception using errcode = '40001', message = 'another transaction inserted a user first';
    elsif expected > 0 and exists (
        select
        from unnest(ids, last_sign_ins) as inserted (id, last_sign_in_at)
        join workos.sign_ins on sign_ins.user_id = inserted.id
        where inserted.last_sign_in_at is null or inserted.last_sign_in_at < sign_ins.signed_in_at
    ) then
        raise exception using errcode = '40001', message = 'another transaction stored a sign-in of an inserted user';
    end if;
end
$$;

revoke all on function workos.lock_unchanged(text[], text[]) from public;
revoke all on function workos.confirm_inserted(bigint, text[], timestamptz[]) from public;

-- Deleted users of whom personal data is still stored. A deletion erases a bounded number of rows in its own transaction. If
-- more are left, it inserts the user here in the same transaction, and housekeeping erases the rest in batches. A user whose
-- erasure is complete has no row.
create table workos.erasures (
    user_id      text collate "C" primary key,
    -- When the user was deleted here. The age of the oldest row is the delay of erasure.
    requested_at timestamptz not null default now()
);

-- Oldest first.
create index erasures_requested_at on workos.erasures (requested_at);

comment on table workos.user_records is 'WorkOS users and tombstones of deleted users; the target of foreign keys';
comment on view workos.users is 'Live WorkOS users; columns have WorkOS''s names, our own columns begin with synced_';
comment on table workos.sign_ins is 'Latest sign-in of each user by session.created events (AUTHKIT_SYNC_SESSION_SIGN_INS)';
comment on table workos.erasures is 'Deleted users of whom personal data is still to be erased; empty when every erasure is complete';
