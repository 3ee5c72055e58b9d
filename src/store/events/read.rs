//! `workos.events` as it is read: by operators, by another try of the quarantine, by the audit and by retention.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use crate::domain::timestamp::Timestamp;
use crate::store::{Store, StoreError, Work};

/// Rows that the audit looks at.
const AUDITED: i64 = 100_000;

/// One row, as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct EventSummary {
    /// The event's id.
    pub id: String,
    /// For example `user.updated`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The user it is about.
    pub user_id: Option<String>,
    /// When WorkOS made it.
    pub created_at: Option<Timestamp>,
    /// When it came here.
    pub received_at: Timestamp,
    /// When a webhook first brought it.
    pub webhook_at: Option<Timestamp>,
    /// When catch-up first brought it.
    pub catch_up_at: Option<Timestamp>,
    /// What became of it.
    pub outcome: String,
    /// Why.
    pub reason: Option<String>,
    /// Its bytes are no longer kept.
    pub erased: bool,
}

/// Which rows; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Of this outcome.
    pub outcome: Option<String>,
    /// Of this type.
    pub event_type: Option<String>,
    /// About this user.
    pub user: Option<String>,
    /// Received at this instant or later.
    pub since: Option<Timestamp>,
    /// Received before this instant.
    pub until: Option<Timestamp>,
}

/// What is kept of an event, to apply it once more.
#[derive(Clone, Debug)]
pub struct StoredPayload {
    /// The event's id.
    pub id: String,
    /// Its type.
    pub event_type: String,
    /// When WorkOS made it.
    pub created_at: Option<Timestamp>,
    /// When it came here.
    pub received_at: Timestamp,
    /// Its bytes.
    pub payload: Bytes,
}

/// Which kept events to go through.
#[derive(Clone, Copy, Debug)]
pub struct EventSelection<'a> {
    /// Only this one.
    pub id: Option<&'a str>,
    /// Only what is in quarantine.
    pub quarantined: bool,
}

/// Events that one feed has brought and the other has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedEvents {
    /// How many.
    pub events: i64,
    /// Since when.
    pub since: Option<Timestamp>,
}

impl Store {
    /// The present instant by the database's clock.
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

