//! The rows of roles: those of the environment, and those of single organizations.

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;

use super::position_of;
use crate::domain::fields::Extra;
use crate::domain::role::Role;
use crate::domain::timestamp::Timestamp;
use crate::store::DbConnection;
use crate::store::StoreError;

/// Live roles by slug, each with its place in WorkOS's list.
type Stored = BTreeMap<String, (Role, i32)>;

struct Row {
    slug: String,
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    role_type: Option<String>,
    resource_type_slug: Option<String>,
    permissions: Option<Vec<String>>,
    synced_position: Option<i32>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    synced_extra: Option<Json<Extra>>,
}

impl Row {
    fn into_role(self) -> (String, (Role, i32)) {
        let role = Role {
            slug: self.slug.clone(),
            id: self.id,
            name: self.name,
            description: self.description,
            role_type: self.role_type,
            resource_type_slug: self.resource_type_slug,
            permissions: self.permissions.unwrap_or_default(),
            created_at: self.created_at.map(Timestamp::from),
            updated_at: self.updated_at.map(Timestamp::from),
            extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
        };
        (self.slug, (role, self.synced_position.unwrap_or(-1)))
    }
}

/// Returns the live roles of the environment.
pub(super) async fn environment(connection: &mut DbConnection<'_>) -> Result<Stored, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- environment_roles.stored
        select
            slug,
            id,
            name,
            description,
            type as role_type,
            resource_type_slug,
            permissions,
            synced_position,
            created_at,
            updated_at,
            synced_extra as "synced_extra: _"
        from workos.role_records
        where
            not synced_deleted"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Row::into_role).collect())
}

/// Returns the live roles of an organization.
pub(super) async fn of_organization(
    connection: &mut DbConnection<'_>,
    organization_id: &str,
) -> Result<Stored, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- organization_roles.stored
        select
            slug,
            id,
            name,
            description,
            type as role_type,
            resource_type_slug,
            permissions,
            synced_position,
            created_at,
            updated_at,
            synced_extra as "synced_extra: _"
        from workos.organization_role_records
        where
            organization_id = $1
            and not synced_deleted"#,
        organization_id
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Row::into_role).collect())
}

/// The columns of roles to write, as arrays.
struct Columns<'a> {
    slugs: Vec<&'a str>,
    ids: Vec<Option<&'a str>>,
    names: Vec<Option<&'a str>>,
    descriptions: Vec<Option<&'a str>>,
    types: Vec<Option<&'a str>>,
    resource_types: Vec<Option<&'a str>>,
    permissions: Vec<Json<&'a Vec<String>>>,
    positions: Vec<i32>,
    created: Vec<Option<OffsetDateTime>>,
    updated: Vec<Option<OffsetDateTime>>,
    extra: Vec<Json<&'a Extra>>,
}

