-- lookups.members
select
    member.id as "user_id?",
    member.email as "email?",
    member.email_verified as "email_verified?",
    member.first_name as "first_name?",
    member.last_name as "last_name?",
    member.name as "name?",
    member.profile_picture_url as "profile_picture_url?",
    member.external_id as "external_id?",
    member.metadata as "metadata?: Json<BTreeMap<String, Option<String>>>",
    member.last_sign_in_at as "last_sign_in_at?",
    member.locale as "locale?",
    member.created_at as "created_at?",
    member.updated_at as "updated_at?",
    member.synced_extra as "synced_extra?: Json<Extra>",
    member.synced_observed_at as "synced_observed_at?",
    member.synced_observation_id as "synced_observation_id?",
    member.synced_deleted as "synced_deleted?",
    member.synced_deleted_at as "synced_deleted_at?",
    -- Executed once per statement.
    array(select revoked.id from workos.revoked_sessions as revoked where revoked.id = any($3)) as "revoked!",
    organization.id as "organization_id?",
    organization.name as "organization_name?",
    organization.domains as "organization_domains?: Json<Box<serde_json::value::RawValue>>",
    organization.metadata as "organization_metadata?: Json<BTreeMap<String, Option<String>>>",
    organization.external_id as "organization_external_id?",
    organization.stripe_customer_id as "organization_stripe_customer_id?",
    organization.created_at as "organization_created_at?",
    organization.updated_at as "organization_updated_at?",
    organization.synced_extra as "organization_extra?: Json<Extra>",
    organization.synced_observed_at as "organization_observed_at?",
    organization.synced_observation_id as "organization_observation_id?",
    organization.synced_deleted as "organization_deleted?",
    membership.id as "membership_id?",
    membership.user_id as "membership_user_id?",
    membership.organization_id as "membership_organization_id?",
    membership.status as "membership_status?",
    membership.role as "membership_role?",
    membership.roles as "membership_roles?",
    membership.custom_attributes as "membership_custom_attributes?: Json<Extra>",
    membership.directory_managed as "membership_directory_managed?",
    membership.created_at as "membership_created_at?",
    membership.updated_at as "membership_updated_at?",
    membership.synced_extra as "membership_extra?: Json<Extra>",
    membership.synced_observed_at as "membership_observed_at?",
    membership.synced_observation_id as "membership_observation_id?",
    membership.synced_deleted as "membership_deleted?",
    -- The rule of workos.role_permissions(): a slug that begins with `org-` names a role of the organization.
    array(
        select unnest(shared.permissions)
        from workos.role_records as shared
        where
            shared.slug = any(membership.roles)
            and not starts_with(shared.slug, 'org-')
            and not shared.synced_deleted
        union all
        select unnest(own.permissions)
        from workos.organization_role_records as own
        where
            own.organization_id = asked.organization_id
            and own.slug = any(membership.roles)
            and starts_with(own.slug, 'org-')
            and not own.synced_deleted
    ) as permissions
from
    unnest($1::text[], $2::text[]) with ordinality as asked (user_id, organization_id, n)
-- With a limit, PostgreSQL cannot join a whole table instead of reading one row of it.
left join lateral (
    select * from workos.user_records as candidate where candidate.id = asked.user_id limit 1
) as member on true
left join lateral (
    select * from workos.organization_records as candidate where candidate.id = asked.organization_id limit 1
) as organization on true
left join lateral (
    select *
    from workos.organization_membership_records as candidate
    where candidate.user_id = asked.user_id and candidate.organization_id = asked.organization_id
    order by
        -- Active, then not active, then deleted: the order of the index.
        case when candidate.status = 'active' then 0 when candidate.status is not null then 1 else 2 end,
        candidate.created_at desc nulls last,
        candidate.id desc
    limit 1
) as membership on true
order by asked.n
