//! `workos.events` as it is read: by operators, by another try of the quarantine, by the audit and by retention.

use bytes::Bytes;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::{Store, StoreError, Work};
use crate::domain::timestamp::Timestamp;

/// One row, as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
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
pub struct Filter {
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
pub struct Kept {
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
pub struct Kin<'a> {
    /// Only this one.
    pub id: Option<&'a str>,
    /// Only what is in quarantine.
    pub quarantined: bool,
}

/// Events that one feed has brought and the other has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// How many.
    pub events: i64,
    /// Since when.
    pub since: Option<Timestamp>,
}

impl Store {
    /// The newest rows that match, newest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn entries(&self, filter: &Filter, limit: i64) -> Result<Vec<Entry>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.entries
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
        let entries = rows.into_iter().map(|row| Entry {
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
    pub async fn payload(&self, id: &str) -> Result<Option<Bytes>, StoreError> {
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
    pub async fn entry(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        let user = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- events.entry\nselect received_at from workos.events where id = $1", id)
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        let Some(received_at) = user.map(Timestamp::from) else { return Ok(None) };
        let at = Filter { since: Some(received_at), until: Some(received_at.plus_micros(1)), ..Filter::default() };
        Ok(self.entries(&at, i64::MAX).await?.into_iter().find(|entry| entry.id == id))
    }

    /// Kept events behind `after`, in the order in which they came.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn kept(&self, kin: Kin<'_>, after: (Timestamp, &str), limit: i64) -> Result<Vec<Kept>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.kept
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
                    kin.id,
                    kin.quarantined,
                    OffsetDateTime::from(after.0),
                    after.1,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let kept = rows.into_iter().map(|row| Kept {
            id: row.id,
            event_type: row.event_type,
            created_at: row.created_at.map(Timestamp::from),
            received_at: row.received_at.into(),
            payload: row.payload.into(),
        });
        Ok(kept.collect())
    }

    /// Drops payloads that came before `payloads_before` and rows that came before `rows_before`, at most `limit` of each;
    /// returns how many. What is in quarantine stays, but for snapshots: WorkOS can be asked for those again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_events(
        &self,
        payloads_before: Timestamp,
        rows_before: Timestamp,
        limit: i64,
    ) -> Result<u64, StoreError> {
        self.transaction("expire events", &Expire { payloads_before, rows_before, limit }).await
    }

    /// Events of these types that catch-up has brought and no webhook, although the endpoint gets such events; received
    /// between `since` and `until`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missed_by_webhooks(&self, since: Timestamp, until: Timestamp) -> Result<Missed, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.missed_by_webhooks
                    with missed as (
                        select type, count(*) as events, min(received_at) as since
                        from workos.events
                        where
                            -- The index's own words: PostgreSQL does not see that they follow.
                            (webhook_at is null) <> (catch_up_at is null)
                            and webhook_at is null
                            and received_at >= $1
                            and received_at < $2
                        group by type
                    )
                    select coalesce(sum(events), 0)::bigint as "events!", min(since) as since
                    from missed
                    where exists (
                        select from workos.events as sent
                        where sent.type = missed.type and sent.webhook_at is not null
                    )"#,
                    OffsetDateTime::from(since),
                    OffsetDateTime::from(until)
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(Missed { events: row.events, since: row.since.map(Timestamp::from) })
    }

    /// Events of these types that a webhook brought since `since` and catch-up did not, although it has read past them.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missed_by_catch_up(&self, types: &[String], since: Timestamp) -> Result<Missed, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.missed_by_catch_up
                    select count(*) as "events!", min(received_at) as since
                    from workos.events, workos.catch_up
                    where
                        (webhook_at is null) <> (catch_up_at is null)
                        and catch_up_at is null
                        and type = any($1)
                        and received_at >= $2
                        and created_at >= catch_up.range_start
                        and created_at < catch_up.synced_through"#,
                    types,
                    OffsetDateTime::from(since)
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(Missed { events: row.events, since: row.since.map(Timestamp::from) })
    }
}

struct Expire {
    payloads_before: Timestamp,
    rows_before: Timestamp,
    limit: i64,
}

impl Work for Expire {
    type Output = u64;

    async fn run(&self, connection: &mut PgConnection) -> Result<u64, StoreError> {
        let rows = sqlx::query!(
            "-- events.expire_rows
            delete from workos.events
            where id in (
                select id
                from workos.events
                where
                    received_at < $1
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            )",
            OffsetDateTime::from(self.rows_before),
            self.limit
        )
        .execute(&mut *connection)
        .await?;
        let payloads = sqlx::query!(
            "-- events.expire_payloads
            update workos.events
            set payload = null
            where id in (
                select id
                from workos.events
                where
                    received_at < $1
                    and payload is not null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            )",
            OffsetDateTime::from(self.payloads_before),
            self.limit
        )
        .execute(connection)
        .await?;
        Ok(rows.rows_affected() + payloads.rows_affected())
    }
}
