//! `workos.feed_mark`: which changes a standby has replayed.
//!
//! A mark is written on the primary after the end of the feed was read there. Replication keeps the order of commits, so a standby
//! that has replayed the mark has every change up to its position. The mark is a row, not a position in the write-ahead log: such a
//! position says nothing about a standby that follows another primary, and some managed servers do not reveal it.

use std::sync::Arc;
use std::time::Duration;

use super::DbConnection;
use super::hosts::Wanted;
use super::pool::{self, Pool};
use super::{Store, StoreError};
use crate::domain::change::Position;
use crate::domain::timestamp::Timestamp;

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Increases by one with each mark.
    pub number: i64,
    /// The end of the feed before the mark was written.
    pub position: Position,
    /// The time up to which the users table was complete before the mark was written.
    pub synced_through: Option<Timestamp>,
    /// The first backfills that were complete before the mark was written, by their kind in `workos.scans`.
    pub backfilled: Vec<String>,
    /// When the mark was written, by the clock of the primary.
    pub written_at: Timestamp,
}

/// The mark on one server.
#[derive(Clone, Debug)]
pub struct ReadMark {
    /// The mark.
    pub mark: Mark,
    /// The age of the mark, by the clock of this server. Zero if the mark is in its future.
    pub age: Duration,
    /// Whether this server is a standby.
    pub is_standby: bool,
}

impl Store {
    /// Returns a store that reads from a standby of this store's database. `timeout` limits each read. It logs no failures. Do not
    /// write with this store.
    #[must_use]
    pub fn on_standby(&self, standby: Pool, timeout: Duration) -> Self {
        let begin_read = pool::begin_read(timeout).into();
        Self { timeout, begin_read, failure_log: None, ..self.on_pool(standby.clone()).handlers_on(standby) }
    }

    /// Returns the store of a standby with a check before each read: the standby must have replayed this mark. The check is on the
    /// same connection, because a standby can return to an earlier state when it restarts, and one address can lead to several
    /// standbys.
    #[must_use]
    pub fn requiring(&self, mark: Arc<Mark>) -> Self {
        Self { required: Some(mark), ..self.clone() }
    }

    /// Closes the connections to the current host if the URL requires a standby and the host is not a standby any more. Then the
    /// hosts are tested again. Returns whether that was so.
    #[must_use]
    pub fn leaves_promoted_host(&self, is_standby: bool) -> bool {
        let resolver = self.lookups.resolver();
        let is_unwanted = resolver.wanted() == Wanted::Standby && !is_standby;
        if is_unwanted {
            resolver.hosts()[resolver.latest()].cutoff.set();
        }
        is_unwanted
    }

    /// Writes a mark, unless the last one is younger than `interval`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn write_mark(&self, interval: Duration) -> Result<(), StoreError> {
        let head = self.feed_head().await?;
        self.write("write mark", || {
            sqlx::query!(
                "-- standby.write_mark
                update workos.feed_mark
                set
                    number = number + 1,
                    epoch = $1,
                    horizon = $2,
                    synced_through = (
                        select synced_through
                        from workos.catch_up
                        where exists (
                            select
                            from workos.scans
                            where
                                kind in ('backfill', 'reconcile')
                                and completed_at is not null
                        )
                    ),
                    backfilled = array(
                        select kind
                        from workos.scans
                        where
                            kind in ('backfill', 'backfill_organizations', 'backfill_memberships')
                            and completed_at is not null
                        order by kind
                    ),
                    written_at = clock_timestamp()
                -- A time in the future means that the clock was set back.
                where written_at not between clock_timestamp() - make_interval(secs => $3) and clock_timestamp()",
                head.epoch,
                head.horizon,
                interval.as_secs_f64()
            )
        })
        .await?;
        Ok(())
    }

    /// Returns the mark that this server has.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn mark(&self) -> Result<ReadMark, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- standby.mark
                    select
                        number,
                        epoch,
                        horizon,
                        synced_through,
                        backfilled,
                        written_at,
                        extract(epoch from clock_timestamp() - written_at)::float8 as "age!",
                        pg_is_in_recovery() as "is_standby!"
                    from workos.feed_mark"#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let mark = Mark {
            number: row.number,
            position: Position { epoch: row.epoch, number: row.horizon },
            synced_through: row.synced_through.map(Timestamp::from),
            backfilled: row.backfilled,
            written_at: row.written_at.into(),
        };
        let age = Duration::try_from_secs_f64(row.age).unwrap_or_default();
        Ok(ReadMark { mark, age, is_standby: row.is_standby })
    }

    /// Returns [`StoreError::Behind`] unless the standby has replayed the required mark.
    pub(super) async fn require_mark(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let Some(required) = &self.required else { return Ok(()) };
        let has_mark = sqlx::query_scalar!(
            r#"-- standby.has_mark
            select
                number >= $1
                and epoch = $2 as "has_mark!"
            from workos.feed_mark"#,
            required.number,
            required.position.epoch
        )
        .fetch_one(connection)
        .await?;
        if has_mark { Ok(()) } else { Err(StoreError::Behind) }
    }
}
