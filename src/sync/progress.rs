//! Caches the progress of the sync in every process.
//!
//! Catch-up runs in one process, but lookups in all processes return `synced_through`. So each process reads it from the database
//! every few seconds, and a lookup needs no query for it. The cached value can be older than the stored one, never newer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::catch_up::HOLD_BACK;
use super::runner::BackgroundLoop;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::catch_up::Progress;
use crate::store::sizes::TableSize;
use crate::store::{Store, StoreError};

/// Interval between two reads.
const INTERVAL: Duration = Duration::from_secs(2);

/// Interval between two reads of the number of rows.
const SIZES_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the maximum age of `synced_through` by design, in seconds. Catch-up is [`HOLD_BACK`] behind WorkOS and pauses for up to
/// 1.2 poll intervals, and each process reads the result every two seconds.
pub(crate) fn expected_age(poll_interval: Duration) -> i64 {
    let pauses = poll_interval.saturating_mul(6) / 5 + INTERVAL;
    HOLD_BACK.saturating_add(i64::try_from(pauses.as_secs()).unwrap_or(i64::MAX)).saturating_add(1)
}

pub(crate) fn lag_seconds(now: Timestamp, synced_through: Timestamp, expected_age: i64) -> i64 {
    let age = now.unix_seconds().saturating_sub(synced_through.unix_seconds());
    age.saturating_sub(expected_age).max(0)
}

/// The progress of the sync as last read from the database. Cloning is cheap; clones share it.
#[derive(Clone, Debug)]
pub struct SyncProgress {
    store: Store,
    metrics: Arc<Metrics>,
    cached: Arc<ArcSwap<Progress>>,
    sizes: Arc<ArcSwap<Vec<TableSize>>>,
    /// The maximum age of `synced_through` by design, in seconds.
    expected_age: i64,
    /// When the number of rows was last read.
    sizes_read_at: Arc<Mutex<Option<Instant>>>,
}

impl SyncProgress {
    /// Creates an empty cache. `poll_interval` is catch-up's pause between two polls.
    #[must_use]
    pub fn new(store: Store, metrics: Arc<Metrics>, poll_interval: Duration) -> Self {
        let (cached, sizes, sizes_read_at) = (Arc::default(), Arc::default(), Arc::default());
        Self { store, metrics, cached, sizes, expected_age: expected_age(poll_interval), sizes_read_at }
    }

    /// Returns the progress that was last read from the database.
    #[must_use]
    pub fn progress(&self) -> Progress {
        **self.cached.load()
    }

    /// Returns the number of rows of each large table, at most about a minute old. Empty until they were read.
    #[must_use]
    pub fn sizes(&self) -> Arc<Vec<TableSize>> {
        self.sizes.load_full()
    }

    /// Returns the delay of the table behind WorkOS in seconds, beyond the delay by design, and updates the metric. Returns `None`
    /// while `synced_through` is unknown.
    #[must_use]
    pub fn lag_seconds(&self, now: Timestamp) -> Option<i64> {
        let lag = self.progress().synced_through.map(|at| lag_seconds(now, at, self.expected_age));
        self.metrics.lag(lag);
        lag
    }

    /// Reads the progress from the database.
    ///
    /// # Errors
    /// [`StoreError`]. The cache is unchanged.
    pub async fn refresh(&self) -> Result<Progress, StoreError> {
        let progress = self.store.progress().await?;
        let before = self.cached.swap(Arc::new(progress));
        if progress.backfilled && !before.backfilled {
            // The number of rows that was read before the backfill is useless.
            *self.sizes_read_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let synced_through = progress.synced_through.map(Timestamp::unix_seconds);
        self.metrics.progress(progress.quarantined, synced_through);
        for (kind, is_complete, read) in [
            ("user", progress.backfilled, None),
            ("organization", progress.organizations.backfill_completed, Some(progress.organizations.read)),
            ("organization_membership", progress.memberships.backfill_completed, Some(progress.memberships.read)),
        ] {
            self.metrics.backfill(kind, is_complete, read);
        }
        let erasures = self.store.pending_erasures().await?;
        self.metrics.erasures(erasures.users, erasures.oldest_seconds);
        for (kind, scan) in self.store.scans().await? {
            if let Some(at) = scan.completed_at {
                self.metrics.completed(&kind, at.unix_seconds());
            }
        }
        self.read_sizes().await?;
        Ok(progress)
    }

    /// Reads the number of rows, if that is due.
    async fn read_sizes(&self) -> Result<(), StoreError> {
        let read_at = *self.sizes_read_at.lock().unwrap_or_else(PoisonError::into_inner);
        if read_at.is_some_and(|at| at.elapsed() < SIZES_INTERVAL) {
            return Ok(());
        }
        let sizes = self.store.table_sizes().await?;
        for size in &sizes {
            self.metrics.rows(&size.name, size.live, size.deleted);
        }
        self.sizes.store(Arc::new(sizes));
        *self.sizes_read_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }
}

impl BackgroundLoop for SyncProgress {
    const NAME: &'static str = "progress";

    async fn tick(&self) -> Duration {
        let refreshed = self.refresh().await;
        self.metrics.database_up(refreshed.is_ok());
        if let Err(error) = refreshed {
            tracing::debug!(error = %error, "the progress of the sync could not be read from the database");
        }
        INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_beyond_the_expected_age_and_never_negative() {
        let at = Timestamp::from_unix_micros(1_700_000_000_000_000);
        for (age, lag) in [(-30, 0), (0, 0), (24, 0), (25, 1), (3_624, 3_600)] {
            assert_eq!(lag_seconds(at.plus_seconds(age), at, 24), lag, "{age}");
        }
    }

    #[test]
    fn the_expected_age_is_hold_back_plus_longest_pause_plus_read_interval() {
        assert_eq!(expected_age(Duration::from_secs(5)), 15 + 6 + 2 + 1);
        assert_eq!(expected_age(Duration::from_millis(50)), 15 + 2 + 1);
        assert!(expected_age(Duration::MAX) > 0);
    }
}
