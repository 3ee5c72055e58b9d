//! `workos.events`: the inbox.

use std::collections::HashSet;

use crate::domain::event::Outcome;
use crate::store::DbConnection;
use crate::store::StoreError;
use crate::store::batch::NewEvent;

/// Stores the outcome of successful retries in the quarantined rows, and returns the IDs of these events.
pub(crate) async fn record_retry(
    connection: &mut DbConnection<'_>,
    writes: &[NewEvent<'_>],
) -> Result<HashSet<String>, StoreError> {
    let successful = || writes.iter().filter(|write| write.outcome != Outcome::Quarantined);
    let ids: Vec<String> = successful().map(|write| write.event.id.clone()).collect();
    let outcomes: Vec<String> = successful().map(|write| write.outcome.as_str().to_owned()).collect();
    let reasons: Vec<Option<&str>> = successful().map(|write| write.reason.as_deref()).collect();
    let erased: Vec<bool> = successful().map(|write| write.erased).collect();
    let updated = sqlx::query_scalar!(
        "-- events.record_retry
        update workos.events as kept
        set
            outcome = tried.outcome,
            reason = tried.reason,
            payload = case when not tried.erased then kept.payload end
        from unnest($1::text[], $2::text[], $3::text[], $4::bool[]) as tried (id, outcome, reason, erased)
        where
            kept.id = tried.id
            and kept.outcome = 'quarantined'
        returning kept.id",
        &ids,
        &outcomes,
        &reasons as _,
        &erased
    )
    .fetch_all(connection)
    .await?;
    Ok(updated.into_iter().collect())
}
