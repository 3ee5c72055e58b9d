//! Pages of `workos.user_records`.

use super::Row;
use crate::domain::user::User;
use crate::store::pages::{Page, PageOf, Range};
use crate::store::{Store, StoreError};

impl Store {
    /// Returns a page of live users, or of those with this email address, which is not case-sensitive. Reads one range of one
    /// index, for late pages too.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn users_page(&self, email: Option<&str>, of: &PageOf<'_>) -> Result<Page<User>, StoreError> {
        let Range { upward, from, limit } = of.range();
        let users = match email {
            Some(email) => self.with_email(email, upward, from, limit).await?,
            None => self.with_any_email(upward, from, limit).await?,
        };
        Ok(of.page(users, |user| &user.id))
    }

    async fn with_any_email(&self, upward: bool, from: &str, limit: i64) -> Result<Vec<User>, StoreError> {
        let rows = if upward {
            self.lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.page_up
                    select
                        id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
                        metadata as "metadata: _", last_sign_in_at, locale, created_at, updated_at,
                        synced_extra as "synced_extra: _", synced_observed_at, synced_observation_id,
                        synced_deleted, synced_deleted_at
                    from workos.user_records
                    where
                        id > $1
                        and email is not null
                        and not synced_deleted
                    order by id
                    limit $2"#,
                    from,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?
        } else {
            self.lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.page_down
                    select
                        id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
                        metadata as "metadata: _", last_sign_in_at, locale, created_at, updated_at,
                        synced_extra as "synced_extra: _", synced_observed_at, synced_observation_id,
                        synced_deleted, synced_deleted_at
                    from workos.user_records
                    where
                        id < $1
                        and email is not null
                        and not synced_deleted
                    order by id desc
                    limit $2"#,
                    from,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?
        };
        Ok(rows.into_iter().filter_map(live).collect())
    }

    /// Finds all users with the address first, then selects the page among them, because only few users share an address. Without
    /// `materialized`, PostgreSQL would read the whole table in ID order.
    async fn with_email(&self, email: &str, upward: bool, from: &str, limit: i64) -> Result<Vec<User>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.page_by_email
                    with matching as materialized (
                        select *
                        from workos.user_records
                        where
                            lower(email collate "C") = lower($1 collate "C")
                            and email is not null
                    )
                    select
                        id as "id!", email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
                        metadata as "metadata: _", last_sign_in_at, locale, created_at, updated_at,
                        synced_extra as "synced_extra: _", synced_observed_at, synced_observation_id,
                        synced_deleted as "synced_deleted!", synced_deleted_at
                    from matching
                    where case when $2 then id > $3 else id < $3 end
                    order by
                        case when $2 then id end,
                        id desc
                    limit $4"#,
                    email,
                    upward,
                    from,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().filter_map(live).collect())
    }

    /// Returns the live user with this external ID. If there are several, because an external ID was given to another user, returns
    /// the one with the highest version.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn user_by_external_id(&self, external_id: &str) -> Result<Option<User>, StoreError> {
        // PostgreSQL text cannot contain NUL, so no user has such an ID.
        if external_id.contains('\0') {
            return Ok(None);
        }
        let row = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.by_external_id
                    select
                        id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
                        metadata as "metadata: _", last_sign_in_at, locale, created_at, updated_at,
                        synced_extra as "synced_extra: _", synced_observed_at, synced_observation_id,
                        synced_deleted, synced_deleted_at
                    from workos.user_records
                    where external_id = $1
                    order by
                        updated_at desc,
                        synced_observed_at desc,
                        synced_observation_id desc
                    limit 1"#,
                    external_id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.and_then(live))
    }
}

fn live(row: Row) -> Option<User> {
    row.into_stored().into_live()
}
