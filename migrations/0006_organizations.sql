-- Organizations and memberships: the rows that WorkOS describes, and the views of live ones.
--
-- No foreign keys between the tables: a membership may arrive before its user or its organization, and after their deletion.
set local lock_timeout = '2s';

-- One row for each organization that was ever seen: a live one or a tombstone. Inside a transaction, a row with only an ID is a
-- placeholder to lock. See workos.user_records, which follows the same rules.
create table workos.organization_records (
    -- WorkOS's ID of the organization: opaque text, compared bytewise.
    id                    text collate "C" primary key,
    -- Not unique.
    name                  text,
    -- An array of domains as WorkOS describes them: objects with id, domain, state, verification_strategy, verification_prefix,
    -- created_at and updated_at. The verification token is a secret and is not stored.
    domains               jsonb,
    metadata              jsonb,
    -- The application's own ID of the organization. Not unique: WorkOS may give it to another organization, and the two updates
    -- may arrive in either order.
    external_id           text collate "C",
    stripe_customer_id    text collate "C",
    created_at            timestamptz,
    updated_at            timestamptz,
    -- All other fields that WorkOS sent.
    synced_extra          jsonb,
    -- Together with updated_at: the version of the observation that this row shows.
    synced_observed_at    timestamptz,
    synced_observation_id text collate "C",
    -- When this row last changed in this database.
    synced_at             timestamptz,
    -- A tombstone has only these two columns and the ID.
    synced_deleted        boolean not null default false,
    synced_deleted_at     timestamptz,
    -- When the version was last written, by this database's clock. Null in a tombstone.
    synced_version_at     timestamptz,
    constraint organization_records_live_or_tombstone check (
        case
            when synced_deleted or name is null then
                num_nonnulls(
                    name, domains, metadata, external_id, stripe_customer_id, created_at, updated_at, synced_extra,
                    synced_observed_at, synced_observation_id, synced_at
                ) = 0
                and (synced_deleted or synced_deleted_at is null)
            else
                num_nulls(
                    domains, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at
                ) = 0
                and synced_deleted_at is null
        end
    )
)
with (fillfactor = 85);

-- Lookups by the application's own ID.
create index organization_records_external_id on workos.organization_records (external_id) where external_id is not null;

-- Lookups by domain: `jsonb_path_query_array(domains, '$[*].domain') ?| array['example.com']`.
create index organization_records_domains
on workos.organization_records using gin (jsonb_path_query_array(domains, '$[*].domain')) where domains is not null;

-- Lookups by the words of the name. ASCII characters other than letters and digits separate words. A long name is indexed by its
-- beginning, because PostgreSQL limits the length of a word.
create index organization_records_name_words
on workos.organization_records using gin (
    array_to_tsvector(
        array_remove(regexp_split_to_array(lower(left(name, 500)), '[\x01-/:-@\[-`{-\x7f]+'), '')
    )
) where name is not null;

-- Live organizations only. Columns are only ever appended.
create view workos.organizations as
select
    id,
    name,
    domains,
    metadata,
    external_id,
    stripe_customer_id,
    created_at,
    updated_at,
    synced_extra,
    synced_at
from workos.organization_records
where not synced_deleted;

-- One row for each membership that was ever seen: a live one or a tombstone. A user who is removed from an organization and added
-- again has a new membership with a new ID.
create table workos.organization_membership_records (
    -- WorkOS's ID of the membership. It is never reused.
    id                    text collate "C" primary key,
    -- The user and the organization of the membership. They never change. A tombstone keeps them, because a request names a
    -- membership by them. They are null in a tombstone if no observation has described the membership.
    user_id               text collate "C",
    organization_id       text collate "C",
    -- `active`, `inactive` or `pending`. WorkOS may add others.
    status                text,
    -- The slug of the role of highest priority, and the slugs of all roles. A slug may belong to no stored role.
    role                  text collate "C",
    roles                 text[] collate "C",
    -- Attributes from the identity provider: personal data.
    custom_attributes     jsonb,
    directory_managed     boolean,
    created_at            timestamptz,
    updated_at            timestamptz,
    synced_extra          jsonb,
    synced_observed_at    timestamptz,
    synced_observation_id text collate "C",
    synced_at             timestamptz,
    -- A tombstone has only these two columns, the ID, the user and the organization. The deletion of a user turns each of the
    -- user's memberships into a tombstone, whose time is then null.
    synced_deleted        boolean not null default false,
    synced_deleted_at     timestamptz,
    synced_version_at     timestamptz,
    constraint organization_membership_records_live_or_tombstone check (
        case
            when synced_deleted or status is null then
                num_nonnulls(
                    status, role, roles, custom_attributes, directory_managed, created_at, updated_at, synced_extra,
                    synced_observed_at, synced_observation_id, synced_at
                ) = 0
                and (synced_deleted or num_nonnulls(user_id, organization_id, synced_deleted_at) = 0)
            else
                num_nulls(
                    user_id, organization_id, roles, custom_attributes, directory_managed, updated_at, synced_extra,
                    synced_observed_at, synced_observation_id, synced_at
                ) = 0
                and synced_deleted_at is null
        end
    )
)
with (fillfactor = 85);

