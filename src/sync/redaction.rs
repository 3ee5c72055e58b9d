//! Sets secrets to null in payloads that an earlier release stored, in bounded batches. New payloads never contain them.

use super::erasure::in_batches;
use crate::store::DbConnection;
use crate::store::events::{
    REDACTION_BATCH, advance_redaction, events_to_redact, finish_redaction, lock_redaction, replace_payloads,
};
use crate::store::{Store, StoreError, Work};
use crate::workos::wire;

/// Checks one batch of stored payloads. Returns whether there may be more.
///
/// # Errors
/// [`StoreError`]: nothing of the batch was changed.
pub(super) async fn redact_stored(store: &Store) -> Result<bool, StoreError> {
    in_batches(store, "redact stored payloads", REDACTION_BATCH, |limit| RedactStored { limit }).await
}

struct RedactStored {
    limit: i64,
}

impl Work for RedactStored {
    type Output = bool;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<bool, StoreError> {
        let Some(progress) = lock_redaction(connection).await? else { return Ok(false) };
        let events = events_to_redact(connection, &progress, &wire::REDACTED_TYPE_WORDS, self.limit).await?;
        let Some(last) = events.last() else {
            finish_redaction(connection).await?;
            return Ok(false);
        };
        let (ids, payloads): (Vec<&str>, Vec<Vec<u8>>) = events
            .iter()
            .filter_map(|event| Some((&*event.id, wire::redacted(&event.event_type, event.payload.as_ref()?)?)))
            .unzip();
        if !ids.is_empty() {
            replace_payloads(connection, &ids, &payloads).await?;
        }
        advance_redaction(connection, last).await?;
        Ok(true)
    }
}
