//! Compares the events that webhooks and catch-up delivered, and finds those that one of them missed.

use std::time::Duration;

use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::OVERLAP;
use crate::store::{Store, StoreError};

/// Number of the newest events that are read to find the types that the endpoint receives.
const NEWEST: i64 = 10_000;

/// An event that catch-up read later than this after its creation is not counted as missed: the service was down, or polling was
/// delayed.
const PROMPT: Duration = Duration::from_secs(10 * 60);

/// Maximum number of rows that the comparison of both feeds reads.
const MAX_COMPARED: i64 = 100_000;

/// Events that one feed delivered and the other did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedEvents {
    /// Their number.
    pub events: i64,
    /// When the oldest of them was received.
    pub since: Option<Timestamp>,
}

/// What an audit of webhooks compares.
#[derive(Clone, Copy, Debug)]
pub struct WebhookAudit<'a> {
    /// The types that the endpoint must receive.
    pub expected: &'a [String],
    /// Events that were received in this period.
    pub recent: Duration,
    /// The time in which a webhook can still arrive.
    pub late: Duration,
}

impl Store {
    /// Counts events that catch-up read promptly and no webhook delivered, although the endpoint must receive their type: a type of
    /// [`WebhookAudit::expected`], or one that a webhook has delivered before. It counts only events after the newest one of their
    /// type that a webhook delivered, because that one shows that the endpoint works again. It reads at most the newest 100,000
    /// events of one feed alone.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn missed_by_webhooks(&self, audit: &WebhookAudit<'_>) -> Result<MissedEvents, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.missed_by_webhooks
                    with one_feed as (
                        select type, created_at, received_at
                        from workos.events
                        where
                            -- The condition of the index, which PostgreSQL does not derive from the next one.
                            (webhook_at is null) <> (catch_up_at is null)
                            and webhook_at is null
                            and received_at >= now() - make_interval(secs => $1)
                            and received_at < now() - make_interval(secs => $2)
                            and created_at >= received_at - make_interval(secs => $6)
                        order by received_at desc
                        limit $3
                    ),
                    -- The endpoint may have been created after the first start of catch-up, but not the events before it.
                    start as (
                        select coalesce(max(earliest_range_start) + $7::bigint * interval '1 second', '-infinity') as at
                        from workos.catch_up
                    ),
                    delivered as (
                        select type, max(created_at) as newest_at
                        from (
                            select type, created_at
                            from workos.events
                            where webhook_at is not null and received_at >= now() - make_interval(secs => $1)
                            order by received_at desc
                            limit $5
                        ) as newest
                        group by type
                    ),
                    missed as (
                        select type, count(*) as events, min(received_at) as since
                        from one_feed
                        cross join start
                        left join delivered using (type)
                        where created_at >= start.at and (newest_at is null or created_at > newest_at)
                        group by type
                    )
                    select coalesce(sum(events), 0)::bigint as "events!", min(since) as since
                    from missed
                    -- With this order, PostgreSQL reads one index entry for each type.
                    left join lateral (
                        select sent.type
                        from workos.events as sent
                        where sent.type >= missed.type and sent.webhook_at is not null
                        order by sent.type
                        limit 1
                    ) as sent on true
                    where
                        missed.type = any($4)
                        or sent.type = missed.type"#,
                    audit.recent.as_secs_f64(),
                    audit.late.as_secs_f64(),
                    MAX_COMPARED,
                    audit.expected,
                    NEWEST,
                    PROMPT.as_secs_f64(),
                    OVERLAP
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(MissedEvents { events: row.events, since: row.since.map(Timestamp::from) })
    }

    /// Counts events of these types that a webhook delivered and catch-up did not read, although it has read later events. It
    /// counts events that were received in the last `recent`. It reads at most the newest 100,000 events of one feed alone.
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
                    MAX_COMPARED
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(MissedEvents { events: row.events, since: row.since.map(Timestamp::from) })
    }
}
