//! `workos.organization_records`: live organizations and tombstones.

mod pages;

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::types::Json;
use time::OffsetDateTime;

pub use pages::OrganizationFilter;

use super::DbConnection;
use super::rows::{Found, LiveRow, Rows, TombstoneRow, table_statements};
use super::{Store, StoreError};
use crate::domain::decide::Stored;
use crate::domain::fields::Extra;
use crate::domain::object::Object;
use crate::domain::organization::Organization;
use crate::domain::timestamp::Timestamp;
use crate::domain::version::Version;

table_statements!("organizations", "workos.organization_records", "name");

/// A row: a live organization, a tombstone or a placeholder.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) domains: Option<Json<Box<RawValue>>>,
    pub(super) metadata: Option<Json<BTreeMap<String, Option<String>>>>,
    pub(super) external_id: Option<String>,
    pub(super) stripe_customer_id: Option<String>,
    pub(super) created_at: Option<OffsetDateTime>,
    pub(super) updated_at: Option<OffsetDateTime>,
    pub(super) synced_extra: Option<Json<Extra>>,
    pub(super) synced_observed_at: Option<OffsetDateTime>,
    pub(super) synced_observation_id: Option<String>,
    pub(super) synced_deleted: bool,
    pub(super) synced_deleted_at: Option<OffsetDateTime>,
    pub(super) synced_version_at: Option<OffsetDateTime>,
    pub(super) revision: Option<String>,
}

impl Row {
    pub(super) fn into_stored(self) -> Stored<Organization> {
        if self.synced_deleted {
            return Stored::Tombstone { deleted_at: self.synced_deleted_at.map(Timestamp::from), of: None };
        }
        // A check constraint of the table ensures that these are null together, in a placeholder.
        let (Some(name), Some(domains), Some(updated_at), Some(observed_at), Some(observation)) =
            (self.name, self.domains, self.updated_at, self.synced_observed_at, self.synced_observation_id)
        else {
            return Stored::Absent;
        };
        let updated_at = Timestamp::from(updated_at);
        Stored::Live {
            version: Version { updated_at, observed_at: observed_at.into(), id: observation },
            object: Box::new(Organization {
                id: self.id,
                name,
                domains: domains.0,
                metadata: self.metadata.map(|json| json.0).unwrap_or_default(),
                external_id: self.external_id,
                stripe_customer_id: self.stripe_customer_id,
                created_at: self.created_at.map(Timestamp::from),
                updated_at,
                extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
            }),
        }
    }
}

async fn rows_by_ids(connection: &mut DbConnection<'_>, ids: &[String]) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"-- organizations.by_ids
        select
            id,
            name,
            domains as "domains: _",
            metadata as "metadata: _",
            external_id,
            stripe_customer_id,
            created_at,
            updated_at,
            synced_extra as "synced_extra: _",
            synced_observed_at,
            synced_observation_id,
            synced_deleted,
            synced_deleted_at,
            synced_version_at,
            xmin::text as revision
        from workos.organization_records
        where id = any($1)"#,
        ids
    )
    .fetch_all(connection)
    .await
}

/// Reads these organizations into `rows`.
pub(super) async fn find(connection: &mut DbConnection<'_>, ids: &[String], rows: &mut Rows) -> Result<(), StoreError> {
    rows.extend(rows_by_ids(connection, ids).await?.into_iter().map(|mut row| {
        let version_at = row.synced_version_at.map(Timestamp::from);
        let (id, revision) = (row.id.clone(), row.revision.take());
        (id, Found { stored: row.into_stored().map(Object::Organization), signed_in_at: None, version_at, revision })
    }));
    Ok(())
}

