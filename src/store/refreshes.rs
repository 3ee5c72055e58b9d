//! `workos.refreshes`: what has to be read from WorkOS again, because an event says that it has changed without saying how.

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use super::StoreError;
use crate::domain::role::Refresh;

/// Requests reads. A request that is still open stays, and its row changes, so that a read that began before does not answer it.
pub(crate) async fn request(connection: &mut PgConnection, wanted: &BTreeSet<&Refresh>) -> Result<(), StoreError> {
    let kinds: Vec<&str> = wanted.iter().map(|refresh| refresh.kind()).collect();
    let ids: Vec<&str> = wanted.iter().map(|refresh| refresh.id()).collect();
    sqlx::query!(
        "-- refreshes.request
        insert into workos.refreshes (kind, id)
        select kind, id
        from unnest($1::text[], $2::text[]) as wanted (kind, id)
        order by kind, id
        on conflict (kind, id) do update
        set
            requested_at = clock_timestamp(),
            due_at = least(refreshes.due_at, now()),
            attempts = 0",
        &kinds as _,
        &ids as _
    )
    .execute(connection)
    .await?;
    Ok(())
}
