//! Erasure of personal data of deleted users. This file contains the only list of columns with personal data. Every deletion,
//! housekeeping and `user ID --erase` use it.

use super::DbConnection;
use super::{Store, StoreError, sessions};

/// Columns with personal data outside of `workos.user_records`, as table and column. `erase` erases each of them, together with
/// `memberships::end_of_users`. Constraints of the tables of objects ensure that a tombstone contains no personal data.
pub const PERSONAL_DATA: [(&str, &str); 5] = [
    ("events", "payload"),
    ("handler_backlog", "message"),
    ("organization_membership_records", "custom_attributes"),
    ("revoked_sessions", "user_id"),
    ("sign_ins", "signed_in_at"),
];

/// Maximum number of rows per table that one transaction erases. If more are left, the transaction adds the user to
/// `workos.erasures`.
pub const BATCH: i64 = 1_000;

/// Maximum number of users in one batch of pending erasures.
const USERS: i64 = 100;

/// The result of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Number of erased payloads of events.
    pub payloads: u64,
    /// Whether all personal data of the users is erased.
    pub complete: bool,
}

/// The erasures that are not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingErasures {
    /// Number of deleted users whose personal data is not completely erased. Counted up to 10,000.
    pub users: i64,
    /// Age of the oldest of them in seconds.
    pub oldest_seconds: i64,
}

/// Erases personal data of these users, at most `limit` rows per table. The caller ends their memberships before, with the same
/// limit (`ended`). Users with remaining data are added to the pending erasures in the same transaction.
///
/// The caller holds locks on the users' rows, which must be tombstones, so that no other transaction can store more about them.
pub(crate) async fn erase(
    connection: &mut DbConnection<'_>,
    users: &[String],
    ended: usize,
    limit: i64,
) -> Result<Erased, StoreError> {
    sessions::delete_of_users(&mut *connection, users).await?;
    // There is at most one row per user.
    sqlx::query!("-- erasure.sign_ins\ndelete from workos.sign_ins where user_id = any($1)", users)
        .execute(&mut *connection)
        .await?;
    let messages = sqlx::query!(
        "-- erasure.messages
        update workos.handler_backlog
        set message = null
        where ctid = any(array(
            select ctid
            from workos.handler_backlog
            where
                user_id = any($1)
                and message is not null
            limit $2
        ))",
        users,
        limit
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let payloads = sqlx::query!(
        "-- erasure.payloads
        update workos.events
        set payload = null
        -- By ctid, so that no plan reads the whole table.
        where ctid = any(array(
            select ctid
            from workos.events
            where
                user_id = any($1)
                and payload is not null
            limit $2
        ))",
        users,
        limit
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let is_full = |rows: u64| i64::try_from(rows).is_ok_and(|rows| rows >= limit);
    let ended = u64::try_from(ended).unwrap_or(u64::MAX);
    let complete = !is_full(messages) && !is_full(payloads) && !is_full(ended);
    if !complete {
        add_pending(connection, users).await?;
    }
    Ok(Erased { payloads, complete })
}

/// Adds the users with remaining personal data to the pending erasures.
async fn add_pending(connection: &mut DbConnection<'_>, users: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- erasure.add_pending
        insert into workos.erasures (user_id)
        select user_id
        from unnest($1::text[]) as deleted (user_id)
        where
            exists (
                select from workos.events
                where events.user_id = deleted.user_id and payload is not null
            )
            or exists (
                select from workos.handler_backlog
                where handler_backlog.user_id = deleted.user_id and message is not null
            )
            or exists (
                select from workos.organization_membership_records as membership
                where membership.user_id = deleted.user_id and not synced_deleted
            )
        on conflict (user_id) do nothing",
        users
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the users with the oldest pending erasures, and returns one batch of them. It skips users that are locked.
pub(crate) async fn lock_pending(connection: &mut DbConnection<'_>) -> Result<Vec<String>, StoreError> {
    let users = sqlx::query_scalar!(
        "-- erasure.lock_pending
        select erasures.user_id
        from workos.erasures
        join workos.user_records as deleted on deleted.id = erasures.user_id
        where deleted.synced_deleted
        order by requested_at
        limit $1
        for no key update of deleted skip locked",
        USERS
    )
    .fetch_all(connection)
    .await?;
    Ok(users)
}

/// Removes the users without remaining personal data from the pending erasures.
pub(crate) async fn remove_completed(connection: &mut DbConnection<'_>, users: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- erasure.remove_completed
        delete from workos.erasures
        where
            user_id = any($1)
            and not exists (
                select from workos.events
                where events.user_id = erasures.user_id and payload is not null
            )
            and not exists (
                select from workos.handler_backlog
                where handler_backlog.user_id = erasures.user_id and message is not null
            )
            and not exists (
                select from workos.organization_membership_records as membership
                where membership.user_id = erasures.user_id and not synced_deleted
            )",
        users
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Returns the erasures that are not complete.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn pending_erasures(&self) -> Result<PendingErasures, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- erasure.pending
                    select
                        (select count(*) from (select from workos.erasures limit 10000) as counted) as "users!",
                        coalesce(extract(epoch from now() - (select min(requested_at) from workos.erasures)), 0)::bigint
                            as "oldest_seconds!""#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(PendingErasures { users: row.users, oldest_seconds: row.oldest_seconds })
    }
}
