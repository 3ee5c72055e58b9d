//! `workos.user_records`: live users and tombstones.

mod pages;
mod write;

use std::collections::{BTreeMap, HashSet};

use sqlx::types::Json;
use time::OffsetDateTime;

pub(super) use write::{find, table, write_tombstones};

use super::DbConnection;
use super::scans::ScanStart;
use super::{Store, StoreError};
use crate::domain::decide::Stored;
use crate::domain::fields::Extra;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
use crate::domain::version::Version;

/// The facts about a row that a comparison with WorkOS's list needs.
#[derive(Clone, Debug)]
pub struct ComparedRow {
    /// The user ID.
    pub id: String,
    /// Whether the row is live.
    pub is_live: bool,
    /// Whether the user was created before the scan, so that WorkOS must list it.
    pub is_due_in_list: bool,
    /// Whether the version was written during the scan, but observed before it. The scan does not confirm such a version.
    pub is_unconfirmed: bool,
}

/// A row: a live user, a tombstone or a placeholder.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) email: Option<String>,
    pub(super) email_verified: Option<bool>,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    pub(super) name: Option<String>,
    pub(super) profile_picture_url: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) metadata: Option<Json<BTreeMap<String, Option<String>>>>,
    pub(super) last_sign_in_at: Option<OffsetDateTime>,
    pub(super) locale: Option<String>,
    pub(super) created_at: Option<OffsetDateTime>,
    pub(super) updated_at: Option<OffsetDateTime>,
    pub(super) synced_extra: Option<Json<Extra>>,
    pub(super) synced_observed_at: Option<OffsetDateTime>,
    pub(super) synced_observation_id: Option<String>,
    pub(super) synced_deleted: bool,
    pub(super) synced_deleted_at: Option<OffsetDateTime>,
}

impl Row {
    pub(super) fn into_stored(self) -> Stored<User> {
        if self.synced_deleted {
            return Stored::Tombstone { deleted_at: self.synced_deleted_at.map(Timestamp::from), of: None };
        }
        // A check constraint of the table ensures that these four are null together, in a placeholder.
        let (Some(email), Some(updated_at), Some(observed_at), Some(observation)) =
            (self.email, self.updated_at, self.synced_observed_at, self.synced_observation_id)
        else {
            return Stored::Absent;
        };
        let updated_at = Timestamp::from(updated_at);
        Stored::Live {
            version: Version { updated_at, observed_at: observed_at.into(), id: observation },
            object: Box::new(User {
                id: self.id,
                email,
                email_verified: self.email_verified.unwrap_or_default(),
                first_name: self.first_name,
                last_name: self.last_name,
                name: self.name,
                profile_picture_url: self.profile_picture_url,
                external_id: self.external_id,
                metadata: self.metadata.map(|json| json.0).unwrap_or_default(),
                last_sign_in_at: self.last_sign_in_at.map(Timestamp::from),
                locale: self.locale,
                created_at: self.created_at.map(Timestamp::from),
                updated_at,
                extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
            }),
        }
    }
}

impl Store {
    /// Returns the user with this ID, live or deleted. Needs one statement and one index lookup.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn user(&self, id: &str) -> Result<Stored<User>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.by_id
                    select
                        id,
                        email,
                        email_verified,
                        first_name,
                        last_name,
                        name,
                        profile_picture_url,
                        external_id,
                        metadata as "metadata: Json<BTreeMap<String, Option<String>>>",
                        last_sign_in_at,
                        locale,
                        created_at,
                        updated_at,
                        synced_extra as "synced_extra: Json<Extra>",
                        synced_observed_at,
                        synced_observation_id,
                        synced_deleted,
                        synced_deleted_at
                    from workos.user_records
                    where id = $1"#,
                    id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map_or(Stored::Absent, Row::into_stored))
    }
}

/// Returns the rows of these users. Absent users are omitted.
async fn rows_by_ids(connection: &mut DbConnection<'_>, ids: &[String]) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"-- users.by_ids
                    select
                        id,
                        email,
                        email_verified,
                        first_name,
                        last_name,
                        name,
                        profile_picture_url,
                        external_id,
                        metadata as "metadata: Json<BTreeMap<String, Option<String>>>",
                        last_sign_in_at,
                        locale,
                        created_at,
                        updated_at,
                        synced_extra as "synced_extra: Json<Extra>",
                        synced_observed_at,
                        synced_observation_id,
                        synced_deleted,
                        synced_deleted_at
                    from workos.user_records
                    where id = any($1)"#,
        ids
    )
    .fetch_all(connection)
    .await
}

impl Store {
    /// Returns these users, live or deleted. Absent users are omitted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn users(&self, ids: &[String]) -> Result<BTreeMap<String, Stored<User>>, StoreError> {
        let rows = self.lookup(async |connection| rows_by_ids(connection, ids).await).await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.into_stored())).collect())
    }

    /// Returns the next `limit` rows after the user ID `after`, in order, including tombstones. `scan` is the scan that has read
    /// all of WorkOS's list, if it repairs the table.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn rows_after(
        &self,
        after: &str,
        began_at: Timestamp,
        scan: Option<&ScanStart>,
        limit: i64,
    ) -> Result<Vec<ComparedRow>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- users.rows_after
                    select
                        id,
                        not synced_deleted and email is not null as "is_live!",
                        coalesce(coalesce(created_at, updated_at) < $2, false) as "is_due_in_list!",
                        coalesce(synced_version_at >= $3 and synced_observed_at < $2, false) as "is_unconfirmed!"
                    from workos.user_records
                    where id > $1
                    order by id
                    limit $4"#,
                    after,
                    OffsetDateTime::from(began_at),
                    scan.map(|scan| OffsetDateTime::from(scan.database_started_at)),
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let compared = rows.into_iter().map(|row| ComparedRow {
            id: row.id,
            is_live: row.is_live,
            is_due_in_list: row.is_due_in_list,
            is_unconfirmed: row.is_unconfirmed,
        });
        Ok(compared.collect())
    }

    /// Returns those of these users whose version was not written since that instant, by the database's clock.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn unwritten_since(&self, ids: &[String], at: Timestamp) -> Result<HashSet<String>, StoreError> {
        let ids = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- users.unwritten_since
                    select id
                    from workos.user_records
                    where
                        id = any($1)
                        and (synced_version_at is null or synced_version_at < $2)",
                    ids,
                    OffsetDateTime::from(at)
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(ids.into_iter().collect())
    }

    /// Returns up to `limit` random live users.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn sample_live(&self, limit: i64) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            // It reads all rows of a small table, and some pages with about 2,000 rows of a large one.
            sqlx::query_scalar!(
                "-- users.sample_live
                select id
                from workos.user_records tablesample system ((
                    select least(100, 200000 / greatest(reltuples, 1))
                    from pg_class
                    where oid = 'workos.user_records'::regclass
                ))
                where
                    not synced_deleted
                    and email is not null
                order by random()
                limit $1",
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }
}
