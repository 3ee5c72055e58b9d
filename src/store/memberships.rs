//! `workos.organization_membership_records`: memberships in every status, and tombstones.

mod pages;

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;

pub use pages::{MembershipFilter, MembershipsOf};

use super::DbConnection;
use super::rows::{Found, LiveRow, Rows, TombstoneRow, table_statements};
use super::{Store, StoreError};
use crate::domain::decide::Stored;
use crate::domain::fields::Extra;
use crate::domain::membership::{Membership, Sides};
use crate::domain::object::Object;
use crate::domain::timestamp::Timestamp;
use crate::domain::version::Version;

table_statements!("memberships", "workos.organization_membership_records", "status");

/// A row: a membership, a tombstone or a placeholder.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) user_id: Option<String>,
    pub(super) organization_id: Option<String>,
    pub(super) status: Option<String>,
    pub(super) role: Option<String>,
    pub(super) roles: Option<Vec<String>>,
    pub(super) custom_attributes: Option<Json<Extra>>,
    pub(super) directory_managed: Option<bool>,
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
    pub(super) fn into_stored(self) -> Stored<Membership> {
        let of = self.user_id.zip(self.organization_id);
        let of = of.map(|(user_id, organization_id)| Sides { user_id, organization_id });
        if self.synced_deleted {
            return Stored::Tombstone { deleted_at: self.synced_deleted_at.map(Timestamp::from), of };
        }
        // A check constraint of the table ensures that these are null together, in a placeholder.
        let (Some(of), Some(status), Some(updated_at), Some(observed_at), Some(observation)) =
            (of, self.status, self.updated_at, self.synced_observed_at, self.synced_observation_id)
        else {
            return Stored::Absent;
        };
        let updated_at = Timestamp::from(updated_at);
        Stored::Live {
            version: Version { updated_at, observed_at: observed_at.into(), id: observation },
            object: Box::new(Membership {
                id: self.id,
                of,
                status,
                role: self.role,
                roles: self.roles.unwrap_or_default(),
                custom_attributes: self.custom_attributes.map(|json| json.0).unwrap_or_default(),
                directory_managed: self.directory_managed.unwrap_or_default(),
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
        r#"-- memberships.by_ids
        select
            id,
            user_id,
            organization_id,
            status,
            role,
            roles,
            custom_attributes as "custom_attributes: _",
            directory_managed,
            created_at,
            updated_at,
            synced_extra as "synced_extra: _",
            synced_observed_at,
            synced_observation_id,
            synced_deleted,
            synced_deleted_at,
            synced_version_at,
            xmin::text as revision
        from workos.organization_membership_records
        where id = any($1)"#,
        ids
    )
    .fetch_all(connection)
    .await
}

/// Reads these memberships into `rows`.
pub(super) async fn find(connection: &mut DbConnection<'_>, ids: &[String], rows: &mut Rows) -> Result<(), StoreError> {
    rows.extend(rows_by_ids(connection, ids).await?.into_iter().map(|mut row| {
        let version_at = row.synced_version_at.map(Timestamp::from);
        let (id, revision) = (row.id.clone(), row.revision.take());
        (id, Found { stored: row.into_stored().map(Object::Membership), signed_in_at: None, version_at, revision })
    }));
    Ok(())
}

/// Writes live memberships. The rows exist and are locked.
pub(super) async fn write(connection: &mut DbConnection<'_>, live: &[LiveRow<'_>]) -> Result<(), StoreError> {
    let rows: Vec<(&Membership, &Version)> = live
        .iter()
        .filter_map(|row| match row.object {
            Object::Membership(membership) => Some((membership, row.version)),
            _ => None,
        })
        .collect();
    let created: Vec<Option<OffsetDateTime>> = rows.iter().map(|(row, _)| row.created_at.map(Into::into)).collect();
    let updated: Vec<OffsetDateTime> = rows.iter().map(|(row, _)| row.updated_at.into()).collect();
    let observed: Vec<OffsetDateTime> = rows.iter().map(|(_, version)| version.observed_at.into()).collect();
    sqlx::query!(
        "-- memberships.write
        update workos.organization_membership_records as stored
        set
            user_id = seen.user_id,
            organization_id = seen.organization_id,
            status = seen.status,
            role = seen.role,
            -- PostgreSQL has no array of arrays of different lengths.
            roles = array(select jsonb_array_elements_text(seen.roles)),
            custom_attributes = seen.custom_attributes,
            directory_managed = seen.directory_managed,
            created_at = seen.created_at,
            updated_at = seen.updated_at,
            synced_extra = seen.extra,
            synced_observed_at = seen.observed_at,
            synced_observation_id = seen.observation,
            synced_at = now(),
            synced_version_at = clock_timestamp()
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::jsonb[], $8::bool[],
            $9::timestamptz[], $10::timestamptz[], $11::jsonb[], $12::timestamptz[], $13::text[]
        ) as seen (
            id, user_id, organization_id, status, role, roles, custom_attributes, directory_managed, created_at,
            updated_at, extra, observed_at, observation
        )
        where
            stored.id = seen.id
            and stored.id = any($1)",
        &rows.iter().map(|(row, _)| &*row.id).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| &*row.of.user_id).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| &*row.of.organization_id).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| &*row.status).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| row.role.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| Json(&row.roles)).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| Json(&row.custom_attributes)).collect::<Vec<_>>() as _,
        &rows.iter().map(|(row, _)| row.directory_managed).collect::<Vec<_>>(),
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

