-- Users, as WorkOS describes them.
--
-- Everything lives in schema `workos`, so that it can share a database with the application it serves. The schema itself
-- is made by `authkit-sync migrate`, because a role that owns an existing schema may not be allowed to create one.
set local lock_timeout = '5s';

-- One row per user ever heard of: live users and tombstones, nothing else. Foreign keys point here, so that a deletion at
-- WorkOS can never break one. (Inside a transaction, a row with nothing but its id is a place held for locking.)
create table workos.user_records (
    -- Opaque text; compared bytewise, so that order and uniqueness never depend on the database's locale.
    id                  text collate "C" primary key,
    -- WorkOS's fields under WorkOS's names. No unique keys beside the id: WorkOS may hand an e-mail or an external id to
    -- another user, and word of that may arrive in either order.
    email               text,
    email_verified      boolean,
    first_name          text,
    last_name           text,
    name                text,
    profile_picture_url text,
    external_id         text collate "C",
    metadata            jsonb,
    last_sign_in_at     timestamptz,
    locale              text,
    created_at          timestamptz,
    updated_at          timestamptz,
    -- Whatever else WorkOS sent, so that a field added tomorrow is not lost.
    synced_extra        jsonb,
    -- With updated_at: the version of the observation this row stands on.
    synced_observed_at  timestamptz,
    synced_observation  text collate "C",
    -- When this row last changed here.
    synced_at           timestamptz,
    -- A tombstone is these two and the id; everything else is null (erased).
    synced_deleted      boolean not null default false,
    synced_deleted_at   timestamptz,
    constraint user_records_live_or_tombstone check (
        case
            when synced_deleted or email is null then
                num_nonnulls(
                    email, email_verified, first_name, last_name, name, profile_picture_url, external_id, metadata,
                    last_sign_in_at, locale, created_at, updated_at, synced_extra, synced_observed_at,
                    synced_observation, synced_at
                ) = 0
                and (synced_deleted or synced_deleted_at is null)
            else
                num_nulls(
                    email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation, synced_at
                ) = 0
                and synced_deleted_at is null
        end
    )
);

-- Lookups: by id (the key), by the application's own id, by e-mail whatever its case.
create index user_records_external_id on workos.user_records (external_id) where external_id is not null;
create index user_records_email on workos.user_records (lower(email collate "C")) where email is not null;

-- Live users only: nobody reads a deleted user by forgetting a `where`. Columns are only ever appended.
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

-- The question every backend asks, for callers that speak SQL: the user behind a verified token's `sub`. The body is text
-- on purpose: it follows the view when columns are appended to it.
create function workos.get_auth_user(subject text) returns setof workos.users
    language sql stable parallel safe rows 1
as $$
    select * from workos.users where id = subject
$$;

-- Functions, unlike tables, are open to everyone by default.
revoke all on function workos.get_auth_user(text) from public;

comment on table workos.user_records is 'WorkOS users and tombstones of deleted ones; foreign keys point here';
comment on view workos.users is 'Live WorkOS users; columns named as WorkOS names them, ours begin with synced_';
