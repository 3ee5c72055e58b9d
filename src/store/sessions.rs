//! `workos.revoked_sessions`: sessions that WorkOS has revoked within the last 30 days.

use super::DbConnection;
use super::{Store, StoreError};

/// Retention period of a revoked session, in days. No access token is valid for longer.
const DAYS: i32 = 30;

/// Stores revoked sessions with their users. The first revocation of a session counts. The caller has locked the users.
pub(crate) async fn revoke(
    connection: &mut DbConnection<'_>,
    sessions: &[(&str, Option<&str>)],
) -> Result<(), StoreError> {
    let ids: Vec<&str> = sessions.iter().map(|(id, _)| *id).collect();
    let users: Vec<Option<&str>> = sessions.iter().map(|(_, user)| *user).collect();
    sqlx::query!(
        "-- sessions.revoke
        insert into workos.revoked_sessions (id, user_id)
        select id, user_id
        from unnest($1::text[], $2::text[]) as revoked (id, user_id)
        order by id
        on conflict (id) do nothing",
        &ids as _,
        &users as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the sessions of deleted users: every token of such a user is refused.
pub(crate) async fn delete_of_users(connection: &mut DbConnection<'_>, users: &[String]) -> Result<(), StoreError> {
    sqlx::query!("-- sessions.delete_of_users\ndelete from workos.revoked_sessions where user_id = any($1)", users)
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Deletes at most `limit` sessions that were revoked more than 30 days ago. Returns whether there were any.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn expire_revoked_sessions(&self, limit: i64) -> Result<bool, StoreError> {
        let deleted = self
            .write("expire sessions", || {
                sqlx::query!(
                    "-- sessions.expire
                    delete from workos.revoked_sessions
                    where id = any(array(
                        select id
                        from workos.revoked_sessions
                        where revoked_at < now() - make_interval(days => $1)
                        order by revoked_at
                        limit $2
                    ))",
                    DAYS,
                    limit
                )
            })
            .await?;
        Ok(deleted > 0)
    }
}
