//! `workos.changes`: the change feed.
//!
//! Positions are drawn while writers run side by side, so a lower one may commit after a higher one. Readers go no further
//! than the [`FeedHead`]'s horizon, below which nothing will appear any more; how that is known is written at
//! `workos.feed_head()`.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::{Store, StoreError, Work};
use crate::domain::change::{Cause, ChangeKind};
use crate::domain::event::{Event, Origin};
use crate::domain::timestamp::Timestamp;

/// The first half of the key of the lock that writers share. `workos.feed_head()` knows it too.
pub(super) const LOCK: i32 = 1_717_921_124;

/// Payloads in one page, bytes; the first of a page comes whatever its size.
const PAYLOADS: i64 = 8 * 1024 * 1024;

/// A change on its way into the feed.
pub(crate) struct NewChange<'a> {
    pub(crate) kind: &'a str,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) changed: &'a [String],
    pub(crate) event: Option<&'a Event>,
    pub(crate) origin: Origin,
    /// The change is the event itself: it is told only if the inbox did not hold the event before.
    pub(crate) only_if_new: bool,
}

/// How far the feed can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedHead {
    /// Which history of the database positions belong to.
    pub epoch: String,
    /// Every change up to here is committed, and none will ever appear there.
    pub horizon: i64,
    /// The last position drawn.
    pub issued: i64,
    /// Changes up to here are no longer kept.
    pub expired_through: i64,
}

/// A row of the feed.
#[derive(Clone, Debug)]
pub struct ChangeRow {
    /// Where it stands.
    pub position: i64,
    /// What it is.
    pub kind: ChangeKind,
    /// The user it is about.
    pub user_id: Option<String>,
    /// The names of the fields that an update changed.
    pub changed: Vec<String>,
    /// The event that brought it.
    pub event: Option<Cause>,
    /// How it reached us.
    pub origin: Origin,
    /// When it was committed here.
    pub at: Timestamp,
}

struct Row {
    position: i64,
    kind: String,
    user_id: Option<String>,
    changed: Json<Vec<String>>,
    event_id: Option<String>,
    event_type: Option<String>,
    origin: String,
    at: OffsetDateTime,
}

impl TryFrom<Row> for ChangeRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let kind = ChangeKind::read(&row.kind, row.event_type.as_deref());
        let origin = Origin::read(&row.origin);
        let (Some(kind), Some(origin)) = (kind, origin) else {
            return Err(StoreError::Unavailable("a change was written by a newer release; upgrade this one".into()));
        };
        Ok(Self {
            position: row.position,
            kind,
            user_id: row.user_id,
            changed: row.changed.0,
            event: row.event_id.zip(row.event_type).map(|(id, event_type)| Cause { id, event_type }),
            origin,
            at: row.at.into(),
        })
    }
}

