//! The rows of permissions.

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;

use crate::domain::fields::Extra;
use crate::domain::role::Permission;
use crate::domain::timestamp::Timestamp;
use crate::store::DbConnection;
use crate::store::StoreError;

struct Row {
    slug: String,
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    system: Option<bool>,
    resource_type_slug: Option<String>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    synced_extra: Option<Json<Extra>>,
}

/// Returns the live permissions by slug.
pub(super) async fn stored(connection: &mut DbConnection<'_>) -> Result<BTreeMap<String, Permission>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- permissions.stored
        select
            slug,
            id,
            name,
            description,
            system,
            resource_type_slug,
            created_at,
            updated_at,
            synced_extra as "synced_extra: _"
        from workos.permission_records
        where not synced_deleted"#
    )
    .fetch_all(connection)
    .await?;
    let permissions = rows.into_iter().map(|row| {
        let permission = Permission {
            slug: row.slug.clone(),
            id: row.id,
            name: row.name,
            description: row.description,
            system: row.system.unwrap_or_default(),
            resource_type_slug: row.resource_type_slug,
            created_at: row.created_at.map(Timestamp::from),
            updated_at: row.updated_at.map(Timestamp::from),
            extra: row.synced_extra.map(|json| json.0).unwrap_or_default(),
        };
        (row.slug, permission)
    });
    Ok(permissions.collect())
}

/// Inserts or replaces permissions.
pub(super) async fn write(connection: &mut DbConnection<'_>, permissions: &[&Permission]) -> Result<(), StoreError> {
    if permissions.is_empty() {
        return Ok(());
    }
    let text = |value: fn(&Permission) -> Option<&str>| -> Vec<Option<&str>> {
        permissions.iter().map(|permission| value(permission)).collect()
    };
    let time = |value: fn(&Permission) -> Option<Timestamp>| -> Vec<Option<OffsetDateTime>> {
        permissions.iter().map(|permission| value(permission).map(Into::into)).collect()
    };
    sqlx::query!(
        "-- permissions.write
        insert into workos.permission_records (
            slug, id, name, description, system, resource_type_slug, created_at, updated_at, synced_extra
        )
        select slug, id, name, description, system, resource_type_slug, created_at, updated_at, extra
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::timestamptz[],
            $8::timestamptz[], $9::jsonb[]
        ) as seen (slug, id, name, description, system, resource_type_slug, created_at, updated_at, extra)
        on conflict (slug) do update
        set
            id = excluded.id,
            name = excluded.name,
            description = excluded.description,
            system = excluded.system,
            resource_type_slug = excluded.resource_type_slug,
            created_at = excluded.created_at,
            updated_at = excluded.updated_at,
            synced_extra = excluded.synced_extra,
            synced_at = now(),
            synced_deleted = false",
        &permissions.iter().map(|permission| &*permission.slug).collect::<Vec<_>>() as _,
        &text(|permission| permission.id.as_deref()) as _,
        &text(|permission| permission.name.as_deref()) as _,
        &text(|permission| permission.description.as_deref()) as _,
        &permissions.iter().map(|permission| permission.system).collect::<Vec<_>>(),
        &text(|permission| permission.resource_type_slug.as_deref()) as _,
        &time(|permission| permission.created_at) as _,
        &time(|permission| permission.updated_at) as _,
        &permissions.iter().map(|permission| Json(&permission.extra)).collect::<Vec<_>>() as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks permissions as deleted.
pub(super) async fn delete(connection: &mut DbConnection<'_>, slugs: &[String]) -> Result<(), StoreError> {
    if slugs.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- permissions.delete
        update workos.permission_records
        set
            id = null,
            name = null,
            description = null,
            system = null,
            resource_type_slug = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_at = now(),
            synced_deleted = true
        where slug = any($1)",
        slugs
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the slugs of the live permissions.
pub(super) async fn slugs(connection: &mut DbConnection<'_>) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "-- permissions.slugs
        select slug
        from workos.permission_records
        where not synced_deleted
        order by slug"
    )
    .fetch_all(connection)
    .await
}