/// Turns rows into tombstones, which keep only the ID, the user, the organization and the time of the deletion.
pub(super) async fn write_tombstones(
    connection: &mut DbConnection<'_>,
    deleted: &[TombstoneRow<'_>],
) -> Result<(), StoreError> {
    let times: Vec<Option<OffsetDateTime>> = deleted.iter().map(|row| row.deleted_at.map(Into::into)).collect();
    sqlx::query!(
        "-- memberships.write_tombstones
        update workos.organization_membership_records as stored
        set
            user_id = deleted.user_id,
            organization_id = deleted.organization_id,
            status = null,
            role = null,
            roles = null,
            custom_attributes = null,
            directory_managed = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_observed_at = null,
            synced_observation_id = null,
            synced_at = null,
            synced_version_at = null,
            synced_deleted = true,
            synced_deleted_at = deleted.at
        from unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[]) as deleted (id, at, user_id, organization_id)
        where
            stored.id = deleted.id
            and stored.id = any($1)",
        &deleted.iter().map(|row| row.id).collect::<Vec<_>>() as _,
        &times as _,
        &deleted.iter().map(|row| row.of.map(|of| &*of.user_id)).collect::<Vec<_>>() as _,
        &deleted.iter().map(|row| row.of.map(|of| &*of.organization_id)).collect::<Vec<_>>() as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A membership that ended because its user was deleted.
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) user_id: String,
}

/// Turns up to `limit` memberships of these users into tombstones, because the users are deleted. The users' rows are locked.
/// Returns the memberships that it ended.
pub(crate) async fn end_of_users(
    connection: &mut DbConnection<'_>,
    users: &[String],
    limit: i64,
) -> Result<Vec<Ended>, StoreError> {
    let ended = sqlx::query!(
        r#"-- memberships.end_of_users
        update workos.organization_membership_records
        set
            status = null,
            role = null,
            roles = null,
            custom_attributes = null,
            directory_managed = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_observed_at = null,
            synced_observation_id = null,
            synced_at = null,
            synced_version_at = null,
            synced_deleted = true
        where
            ctid = any(array(
                select ctid
                from workos.organization_membership_records
                where
                    user_id = any($1)
                    and not synced_deleted
                limit $2
            ))
            -- This statement may have waited for another transaction, which may have ended a membership.
            and not synced_deleted
        returning id, user_id as "user_id!""#,
        users,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(ended.into_iter().map(|row| Ended { id: row.id, user_id: row.user_id }).collect())
}

impl Store {
    /// Returns these memberships, in every status or deleted. Absent ones are omitted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn memberships(&self, ids: &[String]) -> Result<BTreeMap<String, Stored>, StoreError> {
        let rows = self.lookup(async |connection| rows_by_ids(connection, ids).await).await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.into_stored().map(Object::Membership))).collect())
    }

    /// Returns whether there is a membership of this user in this organization, in any status or deleted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn has_membership(&self, user_id: &str, organization_id: &str) -> Result<bool, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- memberships.exists
                select exists (
                    select
                    from workos.organization_membership_records
                    where
                        user_id = $1
                        and organization_id = $2
                ) as "exists!""#,
                user_id,
                organization_id
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Returns up to `limit` memberships of a user, in ID order after the membership ID `after`. It returns those that have not
    /// ended, in any status. Each has the name of its organization, unless the organization has no row.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn memberships_of_user(
        &self,
        user_id: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<(Membership, Option<String>)>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- memberships.of_user
                    select
                        membership.id, membership.user_id, membership.organization_id,
                        membership.status, membership.role, membership.roles,
                        membership.custom_attributes as "custom_attributes: Json<Extra>",
                        membership.directory_managed,
                        membership.created_at, membership.updated_at,
                        membership.synced_extra as "synced_extra: Json<Extra>",
                        membership.synced_observed_at,
                        membership.synced_observation_id,
                        organization.name as "organization_name?"
                    -- A user has few memberships. The offset keeps PostgreSQL from reading those of all users in ID order.
                    from (
                        select *
                        from workos.organization_membership_records
                        where
                            user_id = $1
                            and not synced_deleted
                        offset 0
                    ) as membership
                    -- With a limit, PostgreSQL cannot join a whole table instead of reading one row of it.
                    left join lateral (
                        select candidate.name, candidate.synced_deleted
                        from workos.organization_records as candidate
                        where candidate.id = membership.organization_id
                        limit 1
                    ) as organization on true
                    where
                        membership.id > $2
                        and organization.synced_deleted is not true
                    order by membership.id
                    limit $3"#,
                    user_id,
                    after,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let memberships = rows.into_iter().filter_map(|row| {
            let stored = Row {
                id: row.id,
                user_id: row.user_id,
                organization_id: row.organization_id,
                status: row.status,
                role: row.role,
                roles: row.roles,
                custom_attributes: row.custom_attributes,
                directory_managed: row.directory_managed,
                created_at: row.created_at,
                updated_at: row.updated_at,
                synced_extra: row.synced_extra,
                synced_observed_at: row.synced_observed_at,
                synced_observation_id: row.synced_observation_id,
                synced_deleted: false,
                synced_deleted_at: None,
                synced_version_at: None,
                revision: None,
            };
            Some((stored.into_stored().into_live()?, row.organization_name))
        });
        Ok(memberships.collect())
    }
}