impl Store {
    /// How far the feed can be read now. What is asked afterwards sees every change up to the horizon.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn feed_head(&self) -> Result<FeedHead, StoreError> {
        if let Some(head) = self.head().await? {
            return Ok(head);
        }
        self.write("renew epoch", || {
            sqlx::query!(
                "-- changes.renew_foreign_epoch
                update workos.feed
                set
                    epoch = left(gen_random_uuid()::text, 8),
                    identity = workos.feed_identity()
                where identity <> workos.feed_identity()"
            )
        })
        .await?;
        self.head().await?.ok_or(StoreError::Overtaken)
    }

    /// `None`: the epoch belongs to another database or server, of which this one is a copy.
    async fn head(&self) -> Result<Option<FeedHead>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- changes.head
                    select
                        epoch,
                        horizon as "horizon!",
                        issued as "issued!",
                        expired_through as "expired_through!"
                    from workos.feed_head()"#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let (horizon, issued, expired_through) = (row.horizon, row.issued, row.expired_through);
        Ok(row.epoch.map(|epoch| FeedHead { epoch, horizon, issued, expired_through }))
    }

    /// Changes up to here are no longer kept.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expired_through(&self) -> Result<i64, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!("-- changes.expired_through_now\nselect expired_through from workos.feed")
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// The changes behind `after`, up to and with `through`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn changes(&self, after: i64, through: i64, limit: i64) -> Result<Vec<ChangeRow>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- changes.page
                    select
                        position,
                        kind,
                        user_id,
                        changed as "changed: Json<Vec<String>>",
                        event_id,
                        event_type,
                        origin,
                        at
                    from workos.changes
                    where
                        position > $1
                        and position <= $2
                    order by position
                    limit $3"#,
                    after,
                    through,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        rows.into_iter().map(ChangeRow::try_from).collect()
    }

    /// One change, if it is still kept.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn change(&self, position: i64) -> Result<Option<ChangeRow>, StoreError> {
        Ok(self.changes(position - 1, position, 1).await?.pop())
    }

    /// What the inbox still holds of these events, by id, as they were received: as many in the order given as go into one
    /// page. An event that is not among the answer's ids was left for the next page.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn event_payloads(&self, ids: &[String]) -> Result<Vec<(String, Option<Vec<u8>>)>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- events.payloads
                    with named as (
                        select
                            id,
                            payload,
                            sum(coalesce(octet_length(payload), 0)) over (order by n) as bytes,
                            n
                        from unnest($1::text[]) with ordinality as wanted (id, n)
                        left join workos.events using (id)
                    )
                    select id as "id!", payload
                    from named
                    where
                        n = 1
                        or bytes <= $2
                    order by n"#,
                    ids,
                    PAYLOADS
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.payload)).collect())
    }

    /// Drops changes that are older than `retention`, at most so many; whether there were any. What a handler has yet to take
    /// stays.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_changes(&self, retention: Duration, limit: i64) -> Result<bool, StoreError> {
        self.transaction("expire changes", &Expire { seconds: retention.as_secs_f64(), limit }).await
    }
}

/// Gives the feed another epoch: whoever holds a position has to begin anew.
pub(crate) async fn renew_epoch(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- changes.renew_epoch\nupdate workos.feed set epoch = left(gen_random_uuid()::text, 8)")
        .execute(connection)
        .await?;
    Ok(())
}

struct Expire {
    seconds: f64,
    limit: i64,
}

impl Work for Expire {
    type Output = bool;

    /// From the front, so that followers meet no hole. What stands in a backlog stays for its handler alone; it is dropped
    /// once no backlog holds it any more.
    async fn run(&self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        let through = sqlx::query_scalar!(
            "-- changes.expire
            with oldest as (
                select position, at, ctid as place
                from workos.changes
                where position > (select expired_through from workos.feed)
                order by position
                limit $2
            ),
            bound as (
                select min(position) as position
                from (
                    select position from oldest where at >= now() - make_interval(secs => $1)
                    union all
                    select position + 1 from workos.handlers
                ) as kept
            ),
            passed as (
                select position, place
                from oldest
                where position < coalesce((select position from bound), 9223372036854775807)
            ),
            released as (
                select position, ctid as place
                from workos.changes
                where position <= (select expired_through from workos.feed)
                order by position
                limit $2
            ),
            dropped as (
                delete from workos.changes
                -- By place, so that no plan reads the whole table.
                where ctid = any(array(
                    select candidate.place
                    from (select * from passed union all select * from released) as candidate
                    -- The limit makes it one probe of an index for each handler.
                    left join lateral (
                        select true as is_needed
                        from workos.handlers
                        join workos.handler_backlog as backlog
                            on backlog.handler = handlers.name and backlog.position = candidate.position
                        where not from_start
                        limit 1
                    ) as waiting on true
                    where is_needed is null
                ))
            )
            select max(position) from passed",
            self.seconds,
            self.limit
        )
        .fetch_one(&mut *connection)
        .await?;
        let Some(through) = through else { return Ok(false) };
        sqlx::query!(
            "-- changes.expired_through
            update workos.feed
            set expired_through = greatest(expired_through, $1)",
            through
        )
        .execute(connection)
        .await?;
        Ok(true)
    }
}
