//! Reads and replaces payloads that an earlier release stored with secrets.

use time::OffsetDateTime;

use crate::store::DbConnection;
use crate::store::StoreError;

/// Maximum number of events that one transaction reads.
pub(crate) const REDACTION_BATCH: i64 = 250;

/// The progress: the last event that was checked, and which events are to be checked.
#[derive(Clone, Debug)]
pub(crate) struct Redaction {
    received_before: OffsetDateTime,
    received_at: OffsetDateTime,
    id: String,
}

/// An event to check.
#[derive(Clone, Debug)]
pub(crate) struct StoredEvent {
    /// The ID of the event.
    pub(crate) id: String,
    /// The type of the event.
    pub(crate) event_type: String,
    received_at: OffsetDateTime,
    /// The payload, if the type contains one of the requested words.
    pub(crate) payload: Option<Vec<u8>>,
}

/// Locks the progress and returns it. Returns `None` if all payloads are clean, or if another process has locked it.
pub(crate) async fn lock_redaction(connection: &mut DbConnection<'_>) -> Result<Option<Redaction>, StoreError> {
    let progress = sqlx::query_as!(
        Redaction,
        "-- events.lock_redaction
        select received_before, received_at, id
        from workos.redaction
        for update skip locked"
    )
    .fetch_optional(connection)
    .await?;
    Ok(progress)
}

/// Returns the next events to check. Only those whose type contains one of these words have a payload.
///
/// Events of the last five minutes are checked later, because an open transaction can still store an event with an earlier
/// `received_at`.
pub(crate) async fn events_to_redact(
    connection: &mut DbConnection<'_>,
    after: &Redaction,
    type_words: &[&str],
    limit: i64,
) -> Result<Vec<StoredEvent>, StoreError> {
    let events = sqlx::query_as!(
        StoredEvent,
        "-- events.to_redact
        select
            id,
            type as event_type,
            received_at,
            case when string_to_array(type, '.') && $1::text[] then payload end as payload
        from workos.events
        where
            (received_at, id) > ($2, $3)
            and received_at < least($4, now() - interval '5 minutes')
        order by received_at, id
        limit $5",
        type_words as _,
        after.received_at,
        after.id,
        after.received_before,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(events)
}

/// Replaces payloads. A payload that was erased since it was read stays erased.
pub(crate) async fn replace_payloads(
    connection: &mut DbConnection<'_>,
    ids: &[&str],
    payloads: &[Vec<u8>],
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- events.replace_payloads
        update workos.events as stored
        set payload = redacted.payload
        from unnest($1::text[], $2::bytea[]) as redacted (id, payload)
        where
            stored.id = redacted.id
            and stored.id = any($1)
            and stored.payload is not null",
        ids as _,
        payloads
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the events up to this one were checked.
pub(crate) async fn advance_redaction(connection: &mut DbConnection<'_>, last: &StoredEvent) -> Result<(), StoreError> {
    sqlx::query!(
        "-- events.advance_redaction
        update workos.redaction
        set
            received_at = $1,
            id = $2",
        last.received_at,
        last.id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the progress if no event is left to check. The caller has found none.
pub(crate) async fn finish_redaction(connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
    sqlx::query!(
        "-- events.finish_redaction
        delete from workos.redaction
        where received_before < now() - interval '5 minutes'"
    )
    .execute(connection)
    .await?;
    Ok(())
}
