//! `workos.user_records` in pages, by id: for WorkOS's ids, by creation. A cursor is any id, whether or not a user has it.

use super::Row;
use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::{Store, StoreError};

/// Which way a list runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// Which page.
#[derive(Clone, Copy, Debug)]
pub struct PageOf<'a> {
    /// Only users of this address, whatever its case.
    pub email: Option<&'a str>,
    /// Which way the list runs.
    pub order: Order,
    /// What comes right before this id in the list.
    pub before: Option<&'a str>,
    /// What comes right after this id in the list.
    pub after: Option<&'a str>,
    /// Users at most.
    pub limit: usize,
}

/// One page.
#[derive(Clone, Debug)]
pub struct UsersPage {
    /// In the list's order.
    pub users: Vec<User>,
    /// There are users before the first.
    pub before: bool,
    /// There are users after the last.
    pub after: bool,
}

/// Greater than every id: text compares bytewise, and no character has greater bytes.
const END: &str = "\u{10FFFF}";

impl Store {
    /// A page of live users: one range of one index, however deep.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn users_page(&self, of: &PageOf<'_>) -> Result<UsersPage, StoreError> {
        // Towards greater ids, and from where?
        let (upward, from) = match (of.order, of.before, of.after) {
            (Order::Ascending, None, after) => (true, after.unwrap_or_default()),
            (Order::Ascending, Some(before), _) => (false, before),
            (Order::Descending, None, after) => (false, after.unwrap_or(END)),
            (Order::Descending, Some(before), _) => (true, before),
        };
        let one_more = i64::try_from(of.limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut users = match of.email {
            Some(email) => self.with_email(email, upward, from, one_more).await?,
            None => self.with_any_email(upward, from, one_more).await?,
        };
        let more = users.len() > of.limit;
        users.truncate(of.limit);
        // Behind the cursor there is whoever the caller came from; without a cursor nobody.
        let came_from = of.before.is_some() || of.after.is_some();
        let backwards = of.before.is_some();
        if backwards {
            users.reverse();
        }
        let (before, after) = if backwards { (more, came_from) } else { (came_from, more) };
        Ok(UsersPage { users, before, after })
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

    /// Few users share an address, so the index on it finds them all first, and the page is cut from those: left to itself
    /// PostgreSQL would rather walk the ids.
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

    /// The live user with this external id; of several the one of the highest version, because WorkOS may hand the id on.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn user_by_external_id(&self, external_id: &str) -> Result<Option<User>, StoreError> {
        // PostgreSQL's text holds no NUL, so nobody has such an id.
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
    match row.into_stored() {
        Stored::Live { user, .. } => Some(*user),
        Stored::Tombstone { .. } | Stored::Absent => None,
    }
}
