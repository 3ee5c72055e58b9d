//! Erasure: what the database stores about a deleted user beside its tombstone, and how that is erased. This file is the one
//! list of it; every deletion, the background job and `user ID --erase` use it.

use sqlx::postgres::PgConnection;

use super::{Store, StoreError};

/// Columns with personal data outside `workos.user_records`, as table and column. A tombstone holds none by the constraint of
/// its own table. Each column here is erased by `erase`.
pub const PERSONAL_DATA: [(&str, &str); 3] =
    [("events", "payload"), ("handler_backlog", "message"), ("sign_ins", "signed_in_at")];

/// Rows of one table that one transaction erases at most. What is left goes to `workos.erasures`.
pub const BATCH: i64 = 1_000;

/// Users of whom one batch of the to-do list erases data.
const USERS: i64 = 100;

/// What one batch has erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Payloads of events.
    pub payloads: u64,
    /// Nothing is left.
    pub complete: bool,
}

/// Erasures that are not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Deleted users of whom personal data is still stored; counted up to 10,000.
    pub users: i64,
    /// How long the oldest of them has waited, in seconds.
    pub oldest_seconds: i64,
}

/// Erases at most `limit` rows of each table that holds personal data of these users, and enters the users of whom more is
/// left into the to-do list, in the same transaction.
///
/// The caller holds the locks of the users' rows, all of them tombstones: no other transaction can store more about them.
pub(crate) async fn erase(connection: &mut PgConnection, users: &[String], limit: i64) -> Result<Erased, StoreError> {
    // One row for each user.
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
        -- By place, so that no plan reads the whole table.
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
    let complete = !is_full(messages) && !is_full(payloads);
    if !complete {
        defer(connection, users).await?;
    }
    Ok(Erased { payloads, complete })
}

/// Enters those of these users into the to-do list of whom personal data is left.
async fn defer(connection: &mut PgConnection, users: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- erasure.defer
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
        on conflict (user_id) do nothing",
        users
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the users who have waited longest in the to-do list, as many as one batch takes. It waits for no lock.
pub(crate) async fn due(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let users = sqlx::query_scalar!(
        "-- erasure.due
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

/// Takes those of these users off the to-do list of whom nothing is left.
pub(crate) async fn complete(connection: &mut PgConnection, users: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- erasure.complete
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
            )",
        users
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// The erasures that are not complete.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn pending_erasures(&self) -> Result<Pending, StoreError> {
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
        Ok(Pending { users: row.users, oldest_seconds: row.oldest_seconds })
    }
}