impl<'a> Columns<'a> {
    fn of(roles: &[(usize, &'a Role)]) -> Self {
        let text = |value: fn(&Role) -> Option<&str>| roles.iter().map(|(_, role)| value(role)).collect();
        Self {
            slugs: roles.iter().map(|(_, role)| &*role.slug).collect(),
            ids: text(|role| role.id.as_deref()),
            names: text(|role| role.name.as_deref()),
            descriptions: text(|role| role.description.as_deref()),
            types: text(|role| role.role_type.as_deref()),
            resource_types: text(|role| role.resource_type_slug.as_deref()),
            permissions: roles.iter().map(|(_, role)| Json(&role.permissions)).collect(),
            positions: roles.iter().map(|(position, _)| position_of(*position)).collect(),
            created: roles.iter().map(|(_, role)| role.created_at.map(Into::into)).collect(),
            updated: roles.iter().map(|(_, role)| role.updated_at.map(Into::into)).collect(),
            extra: roles.iter().map(|(_, role)| Json(&role.extra)).collect(),
        }
    }
}

/// Inserts or replaces roles of the environment.
pub(super) async fn write_environment(
    connection: &mut DbConnection<'_>,
    roles: &[(usize, &Role)],
) -> Result<(), StoreError> {
    if roles.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(roles);
    sqlx::query!(
        "-- environment_roles.write
        insert into workos.role_records (
            slug, id, name, description, type, resource_type_slug, permissions, synced_position,
            created_at, updated_at, synced_extra
        )
        select
            slug, id, name, description, type, resource_type_slug,
            -- PostgreSQL has no array of arrays of different lengths.
            array(select jsonb_array_elements_text(seen.permissions)),
            position, created_at, updated_at, extra
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::int4[],
            $9::timestamptz[], $10::timestamptz[], $11::jsonb[]
        ) as seen (
            slug, id, name, description, type, resource_type_slug, permissions, position, created_at, updated_at, extra
        )
        on conflict (slug) do update
        set
            id = excluded.id,
            name = excluded.name,
            description = excluded.description,
            type = excluded.type,
            resource_type_slug = excluded.resource_type_slug,
            permissions = excluded.permissions,
            synced_position = excluded.synced_position,
            created_at = excluded.created_at,
            updated_at = excluded.updated_at,
            synced_extra = excluded.synced_extra,
            synced_at = now(),
            synced_deleted = false",
        &columns.slugs as _,
        &columns.ids as _,
        &columns.names as _,
        &columns.descriptions as _,
        &columns.types as _,
        &columns.resource_types as _,
        &columns.permissions as _,
        &columns.positions,
        &columns.created as _,
        &columns.updated as _,
        &columns.extra as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts or replaces roles of an organization.
pub(super) async fn write_of_organization(
    connection: &mut DbConnection<'_>,
    organization_id: &str,
    roles: &[(usize, &Role)],
) -> Result<(), StoreError> {
    if roles.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(roles);
    sqlx::query!(
        "-- organization_roles.write
        insert into workos.organization_role_records (
            organization_id, slug, id, name, description, type, resource_type_slug, permissions, synced_position,
            created_at, updated_at, synced_extra
        )
        select
            $12, slug, id, name, description, type, resource_type_slug,
            -- PostgreSQL has no array of arrays of different lengths.
            array(select jsonb_array_elements_text(seen.permissions)),
            position, created_at, updated_at, extra
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::int4[],
            $9::timestamptz[], $10::timestamptz[], $11::jsonb[]
        ) as seen (
            slug, id, name, description, type, resource_type_slug, permissions, position, created_at, updated_at, extra
        )
        on conflict (organization_id, slug) do update
        set
            id = excluded.id,
            name = excluded.name,
            description = excluded.description,
            type = excluded.type,
            resource_type_slug = excluded.resource_type_slug,
            permissions = excluded.permissions,
            synced_position = excluded.synced_position,
            created_at = excluded.created_at,
            updated_at = excluded.updated_at,
            synced_extra = excluded.synced_extra,
            synced_at = now(),
            synced_deleted = false",
        &columns.slugs as _,
        &columns.ids as _,
        &columns.names as _,
        &columns.descriptions as _,
        &columns.types as _,
        &columns.resource_types as _,
        &columns.permissions as _,
        &columns.positions,
        &columns.created as _,
        &columns.updated as _,
        &columns.extra as _,
        organization_id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks roles of the environment as deleted.
pub(super) async fn delete_environment(connection: &mut DbConnection<'_>, slugs: &[String]) -> Result<(), StoreError> {
    if slugs.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- environment_roles.delete
        update workos.role_records
        set
            id = null,
            name = null,
            description = null,
            type = null,
            resource_type_slug = null,
            permissions = null,
            synced_position = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_at = now(),
            synced_deleted = true
        where
            slug = any($1)",
        slugs
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks roles of an organization as deleted.
pub(super) async fn delete_of_organization(
    connection: &mut DbConnection<'_>,
    organization_id: &str,
    slugs: &[String],
) -> Result<(), StoreError> {
    if slugs.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- organization_roles.delete
        update workos.organization_role_records
        set
            id = null,
            name = null,
            description = null,
            type = null,
            resource_type_slug = null,
            permissions = null,
            synced_position = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_at = now(),
            synced_deleted = true
        where
            slug = any($1)
            and organization_id = $2",
        slugs,
        organization_id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the slugs of the live roles of the environment.
pub(super) async fn environment_slugs(connection: &mut DbConnection<'_>) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "-- environment_roles.slugs
        select slug
        from workos.role_records
        where
            not synced_deleted
        order by slug"
    )
    .fetch_all(connection)
    .await
}

/// Returns the slugs of the live roles of an organization.
pub(super) async fn slugs_of_organization(
    connection: &mut DbConnection<'_>,
    organization_id: &str,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "-- organization_roles.slugs
        select slug
        from workos.organization_role_records
        where
            organization_id = $1
            and not synced_deleted
        order by slug",
        organization_id
    )
    .fetch_all(connection)
    .await
}
