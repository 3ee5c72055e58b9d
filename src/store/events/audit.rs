//! Compares what webhooks and catch-up delivered: which events did one of them miss?

use std::time::Duration;

use crate::domain::timestamp::Timestamp;
use crate::store::{Store, StoreError};

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

impl Store {
    /// Counts events that catch-up read and no webhook delivered, of types that webhooks deliver. It counts events that were received
    /// in the last `recent`, but not in the last `late`. It reads at most the newest 100,000 events of one feed alone.
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
                            -- The condition of the index, which PostgreSQL does not derive from the next one.
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
                    -- With this order, PostgreSQL reads one index entry for each type.
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
                    MAX_COMPARED
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(MissedEvents { events: row.events, since: row.since.map(Timestamp::from) })
    }

    /// Counts events of these types that a webhook delivered and catch-up did not read, although it has read later events. It counts
    /// events that were received in the last `recent`. It reads at most the newest 100,000 events of one feed alone.
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
