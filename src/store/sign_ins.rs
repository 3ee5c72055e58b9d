//! `workos.sign_ins`: the last sign-in of each user according to session events, also of users that are not synced yet.

use time::OffsetDateTime;

use super::DbConnection;
use super::StoreError;
use crate::domain::timestamp::Timestamp;

/// Stores the latest sign-in of each user. The caller has locked the users, and none of them is deleted.
pub(crate) async fn record(connection: &mut DbConnection<'_>, seen: &[(&str, Timestamp)]) -> Result<(), StoreError> {
    let users: Vec<&str> = seen.iter().map(|(user, _)| *user).collect();
    let instants: Vec<OffsetDateTime> = seen.iter().map(|(_, at)| (*at).into()).collect();
    sqlx::query!(
        "-- sign_ins.record
        insert into workos.sign_ins as stored (user_id, signed_in_at)
        select user_id, max(at)
        from unnest($1::text[], $2::timestamptz[]) as seen (user_id, at)
        group by user_id
        on conflict (user_id) do update
        set signed_in_at = excluded.signed_in_at
        where stored.signed_in_at < excluded.signed_in_at",
        &users as _,
        &instants
    )
    .execute(connection)
    .await?;
    Ok(())
}
