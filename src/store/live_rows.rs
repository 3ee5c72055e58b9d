//! The live rows of organizations and memberships, in ID order, as reconcile compares them with WorkOS's lists.

use super::{Store, StoreError};
use crate::domain::membership::Sides;
use crate::domain::timestamp::Timestamp;

/// A live organization or membership.
#[derive(Clone, Debug)]
pub(crate) struct LiveObject {
    pub(crate) id: String,
    pub(crate) created_at: Option<Timestamp>,
    /// The user and the organization of a membership.
    pub(crate) of: Option<Sides>,
    /// Whether the organization of the membership has a tombstone.
    pub(crate) is_organization_deleted: bool,
}

impl Store {
    /// Returns the live organizations after an ID.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn live_organizations(&self, after: &str, limit: i64) -> Result<Vec<LiveObject>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- organizations.live
                    select id, created_at
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
            .await?;
        let live = rows.into_iter().map(|row| LiveObject {
            id: row.id,
            created_at: row.created_at.map(Timestamp::from),
            of: None,
            is_organization_deleted: false,
        });
        Ok(live.collect())
    }

    /// Returns the live memberships after an ID, except those of deleted users, which the write path ends.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn live_memberships(&self, after: &str, limit: i64) -> Result<Vec<LiveObject>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- memberships.live
                    select
                        membership.id,
                        membership.user_id as "user_id!",
                        membership.organization_id as "organization_id!",
                        membership.created_at,
                        exists (
                            select
                            from workos.organization_records as organization
                            where
                                organization.id = membership.organization_id
                                and organization.synced_deleted
                        ) as "is_organization_deleted!"
                    from workos.organization_membership_records as membership
                    where
                        membership.id > $1
                        and membership.status is not null
                        and not membership.synced_deleted
                        and not exists (
                            select
                            from workos.user_records as member
                            where
                                member.id = membership.user_id
                                and member.synced_deleted
                        )
                    order by membership.id
                    limit $2"#,
                    after,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let live = rows.into_iter().map(|row| LiveObject {
            id: row.id,
            created_at: row.created_at.map(Timestamp::from),
            of: Some(Sides { user_id: row.user_id, organization_id: row.organization_id }),
            is_organization_deleted: row.is_organization_deleted,
        });
        Ok(live.collect())
    }
}