/// Writes live organizations. The rows exist and are locked.
pub(super) async fn write(connection: &mut DbConnection<'_>, live: &[LiveRow<'_>]) -> Result<(), StoreError> {
    let rows: Vec<(&Organization, &Version)> = live
        .iter()
        .filter_map(|row| match row.object {
            Object::Organization(organization) => Some((organization, row.version)),
            _ => None,
        })
        .collect();
    let created: Vec<Option<OffsetDateTime>> = rows.iter().map(|(row, _)| row.created_at.map(Into::into)).collect();
    let updated: Vec<OffsetDateTime> = rows.iter().map(|(row, _)| row.updated_at.into()).collect();
    let observed: Vec<OffsetDateTime> = rows.iter().map(|(_, version)| version.observed_at.into()).collect();
    sqlx::query!(
        "-- organizations.write
        update workos.organization_records as stored
        set
            name = seen.name,
            domains = seen.domains,
            metadata = seen.metadata,
            external_id = seen.external_id,
            stripe_customer_id = seen.stripe_customer_id,
            created_at = seen.created_at,
            updated_at = seen.updated_at,
            synced_extra = seen.extra,
            synced_observed_at = seen.observed_at,
            synced_observation_id = seen.observation,
            synced_at = now(),
            synced_version_at = clock_timestamp()
        from unnest(
            $1::text[], $2::text[], $3::jsonb[], $4::jsonb[], $5::text[], $6::text[], $7::timestamptz[],
            $8::timestamptz[], $9::jsonb[], $10::timestamptz[], $11::text[]
        ) as seen (
            id, name, domains, metadata, external_id, stripe_customer_id, created_at, updated_at, extra, observed_at,
            observation
        )
        where
            stored.id = seen.id
            and stored.id = any($1)",
        &rows.iter().map(|(row, _)| &*row.id).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| &*row.name).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| Json(&row.domains)).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| Json(&row.metadata)).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| row.external_id.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| row.stripe_customer_id.as_deref()).collect::<Vec<_>>() as _,
        &created as _,
        &updated,
        &rows.iter().map(|(row, _)| Json(&row.extra)).collect::<Vec<_>>() as _,
        &observed,
        &rows.iter().map(|(_, version)| &*version.id).collect::<Vec<_>>() as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Turns rows into tombstones, which keep only the ID and the time of the deletion.
pub(super) async fn write_tombstones(
    connection: &mut DbConnection<'_>,
    deleted: &[TombstoneRow<'_>],
) -> Result<(), StoreError> {
    let times: Vec<Option<OffsetDateTime>> = deleted.iter().map(|row| row.deleted_at.map(Into::into)).collect();
    sqlx::query!(
        "-- organizations.write_tombstones
        update workos.organization_records as stored
        set
            name = null,
            domains = null,
            metadata = null,
            external_id = null,
            stripe_customer_id = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_observed_at = null,
            synced_observation_id = null,
            synced_at = null,
            synced_version_at = null,
            synced_deleted = true,
            synced_deleted_at = deleted.at
        from unnest($1::text[], $2::timestamptz[]) as deleted (id, at)
        where
            stored.id = deleted.id
            and stored.id = any($1)",
        &deleted.iter().map(|row| row.id).collect::<Vec<_>>() as _,
        &times as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Returns these organizations, live or deleted. Absent ones are omitted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn organizations(&self, ids: &[String]) -> Result<BTreeMap<String, Stored>, StoreError> {
        let rows = self.lookup(async |connection| rows_by_ids(connection, ids).await).await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.into_stored().map(Object::Organization))).collect())
    }

    /// Returns the IDs of live organizations after an ID, in order.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn live_organization_ids(&self, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                "-- organizations.live_ids
                select id
                from workos.organization_records
                where
                    id > $1
                    and name is not null
                    and not synced_deleted
                order by id
                limit $2",
                after,
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Returns the number of live organizations after an ID.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn live_organizations_after(&self, after: &str) -> Result<i64, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- organizations.live_after
                select count(*) as "left!"
                from workos.organization_records
                where
                    id > $1
                    and name is not null
                    and not synced_deleted"#,
                after
            )
            .fetch_one(connection)
            .await
        })
        .await
    }
}