-- The members of an organization, in the order of pages.
create index organization_membership_records_organization_id
on workos.organization_membership_records (organization_id, id) where organization_id is not null;

-- The members of an organization with one status, in the order of pages.
create index organization_membership_records_status
on workos.organization_membership_records (organization_id, status, id) where status is not null;

-- The memberships of a user, and those of a user in one organization. Not unique: a re-added member has a second row. The other
-- columns sort an active membership first, so a lookup reads one row. Create this index last: on an empty table PostgreSQL then
-- chooses it for a lookup by user and organization, and a session keeps this plan while the table grows.
create index organization_membership_records_user_id
on workos.organization_membership_records (
    user_id,
    organization_id,
    -- One expression instead of its parts, because PostgreSQL would use the parts as conditions, and choose another index for an
    -- empty table.
    (case when status = 'active' then 0 when status is not null then 1 else 2 end),
    created_at desc nulls last,
    id desc
)
where user_id is not null;

-- Memberships of every status that have not ended. A membership ends when its user or its organization is deleted, even if its row
-- is still live. Columns are only ever appended.
create view workos.organization_memberships as
select
    membership.id,
    membership.user_id,
    membership.organization_id,
    membership.status,
    membership.role,
    membership.roles,
    membership.custom_attributes,
    membership.directory_managed,
    membership.created_at,
    membership.updated_at,
    membership.synced_extra,
    membership.synced_at
from workos.organization_membership_records as membership
where
    not membership.synced_deleted
    and not exists (
        select
        from workos.organization_records as organization
        where
            organization.id = membership.organization_id
            and organization.synced_deleted
    )
    and not exists (
        select
        from workos.user_records as member
        where
            member.id = membership.user_id
            and member.synced_deleted
    );

-- Active memberships: the status is active, and neither the user nor the organization is deleted. Every check whether a user is a
-- member reads this view. Columns are only ever appended.
create view workos.active_memberships as
select
    membership.id,
    membership.user_id,
    membership.organization_id,
    membership.role,
    membership.roles,
    membership.custom_attributes,
    membership.directory_managed,
    membership.created_at,
    membership.updated_at,
    membership.synced_extra,
    membership.synced_at
from workos.organization_membership_records as membership
join workos.organization_records as organization on organization.id = membership.organization_id
join workos.user_records as member on member.id = membership.user_id
where
    membership.status = 'active'
    and not membership.synced_deleted
    and not organization.synced_deleted
    and not member.synced_deleted;

comment on table workos.organization_records is 'WorkOS organizations and tombstones of deleted ones; the target of foreign keys';
comment on view workos.organizations is 'Live WorkOS organizations';
comment on table workos.organization_membership_records is 'WorkOS organization memberships and tombstones of deleted ones';
comment on view workos.organization_memberships is 'WorkOS organization memberships of every status that have not ended';
comment on view workos.active_memberships is 'Memberships that count: active, of a live user in a live organization';

-- Last, so that these locks are held for the shortest time. Every write locks workos.environment first, so this migration does,
-- too. Otherwise it could wait for a write that waits for it. The same as deletions_accepted and needs_reconcile, but for
-- organizations and memberships, because users have a separate reconcile.
alter table workos.environment add column organization_deletions_accepted boolean not null default false;

alter table workos.catch_up add column needs_organization_reconcile boolean not null default false;

-- Scans of the new kinds. Each kind has its own rows. The position of a scan of memberships or roles is the last organization that
-- was read completely.
alter table workos.scans
drop constraint scans_kind,
add constraint scans_kind check (
    kind in (
        'backfill', 'backfill_organizations', 'backfill_memberships', 'backfill_organization_roles',
        'reconcile', 'reconcile_organizations', 'reconcile_memberships'
    )
);

-- The ID of the object of a change in the feed, unless the object is a user. `kind` is then an event type (`organization.updated`).
-- Earlier releases, which do not know the object, read it as an event of that type.
alter table workos.changes add column object_id text collate "C";
