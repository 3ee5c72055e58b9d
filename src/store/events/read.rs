//! Reads `workos.events`: for operators, for a retry or replay of events, and for the change feed.

use bytes::Bytes;
use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::timestamp::Timestamp;
use crate::store::{Store, StoreError};

/// A row of the inbox without its payload.
#[derive(Clone, Debug, Serialize)]
pub struct EventSummary {
    /// The ID of the event.
    pub id: String,
    /// For example `user.updated`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The user of the event.
    pub user_id: Option<String>,
    /// When WorkOS created the event.
    pub created_at: Option<Timestamp>,
    /// When it was received.
    pub received_at: Timestamp,
    /// When a webhook first delivered it.
    pub webhook_at: Option<Timestamp>,
    /// When catch-up first read it.
    pub catch_up_at: Option<Timestamp>,
    /// `applied`, `stale`, `ignored` or `quarantined`.
    pub outcome: String,
    /// Why it was not applied.
    pub reason: Option<String>,
    /// Why an operator has dismissed the quarantined event.
    pub dismissed: Option<String>,
    /// Whether the payload was erased or has expired.
    pub erased: bool,
}

/// Selects rows of the inbox. A field that is `None` selects all.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Events with this outcome.
    pub outcome: Option<String>,
    /// Events of this type.
    pub event_type: Option<String>,
    /// Events about this user.
    pub user: Option<String>,
    /// Events received at this time or later.
    pub since: Option<Timestamp>,
    /// Events received before this time.
    pub until: Option<Timestamp>,
    /// Only these events.
    pub ids: Option<Vec<String>>,
}

/// A stored payload, to apply the event again.
#[derive(Clone, Debug)]
pub struct StoredPayload {
    /// The ID of the event.
    pub id: String,
    /// The type of the event.
    pub event_type: String,
    /// When WorkOS created the event.
    pub created_at: Option<Timestamp>,
    /// When it was received.
    pub received_at: Timestamp,
    /// The payload as received, byte for byte, except that secrets of WorkOS are null.
    pub payload: Bytes,
}

/// Selects stored payloads.
#[derive(Clone, Copy, Debug)]
pub struct EventSelection<'a> {
    /// Only the event with this ID.
    pub id: Option<&'a str>,
    /// Only quarantined events. A dismissed one is selected only by its ID.
    pub quarantined: bool,
}

impl Store {
    /// Returns the current time of the database's clock.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let now = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    r#"-- events.now
                    select now() as "now!""#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(now.into())
    }

    /// Returns the matching rows, newest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_summaries(&self, filter: &EventFilter, limit: i64) -> Result<Vec<EventSummary>, StoreError> {
        let (outcome, dismissed) = match filter.outcome.as_deref() {
            Some("dismissed") => (Some("quarantined"), Some(true)),
            Some("quarantined") => (Some("quarantined"), Some(false)),
            other => (other, None),
        };
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.summaries
                    select
                        id,
                        type as event_type,
                        user_id,
                        created_at,
                        received_at,
                        webhook_at,
                        catch_up_at,
                        outcome,
                        events.reason,
                        dismissals.reason as "dismissed?",
                        payload is null as "erased!"
                    from workos.events
                    left join workos.dismissals on dismissals.event_id = events.id and outcome = 'quarantined'
                    where
                        ($1::text is null or outcome = $1)
                        -- A quarantined event is listed as such until it is dismissed.
                        and ($7::bool is null or (dismissals.event_id is not null) = $7)
                        and ($2::text is null or type = $2)
                        and ($3::text is null or user_id = $3)
                        and ($4::timestamptz is null or received_at >= $4)
                        and ($5::timestamptz is null or received_at < $5)
                        and ($8::text[] is null or id = any($8))
                    order by received_at desc, id desc
                    limit $6"#,
                    outcome,
                    filter.event_type,
                    filter.user,
                    filter.since.map(OffsetDateTime::from),
                    filter.until.map(OffsetDateTime::from),
                    limit,
                    dismissed,
                    filter.ids.as_deref()
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let entries = rows.into_iter().map(|row| EventSummary {
            id: row.id,
            event_type: row.event_type,
            user_id: row.user_id,
            created_at: row.created_at.map(Timestamp::from),
            received_at: row.received_at.into(),
            webhook_at: row.webhook_at.map(Timestamp::from),
            catch_up_at: row.catch_up_at.map(Timestamp::from),
            outcome: row.outcome,
            reason: row.reason,
            dismissed: row.dismissed,
            erased: row.erased,
        });
        Ok(entries.collect())
    }

    /// Returns the IDs of the events whose payload contains this ID as a JSON string. Reads the payloads of at most `limit` events: the
    /// newest of the period. An event whose payload was erased or has expired is not found.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn events_naming(
        &self,
        id: &str,
        (since, until): (Option<Timestamp>, Option<Timestamp>),
        limit: i64,
    ) -> Result<Vec<String>, StoreError> {
        let quoted = serde_json::Value::from(id).to_string();
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- events.naming
                select id as "id!"
                from (
                    select id, payload
                    from workos.events
                    where
                        received_at >= coalesce($2::timestamptz, '-infinity')
                        and received_at < coalesce($3::timestamptz, 'infinity')
                    order by received_at desc
                    limit $4
                ) as newest
                where position($1::bytea in payload) > 0"#,
                quoted.as_bytes(),
                since.map(OffsetDateTime::from),
                until.map(OffsetDateTime::from),
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Returns the payload of an event, unless it was erased or has expired.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_payload(&self, id: &str) -> Result<Option<Bytes>, StoreError> {
        let payload = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- events.payload\nselect payload from workos.events where id = $1", id)
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        Ok(payload.flatten().map(Bytes::from))
    }

    /// Returns one row.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_summary(&self, id: &str) -> Result<Option<EventSummary>, StoreError> {
        let received_at = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- events.summary\nselect received_at from workos.events where id = $1", id)
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        let Some(received_at) = received_at.map(Timestamp::from) else { return Ok(None) };
        let filter =
            EventFilter { since: Some(received_at), until: Some(received_at.plus_micros(1)), ..EventFilter::default() };
        Ok(self.event_summaries(&filter, i64::MAX).await?.into_iter().find(|entry| entry.id == id))
    }

    /// Returns the stored payloads after `after`, in the order in which they were received.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn stored_payloads(
        &self,
        selection: EventSelection<'_>,
        after: (Timestamp, &str),
        limit: i64,
    ) -> Result<Vec<StoredPayload>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.stored_payloads
                    select
                        id,
                        type as event_type,
                        created_at,
                        received_at,
                        payload as "payload!"
                    from workos.events
                    where
                        payload is not null
                        and ($1::text is null or id = $1)
                        and (
                            not $2
                            or outcome = 'quarantined'
                            -- A dismissed event is retried only by its ID.
                            and ($1::text is not null or not exists (
                                select from workos.dismissals where dismissals.event_id = events.id
                            ))
                        )
                        and (received_at, id) > ($3, $4)
                    order by received_at, id
                    limit $5"#,
                    selection.id,
                    selection.quarantined,
                    OffsetDateTime::from(after.0),
                    after.1,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let payloads = rows.into_iter().map(|row| StoredPayload {
            id: row.id,
            event_type: row.event_type,
            created_at: row.created_at.map(Timestamp::from),
            received_at: row.received_at.into(),
            payload: row.payload.into(),
        });
        Ok(payloads.collect())
    }
}
