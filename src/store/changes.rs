//! `workos.changes`: the change feed.
//!
//! Concurrent writers take positions from a sequence, so a lower position can be committed after a higher one. Readers read up to
//! the horizon of the [`FeedHead`]. No more changes appear at or before the horizon. The comment of `workos.feed_head()` explains
//! how it is determined.

use std::time::Duration;

use sqlx::types::Json;
use time::OffsetDateTime;

use super::DbConnection;
use super::{Store, StoreError, Work};
use crate::domain::change::{Cause, ChangeKind};
use crate::domain::event::{Event, Origin};
use crate::domain::timestamp::Timestamp;

/// The first half of the key of the advisory lock that writers share. `workos.feed_head()` uses the same number.
pub(super) const LOCK: i32 = 1_717_921_124;

/// Maximum total size of the payloads in a page, bytes. The first payload of a page may be larger.
const PAGE_BYTES: i64 = 8 * 1024 * 1024;

/// A change to write to the feed.
pub(crate) struct NewChange<'a> {
    pub(crate) kind: &'a str,
    pub(crate) user_id: Option<&'a str>,
    /// The changed object, unless it is a user.
    pub(crate) object_id: Option<&'a str>,
    pub(crate) changed: &'a [String],
    pub(crate) event: Option<&'a Event>,
    pub(crate) origin: Origin,
    /// Whether the change is the event itself. Such a change is written only if the inbox did not contain the event before.
    pub(crate) only_if_new: bool,
}

/// The end of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedHead {
    /// The history of the database that positions belong to. It changes with `rebind` and in a copied database.
    pub epoch: String,
    /// Every change up to this position is committed, and no other change will appear there.
    pub horizon: i64,
    /// The last position taken from the sequence.
    pub issued: i64,
    /// Changes up to this position have expired.
    pub expired_through: i64,
}

/// A row of the feed.
#[derive(Clone, Debug)]
pub struct ChangeRow {
    /// Its position in the feed.
    pub position: i64,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The ID of the changed user, or of the user whom the change is about.
    pub user_id: Option<String>,
    /// The ID of the changed object, unless it is a user.
    pub object_id: Option<String>,
    /// The names of the fields that an update changed.
    pub changed: Vec<String>,
    /// The event that caused it, if any.
    pub event: Option<Cause>,
    /// How the observation reached us.
    pub origin: Origin,
    /// When it was written.
    pub at: Timestamp,
}

struct Row {
    position: i64,
    kind: String,
    user_id: Option<String>,
    object_id: Option<String>,
    changed: Json<Vec<String>>,
    event_id: Option<String>,
    event_type: Option<String>,
    origin: String,
    at: OffsetDateTime,
}

impl TryFrom<Row> for ChangeRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let kind = ChangeKind::read(&row.kind, row.event_type.as_deref(), row.object_id.is_some());
        let origin = Origin::read(&row.origin);
        let (Some(kind), Some(origin)) = (kind, origin) else {
            return Err(StoreError::Unavailable("a change was written by a newer release; upgrade this one".into()));
        };
        Ok(Self {
            position: row.position,
            kind,
            user_id: row.user_id,
            object_id: row.object_id,
            changed: row.changed.0,
            event: row.event_id.zip(row.event_type).map(|(id, event_type)| Cause { id, event_type }),
            origin,
            at: row.at.into(),
        })
    }
}

impl Store {
    /// Returns the current end of the feed. Later reads see every change up to its horizon.
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

    /// Returns `None` if this database is a copy of another one, to which the epoch belongs.
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

    /// Returns the position up to which changes have expired.
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

    /// Returns the changes after position `after`, up to and including `through`, at most `limit`.
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
                        object_id,
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

    /// Returns one change, unless it has expired.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn change(&self, position: i64) -> Result<Option<ChangeRow>, StoreError> {
        Ok(self.changes(position - 1, position, 1).await?.pop())
    }

    /// Returns the payloads of these events from the inbox, with their IDs, in the given order. The page ends before the payload
    /// that would exceed its size. IDs that are missing from the result belong to the next page.
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
                    PAGE_BYTES
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.payload)).collect())
    }

    /// Deletes at most `limit` changes that are older than `retention`, except those that a handler has not processed yet. Returns
    /// whether there were any.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_changes(&self, retention: Duration, limit: i64) -> Result<bool, StoreError> {
        self.transaction("expire changes", &Expire { seconds: retention.as_secs_f64(), limit }).await
    }
}

/// Gives the feed a new epoch. All positions become invalid, so followers must read all users again.
pub(crate) async fn renew_epoch(connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
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

    /// Deletes the oldest changes first, so followers find no gap. A change in the backlog of a handler stays for that handler. It
    /// is deleted when no backlog contains it any more.
    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<bool, StoreError> {
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
                -- By ctid, so that no plan reads the whole table.
                where ctid = any(array(
                    select candidate.place
                    from (select * from passed union all select * from released) as candidate
                    -- With the limit, PostgreSQL probes an index once for each handler.
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
