//! Finds out whether reads can use the standby, and which changes it has replayed.
//!
//! Each process looks at the standby twice a second, and about once a second one of them writes a mark on the primary
//! (`src/store/standby.rs`). The age of a mark is measured with this process's monotonic clock, so that different clocks of the servers
//! do not matter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::progress::SyncProgress;
use super::runner::BackgroundLoop;
use crate::metrics::Metrics;
use crate::store::lookups::GroupedReads;
use crate::store::standby::{LastShown, Shown};
use crate::store::{DatabaseFailure, Pool, Store, StoreError};

/// Default bound on the age of what is read from the standby.
pub const STALENESS: Duration = Duration::from_secs(10);

/// The smallest bound: a mark is up to a second old before the next one is written, and the standby is looked at twice a second.
pub const MIN_STALENESS: Duration = Duration::from_secs(3);

/// Interval between two looks at the standby.
const INTERVAL: Duration = Duration::from_millis(500);

/// Interval between two marks.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// The standby, as this process sees it.
#[derive(Debug)]
pub(crate) struct Standby {
    primary: Store,
    /// Reads the mark that the standby shows.
    probe: Store,
    /// Reads from the standby what [`Standby::usable`] promises.
    pub(crate) reads: Arc<Store>,
    /// The same for users by ID.
    pub(crate) users: GroupedReads,
    last_shown: LastShown,
    staleness: Duration,
    progress: SyncProgress,
    metrics: Arc<Metrics>,
    /// The marks that this process has read on the primary. The oldest first.
    written: Mutex<VecDeque<Shown>>,
    /// Why the standby could not be used at the last look. `None`: there was no look yet.
    last_look: Mutex<Option<Result<(), String>>>,
}

/// The state of the standby, for operators.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StandbyState {
    /// Whether reads use it.
    pub(crate) used: bool,
    /// The greatest possible age of its data. `None` if it is not used.
    pub(crate) age_seconds: Option<f64>,
    /// What was wrong with it at the last look.
    pub(crate) problem: Option<String>,
}

impl Standby {
    /// Creates it for a standby of `primary`. What is read from it is at most as old as `staleness`.
    pub(crate) fn new(
        primary: Store,
        standby: &Pool,
        staleness: Duration,
        progress: SyncProgress,
        metrics: Arc<Metrics>,
    ) -> Self {
        // The other half of the time remains for the primary.
        let limit = primary.timeout() / 2;
        let last_shown = LastShown::default();
        let reads = primary.on_standby(standby.clone(), limit, last_shown.clone());
        let (users, reads) = (GroupedReads::new(reads.clone()), Arc::new(reads));
        let probe = primary.probing(standby.clone(), limit);
        let (written, last_look) = (Mutex::default(), Mutex::default());
        Self { primary, probe, reads, users, last_shown, staleness, progress, metrics, written, last_look }
    }

    /// Returns the mark that the standby shows, if reads may use it.
    pub(crate) fn usable(&self) -> Option<Arc<Shown>> {
        self.last_shown.get().filter(|shown| shown.written_at.elapsed() <= self.staleness)
    }

    /// Records that a read has failed. The standby is not used again until the next look at it.
    pub(crate) fn note_failure(&self) {
        self.last_shown.set(None);
    }

    /// Returns the state for operators.
    pub(crate) fn state(&self) -> StandbyState {
        let age = self.usable().map(|shown| shown.written_at.elapsed().as_secs_f64());
        let problem = lock(&self.last_look).clone().and_then(Result::err);
        StandbyState { used: age.is_some(), age_seconds: age, problem }
    }

    /// Writes a mark on the primary, if one is due, and remembers the newest one.
    async fn mark(&self) -> Result<(), StoreError> {
        if lock(&self.written).back().is_some_and(|last| last.written_at.elapsed() < MARK_INTERVAL) {
            return Ok(());
        }
        let synced_through = self.progress.progress().synced_through;
        self.primary.write_mark(synced_through, MARK_INTERVAL.mul_f64(0.9)).await?;
        let asked_at = Instant::now();
        let (mark, age) = self.primary.mark().await?;
        let Some(written_at) = asked_at.checked_sub(age) else { return Ok(()) };
        let mut written = lock(&self.written);
        if written.back().is_some_and(|last| last.mark.position.epoch != mark.position.epoch) {
            // Another server was promoted. The earlier positions have expired.
            written.clear();
            self.last_shown.set(None);
        }
        if written.back().is_none_or(|last| last.mark.number < mark.number) {
            written.push_back(Shown { mark, written_at });
        }
        while written.len() > 1 && written[0].written_at.elapsed() > self.staleness {
            written.pop_front();
        }
        Ok(())
    }

    /// Looks at the standby. An error says why reads must not use it.
    async fn look(&self) -> Result<Shown, String> {
        if lock(&self.written).is_empty() {
            return Err("the primary was not read yet".to_owned());
        }
        let (mark, _) = self.probe.mark().await.map_err(what)?;
        let written = lock(&self.written);
        if !written.iter().any(|known| known.mark.position.epoch == mark.position.epoch) {
            return Err("it is not a standby of DATABASE_URL, or has not replayed the last failover yet".to_owned());
        }
        // A mark of another process is newer than the last one that this process has read.
        let replayed = written.iter().rev().find(|known| known.mark.number <= mark.number);
        let replayed = replayed.filter(|known| known.written_at.elapsed() <= self.staleness);
        let behind = || format!("it is more than {} s behind the primary", self.staleness.as_secs_f64());
        let written_at = replayed.ok_or_else(behind)?.written_at;
        Ok(Shown { mark, written_at })
    }

    /// Records the result of a look, and logs whether reads now use another server.
    fn note_look(&self, outcome: Result<Shown, String>) {
        let age = outcome.as_ref().ok().map(|shown| shown.written_at.elapsed().as_secs());
        self.metrics.standby(age.and_then(|age| i64::try_from(age).ok()));
        self.last_shown.set(outcome.clone().ok());
        let outcome = outcome.map(|_| ());
        let before = lock(&self.last_look).replace(outcome.clone());
        if before.is_some_and(|before| before.is_ok() == outcome.is_ok()) {
            return;
        }
        match outcome {
            Ok(()) => tracing::info!("reads of WorkOS's API use the standby"),
            Err(why) => {
                tracing::warn!("reads of WorkOS's API use the primary, because the standby cannot be used: {why}");
            }
        }
    }
}

/// Returns what failed, without the advice, which is for `DATABASE_URL`.
fn what(error: StoreError) -> String {
    error.failure().map_or_else(|| error.to_string(), DatabaseFailure::what)
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BackgroundLoop for Arc<Standby> {
    const NAME: &'static str = "standby";

    async fn tick(&self) -> Duration {
        // If the primary is down, the standby is used until its data is too old.
        if let Err(error) = self.mark().await {
            tracing::debug!(error = %error, "the mark for the standby could not be written");
        }
        let outcome = self.look().await;
        self.note_look(outcome);
        INTERVAL
    }
}
