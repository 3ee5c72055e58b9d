//! `workos.feed_mark`: which changes a standby has replayed.
//!
//! A mark is written on the primary after the end of the feed was read there. Replication keeps the order of commits, so a standby
//! that shows the mark has replayed every change up to its horizon. The mark is a row, not a position in the write-ahead log: such a
//! position says nothing about a standby that follows another primary, and some managed servers do not reveal it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::DbConnection;
use super::pool::{self, Pool};
use super::{Store, StoreError};
use crate::domain::change::Position;
use crate::domain::timestamp::Timestamp;

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Increases by one with each mark of an epoch.
    pub number: i64,
    /// The end of the feed before the mark was written.
    pub position: Position,
    /// The time up to which the users table was complete before the mark was written.
    pub synced_through: Option<Timestamp>,
}

/// The newest mark that the standby has shown, and when it was written.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The mark.
    pub mark: Mark,
    /// A time before the mark was written, so that data read from the standby is not older.
    pub written_at: Instant,
}

/// What the standby has shown. `None`: it must not be used. Cloning is cheap; clones share the value.
#[derive(Clone, Debug, Default)]
pub struct LastShown(Arc<ArcSwapOption<Shown>>);

impl LastShown {
    /// Returns the last mark.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Shown>> {
        self.0.load_full()
    }

    /// Sets the last mark.
    pub fn set(&self, shown: Option<Shown>) {
        self.0.store(shown.map(Arc::new));
    }
}

impl Store {
    /// Returns a store that reads from a standby of this store's database. `timeout` limits each read. Each read first requires that the
    /// standby shows the last mark of `last_shown`, because a standby that restarts can return to an earlier state, and an address can
    /// lead to several standbys. It must not write.
    #[must_use]
    pub fn on_standby(&self, standby: Pool, timeout: Duration, last_shown: LastShown) -> Self {
        Self { required: Some(last_shown), ..self.probing(standby, timeout) }
    }

    /// Returns a store that reads from a standby without this requirement, to read the mark. The caller logs its failures.
    #[must_use]
    pub fn probing(&self, standby: Pool, timeout: Duration) -> Self {
        let begin_read = pool::begin_read(timeout).into();
        Self { timeout, begin_read, failure_log: None, ..self.on_pool(standby.clone()).handlers_on(standby) }
    }

    /// Writes a mark, unless the last one is younger than `interval`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn write_mark(&self, synced_through: Option<Timestamp>, interval: Duration) -> Result<(), StoreError> {
        let head = self.feed_head().await?;
        let synced_through = synced_through.map(OffsetDateTime::from);
        self.write("write mark", || {
            sqlx::query!(
                "-- standby.write_mark
                update workos.feed_mark
                set
                    number = number + 1,
                    epoch = $1,
                    horizon = $2,
                    synced_through = $3,
                    written_at = clock_timestamp()
                -- Also after the clock was set back.
                where written_at not between clock_timestamp() - make_interval(secs => $4) and clock_timestamp()",
                head.epoch,
                head.horizon,
                synced_through,
                interval.as_secs_f64()
            )
        })
        .await?;
        Ok(())
    }

    /// Returns the mark that this server shows, and its age by the server's clock.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn mark(&self) -> Result<(Mark, Duration), StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- standby.mark
                    select
                        number,
                        epoch,
                        horizon,
                        synced_through,
                        extract(epoch from clock_timestamp() - greatest(written_at, 'epoch'))::float8 as "age!"
                    from workos.feed_mark"#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let position = Position { epoch: row.epoch, number: row.horizon };
        let mark = Mark { number: row.number, position, synced_through: row.synced_through.map(Timestamp::from) };
        Ok((mark, Duration::try_from_secs_f64(row.age).unwrap_or_default()))
    }

    /// Requires that a standby shows the last mark.
    pub(super) async fn require_mark(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let Some(last_shown) = &self.required else { return Ok(()) };
        let shown = last_shown.get().ok_or(StoreError::Behind)?;
        let shows_mark = sqlx::query_scalar!(
            r#"-- standby.shows_mark
            select
                number >= $1
                and epoch = $2 as "shows_mark!"
            from workos.feed_mark"#,
            shown.mark.number,
            shown.mark.position.epoch
        )
        .fetch_one(connection)
        .await?;
        if shows_mark { Ok(()) } else { Err(StoreError::Behind) }
    }
}
