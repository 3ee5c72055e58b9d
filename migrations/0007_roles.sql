-- Roles and permissions. WorkOS keys them by a reusable slug, and its events do not describe them completely. So the stored rows
-- show WorkOS's lists, which are read again after each event about a role and on a timer. There are no tombstones: a slug that is
-- deleted and created again is live again.
set local lock_timeout = '2s';

-- Roles of the environment: the same in every organization.
create table workos.role_records (
    slug               text collate "C" primary key,
    -- WorkOS's ID of the role.
    id                 text collate "C",
    name               text,
    description        text,
    type               text,
    resource_type_slug text collate "C",
    -- The slugs of its permissions.
    permissions        text[] collate "C",
    -- Its place in WorkOS's list. The list is in the order of priority.
    synced_position    integer,
    created_at         timestamptz,
    updated_at         timestamptz,
    synced_extra       jsonb,
    -- When this row last changed in this database.
    synced_at          timestamptz not null default now(),
    -- Whether WorkOS no longer lists the slug. The row stays, so that foreign keys never break; all other columns are null.
    synced_deleted     boolean not null default false
);

-- Roles of one organization. Their slugs are unique inside one organization only.
create table workos.organization_role_records (
    organization_id    text collate "C" not null,
    slug               text collate "C" not null,
    id                 text collate "C",
    name               text,
    description        text,
    type               text,
    resource_type_slug text collate "C",
    permissions        text[] collate "C",
    synced_position    integer,
    created_at         timestamptz,
    updated_at         timestamptz,
    synced_extra       jsonb,
    synced_at          timestamptz not null default now(),
    synced_deleted     boolean not null default false,
    primary key (organization_id, slug)
);

-- Permissions of the environment.
create table workos.permission_records (
    slug               text collate "C" primary key,
    id                 text collate "C",
    name               text,
    description        text,
    system             boolean,
    resource_type_slug text collate "C",
    created_at         timestamptz,
    updated_at         timestamptz,
    synced_extra       jsonb,
    synced_at          timestamptz not null default now(),
    synced_deleted     boolean not null default false
);

-- The order of pages.
create index permission_records_id on workos.permission_records (id) where id is not null;

-- The roles that WorkOS lists now. Columns are only ever appended.
create view workos.roles as
select
    slug,
    id,
    name,
    description,
    type,
    resource_type_slug,
    permissions,
    synced_position,
    created_at,
    updated_at,
    synced_extra,
    synced_at
from workos.role_records
where not synced_deleted;

create view workos.organization_roles as
select
    role.organization_id,
    role.slug,
    role.id,
    role.name,
    role.description,
    role.type,
    role.resource_type_slug,
    role.permissions,
    role.synced_position,
    role.created_at,
    role.updated_at,
    role.synced_extra,
    role.synced_at
from workos.organization_role_records as role
where
    not role.synced_deleted
    and not exists (
        select
        from workos.organization_records as organization
        where
            organization.id = role.organization_id
            and organization.synced_deleted
    );

create view workos.permissions as
select
    slug,
    id,
    name,
    description,
    system,
    resource_type_slug,
    created_at,
    updated_at,
    synced_extra,
    synced_at
from workos.permission_records
where not synced_deleted;

-- What must be read from WorkOS again, because an event reported a change without the new state. One row for each list or object.
-- The job `refresh` reads the list or object and deletes the row, unless another event has renewed the request meanwhile.
create table workos.refreshes (
    -- `roles` (the environment's roles and permissions), `organization_roles` (of the organization `id`), `organization` (`id`
    -- itself: an event about one of its domains).
    kind         text not null,
    id           text collate "C" not null,
    -- Identifies the request: each new event about the list or object changes it.
    requested_at timestamptz not null default clock_timestamp(),
    -- The earliest time of the next attempt.
    due_at       timestamptz not null default now(),
    attempts     integer not null default 0,
    primary key (kind, id),
    constraint refreshes_kind check (kind in ('roles', 'organization_roles', 'organization'))
);

create index refreshes_due_at on workos.refreshes (due_at);

-- When each list was last read completely. A list that was read earlier never replaces one that was read later.
create table workos.role_lists (
    -- The organization; empty for the roles and permissions of the environment.
    organization_id text collate "C" primary key,
    -- When WorkOS answered, by its clock.
    observed_at     timestamptz not null,
    -- When it was stored, by this database's clock.
    read_at         timestamptz not null default now()
);

comment on table workos.role_records is 'WorkOS roles of the environment; the target of foreign keys';
comment on view workos.roles is 'Roles of the environment that WorkOS lists';
comment on table workos.organization_role_records is 'WorkOS roles of single organizations; the target of foreign keys';
comment on view workos.organization_roles is 'Roles of single organizations that WorkOS lists';
comment on table workos.permission_records is 'WorkOS permissions of the environment; the target of foreign keys';
comment on view workos.permissions is 'Permissions of the environment that WorkOS lists';
comment on table workos.refreshes is 'What has to be read from WorkOS again, because an event says that it has changed';
comment on table workos.role_lists is 'When each list of roles was last read from WorkOS';