    /// The newest rows that match, newest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_summaries(&self, filter: &EventFilter, limit: i64) -> Result<Vec<EventSummary>, StoreError> {
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
                        reason,
                        payload is null as "erased!"
                    from workos.events
                    where
                        ($1::text is null or outcome = $1)
                        and ($2::text is null or type = $2)
                        and ($3::text is null or user_id = $3)
                        and ($4::timestamptz is null or received_at >= $4)
                        and ($5::timestamptz is null or received_at < $5)
                    order by received_at desc, id desc
                    limit $6"#,
                    filter.outcome,
                    filter.event_type,
                    filter.user,
                    filter.since.map(OffsetDateTime::from),
                    filter.until.map(OffsetDateTime::from),
                    limit
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
            erased: row.erased,
        });
        Ok(entries.collect())
    }

    /// An event's bytes, as long as they are kept.
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

    /// One event, as an operator sees it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_summary(&self, id: &str) -> Result<Option<EventSummary>, StoreError> {
        let user = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- events.summary\nselect received_at from workos.events where id = $1", id)
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        let Some(received_at) = user.map(Timestamp::from) else { return Ok(None) };
        let at =
            EventFilter { since: Some(received_at), until: Some(received_at.plus_micros(1)), ..EventFilter::default() };
        Ok(self.event_summaries(&at, i64::MAX).await?.into_iter().find(|entry| entry.id == id))
    }

    /// Stored payloads behind `after`, in the order in which they came.
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
                        and (not $2 or outcome = 'quarantined')
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
        let kept = rows.into_iter().map(|row| StoredPayload {
            id: row.id,
            event_type: row.event_type,
            created_at: row.created_at.map(Timestamp::from),
            received_at: row.received_at.into(),
            payload: row.payload.into(),
        });
        Ok(kept.collect())
    }

    /// Drops payloads that are older than `retention`, at most `limit`, and returns how many. Quarantined ones stay, but for
    /// snapshots: WorkOS can be asked for those again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_payloads(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        self.transaction("expire payloads", &ExpirePayloads { seconds: retention.as_secs_f64(), limit }).await
    }

    /// Drops rows that are older than `retention`, at most `limit`, and returns how many; see
    /// [`expire_payloads`](Self::expire_payloads).
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_rows(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        self.transaction("expire rows", &ExpireRows { seconds: retention.as_secs_f64(), limit }).await
    }

    /// Events that catch-up has brought and no webhook, although webhooks bring events of that type. It looks at events
    /// received within `recent` but not within `late`, at the newest 100,000 of them that one feed alone has brought.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missed_by_webhooks(&self, recent: Duration, late: Duration) -> Result<MissedEvents, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.missed_by_webhooks
                    with one_feed as (
                        select type, received_at
                        from workos.events
                        where
                            -- The index's own words: PostgreSQL does not see that they follow.
                            (webhook_at is null) <> (catch_up_at is null)
                            and webhook_at is null
                            and received_at >= now() - make_interval(secs => $1)
                            and received_at < now() - make_interval(secs => $2)
                        order by received_at desc
                        limit $3
                    ),
                    missed as (
                        select type, count(*) as events, min(received_at) as since
                        from one_feed
                        group by type
                    )
                    select coalesce(sum(events), 0)::bigint as "events!", min(since) as since
                    from missed
                    -- The order makes it one probe of an index for each type, whatever the table's size.
                    cross join lateral (
                        select sent.type
                        from workos.events as sent
                        where sent.type >= missed.type and sent.webhook_at is not null
                        order by sent.type
                        limit 1
                    ) as sent
                    where sent.type = missed.type"#,
                    recent.as_secs_f64(),
                    late.as_secs_f64(),
                    AUDITED
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(MissedEvents { events: row.events, since: row.since.map(Timestamp::from) })
    }

    /// Events of these types, received within `recent`, that a webhook brought and catch-up did not, although it has read
    /// past them. It looks at the newest 100,000 that one feed alone has brought.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missed_by_catch_up(&self, types: &[String], recent: Duration) -> Result<MissedEvents, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.missed_by_catch_up
                    with one_feed as (
                        select type, created_at, received_at
                        from workos.events
                        where
                            (webhook_at is null) <> (catch_up_at is null)
                            and catch_up_at is null
                            and received_at >= now() - make_interval(secs => $2)
                        order by received_at desc
                        limit $3
                    )
                    select count(*) as "events!", min(received_at) as since
                    from one_feed, workos.catch_up
                    where
                        type = any($1)
                        and created_at >= catch_up.range_start
                        and created_at < catch_up.synced_through"#,
                    types,
                    recent.as_secs_f64(),
                    AUDITED
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(MissedEvents { events: row.events, since: row.since.map(Timestamp::from) })
    }
}

struct ExpirePayloads {
    seconds: f64,
    limit: i64,
}

impl Work for ExpirePayloads {
    type Output = u64;

    async fn run(&self, connection: &mut PgConnection) -> Result<u64, StoreError> {
        let payloads = sqlx::query!(
            "-- events.expire_payloads
            update workos.events
            set payload = null
            -- By place, so that no plan reads the whole table.
            where ctid = any(array(
                select ctid
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is not null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            ))",
            self.seconds,
            self.limit
        )
        .execute(connection)
        .await?;
        Ok(payloads.rows_affected())
    }
}

struct ExpireRows {
    seconds: f64,
    limit: i64,
}

impl Work for ExpireRows {
    type Output = u64;

    /// Rows with and without a payload have an index each.
    async fn run(&self, connection: &mut PgConnection) -> Result<u64, StoreError> {
        let rows = sqlx::query!(
            "-- events.expire_rows
            with without_payload as (
                select ctid as place
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            ),
            with_payload as (
                select ctid as place
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is not null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            )
            delete from workos.events
            where ctid = any(array(
                select place from without_payload
                union all
                select place from with_payload
                limit $2
            ))",
            self.seconds,
            self.limit
        )
        .execute(connection)
        .await?;
        Ok(rows.rows_affected())
    }
}
