-- Functions for row-level security by organization, role and permission. They read the claims of a verified access token from the
-- setting `request.jwt.claims`, as workos.current_subject() does.
-- A token does not change after it was issued. So the functions take only the caller and the selected organization from the claims,
-- and check both in the tables. After the commit of the end of a session, user, organization or membership, the functions return
-- nothing for the caller, although the token is still valid. Roles and permissions always come from the tables.
--
-- Write a call without an argument as `(select …)` in a policy: PostgreSQL then evaluates it once per statement.
--
-- The functions read as their owner, so that a caller needs no privilege on a table. No claim makes them raise an error. They are
-- in PL/pgSQL, because a session plans the statements of such a function once. It plans a function in SQL again in each statement
-- that calls it. A kept plan may be older than the rows. Therefore the functions set enable_seqscan to off. Otherwise a plan from
-- the time when a table was empty would read the whole table after it has grown. They are not parallel safe, for the reason at
-- workos.current_subject().
set local lock_timeout = '2s';

-- Returns the token's `sub` and `org_id`: the caller and the selected organization. Both are null if the claims are malformed or
-- have no `sub`, or if the session `sid` was revoked. Claims without a `sid` are accepted. The function is internal: only the
-- functions below call it, and no role may call it.
create function workos.current_session(out user_id text, out organization_id text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    claims jsonb;
begin
    begin
        claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
    exception
        -- Classes 22 and 54: not JSON, a character that PostgreSQL does not store, nested too deeply.
        when data_exception or program_limit_exceeded then
            return;
    end;
    if
        jsonb_typeof(claims -> 'sub') is distinct from 'string'
        or jsonb_typeof(claims -> 'sid') not in ('string', 'null')
        or exists (select from workos.revoked_sessions as revoked where revoked.id = claims ->> 'sid')
    then
        return;
    end if;
    user_id := nullif(claims ->> 'sub', '');
    if jsonb_typeof(claims -> 'org_id') = 'string' then
        organization_id := claims ->> 'org_id';
    end if;
end
$$;

-- Returns the caller's own live row, or no row if the user is deleted or the token's session was revoked.
create or replace function workos.current_auth_user() returns setof workos.users
    language plpgsql stable security definer rows 1
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    caller constant text := (select session.user_id from workos.current_session() as session);
begin
    return query select * from workos.users where id = caller;
end
$$;

-- Returns the caller's active membership in the token's organization, or no row. There may be two active memberships, if a member
-- was removed and added again and the removal is not stored yet. The newest one is returned.
create function workos.current_membership() returns setof workos.active_memberships
    language plpgsql stable security definer rows 1
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    session constant record := (select workos.current_session());
begin
    return query
    select *
    from workos.active_memberships as membership
    where membership.user_id = session.user_id and membership.organization_id = session.organization_id
    order by membership.created_at desc nulls last, membership.id desc
    limit 1;
end
$$;

-- Returns the token's organization, or null if the caller is not an active member of it now.
create function workos.current_organization_id() returns text
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
begin
    return (select membership.organization_id from workos.current_membership() as membership);
end
$$;

-- Returns the slugs of the caller's roles in the token's organization. A slug may belong to no stored role. Empty if the caller is
-- not an active member now.
create function workos.current_roles() returns text[]
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
begin
    return coalesce((select membership.roles from workos.current_membership() as membership), '{}');
end
$$;

-- Returns the current permissions of these roles in an organization, sorted bytewise, without duplicates. A slug that begins with
-- `org-` names a role of the organization, any other slug a role of the environment. A slug without a stored role has no
-- permission. The function reads with the privileges of its caller.
create function workos.role_permissions(organization_id text, roles text[]) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
begin
    return (
        select coalesce(array_agg(distinct permission order by permission), '{}')
        from unnest(role_permissions.roles) as held (slug)
        left join workos.organization_roles as own
            on own.organization_id = role_permissions.organization_id and own.slug = held.slug and starts_with(held.slug, 'org-')
        left join workos.roles as shared
            on shared.slug = held.slug and not starts_with(held.slug, 'org-')
        cross join unnest(coalesce(own.permissions, shared.permissions)) as permission
    );
end
$$;

-- Returns the permissions of the caller in the token's organization: the current permissions of the caller's roles. Empty if the
-- caller is not an active member now.
create function workos.current_permissions() returns text[]
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
begin
    return coalesce(
        (
            select workos.role_permissions(membership.organization_id, membership.roles)
            from workos.current_membership() as membership
        ),
        '{}'
    );
end
$$;

-- Returns whether the caller has a permission in the token's organization now. PostgreSQL inlines the function only if it has no
-- setting. So its only operator is qualified instead; see workos.get_auth_user().
create function workos.has_permission(permission text) returns boolean
    language sql stable
as $$
    select has_permission.permission operator(pg_catalog.=) any (workos.current_permissions())
$$;

-- Returns all organizations of which the caller is an active member now, sorted bytewise. They do not depend on the token's
-- organization. The high cost prevents plans that call the function for each row.
create function workos.current_organization_ids() returns text[]
    language plpgsql stable security definer cost 10000
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    caller constant text := (select session.user_id from workos.current_session() as session);
begin
    return (
        select coalesce(array_agg(distinct membership.organization_id order by membership.organization_id), '{}')
        from workos.active_memberships as membership
        where membership.user_id = caller
    );
end
$$;

-- Returns whether the caller is an active member of this organization now. It does not depend on the token's organization.
-- PostgreSQL inlines it, so that a policy which passes a column uses an index on this column and evaluates the function once.
create function workos.is_member_of(organization_id text) returns boolean
    language sql stable
as $$
    select is_member_of.organization_id operator(pg_catalog.=) any (workos.current_organization_ids())
$$;

-- By default, every role may call a function.
revoke all on function workos.current_session() from public;
revoke all on function workos.current_membership() from public;
revoke all on function workos.current_organization_id() from public;
revoke all on function workos.current_roles() from public;
revoke all on function workos.role_permissions(text, text[]) from public;
revoke all on function workos.current_permissions() from public;
revoke all on function workos.has_permission(text) from public;
revoke all on function workos.current_organization_ids() from public;
revoke all on function workos.is_member_of(text) from public;
