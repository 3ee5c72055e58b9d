//! How far the table is complete, as every process knows it.
//!
//! Catch-up runs in one process; lookups in all of them say how far the table is synced through. So each reads it from the
//! database every few seconds, and a lookup costs no round trip for it. What it says may be late, never early.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::job::Job;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::catch_up::Progress;
use crate::store::{Store, StoreError};

/// Between two reads.
const INTERVAL: Duration = Duration::from_secs(2);

/// What this process knows. Cloning is cheap; clones share it.
#[derive(Clone, Debug)]
pub struct SyncProgress {
    store: Store,
    metrics: Arc<Metrics>,
    held: Arc<ArcSwap<Progress>>,
}

impl SyncProgress {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, held: Arc::default() }
    }

    /// As last read.
    #[must_use]
    pub fn progress(&self) -> Progress {
        **self.held.load()
    }

    /// Reads it now.
    ///
    /// # Errors
    /// [`StoreError`]: what was known stays.
    pub async fn refresh(&self) -> Result<Progress, StoreError> {
        let progress = self.store.progress().await?;
        self.held.store(Arc::new(progress));
        let synced_through = progress.synced_through.map(Timestamp::unix_seconds);
        self.metrics.progress(progress.quarantined, synced_through);
        let erasures = self.store.pending_erasures().await?;
        self.metrics.erasures(erasures.users, erasures.oldest_seconds);
        Ok(progress)
    }
}

impl Job for SyncProgress {
    const NAME: &'static str = "progress";

    async fn tick(&self) -> Duration {
        if let Err(error) = self.refresh().await {
            tracing::debug!(error = %error, "progress could not be read");
        }
        INTERVAL
    }
}
