//! Checks whether reads can use the standby, and which changes it has replayed.
//!
//! Each process checks the standby twice a second. About once a second, one process writes a mark on the primary
//! (`src/store/standby.rs`). Each process measures the age of a mark with its own monotonic clock, so the clocks of the servers may
//! differ.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::time::Instant;

use super::runner::BackgroundLoop;
use super::standby_report::{ReadFailures, Report};
use crate::metrics::Metrics;
use crate::store::standby::{Mark, ReadMark};
use crate::store::{DatabaseFailure, Pool, Store, StoreError};

/// Default of the maximum age of the standby's data.
pub const STALENESS: Duration = Duration::from_secs(10);

/// The smallest maximum age: marks are written about one second apart, and the standby is checked twice a second.
pub const MIN_STALENESS: Duration = Duration::from_secs(3);

/// The largest maximum age. The marks of this time are in memory.
pub const MAX_STALENESS: Duration = Duration::from_secs(86_400);

/// Interval between two checks of the standby.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Interval between two marks.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// The part of the maximum age below which a standby is used again.
const RESUME_BELOW: f64 = 0.67;

/// A mark, with a lower bound of the time at which it was written.
#[derive(Clone, Debug)]
pub(crate) struct TimedMark {
    pub(crate) mark: Arc<Mark>,
    /// Not later than the time at which the mark was written, by this process's monotonic clock. So data with this mark is not older.
    written_at: Instant,
}

/// The standby, as this process sees it.
#[derive(Debug)]
pub(crate) struct Standby {
    primary: Store,
    /// Reads from the standby.
    store: Store,
    staleness: Duration,
    /// The first backfills that must be complete, by their kind in `workos.scans`.
    needed: Vec<&'static str>,
    metrics: Arc<Metrics>,
    /// The latest mark that the standby has replayed. `None`: reads must not use the standby.
    replayed: ArcSwapOption<TimedMark>,
    /// The marks that this process has read on the primary. The oldest first.
    written: Mutex<VecDeque<TimedMark>>,
    /// Why the standby is not used, or was not used at the last check.
    problem: Mutex<Option<String>>,
    report: Mutex<Report>,
    failures: Mutex<ReadFailures>,
}

/// The state of the standby, for operators.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StandbyState {
    /// Whether reads use it.
    pub(crate) used: bool,
    /// The greatest possible age of its data. `None` if it is not used.
    pub(crate) age_seconds: Option<f64>,
    /// The problem that the last check found.
    pub(crate) problem: Option<String>,
}

impl Standby {
    /// Creates the state for a standby of `primary`. Reads use the standby only if its data is at most as old as `staleness`, and
    /// the backfills in `needed` are complete in it.
    pub(crate) fn new(
        primary: Store,
        standby: Pool,
        staleness: Duration,
        needed: Vec<&'static str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // A read that fails on the standby is repeated on the primary within the same request.
        let store = primary.on_standby(standby, primary.timeout() / 2);
        Self {
            primary,
            store,
            staleness,
            needed,
            metrics,
            replayed: ArcSwapOption::empty(),
            written: Mutex::default(),
            problem: Mutex::default(),
            report: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Returns the mark that the standby has replayed, if reads may use the standby.
    pub(crate) fn usable(&self) -> Option<Arc<TimedMark>> {
        self.replayed.load_full().filter(|replayed| replayed.written_at.elapsed() <= self.staleness)
    }

    /// Returns the store of the standby.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns a store for reads that require this mark.
    pub(crate) fn requiring(&self, mark: &TimedMark) -> Store {
        self.store.requiring(mark.mark.clone())
    }

    /// Records that a read has failed. Unless the failure concerns only this read, the primary answers for some time.
    pub(crate) fn note_failure(&self, error: StoreError) {
        // The data of the caller, a row that the replication has just removed, or one of several standbys behind an address.
        if matches!(error, StoreError::Refused { .. } | StoreError::Conflict { .. } | StoreError::Behind) {
            return;
        }
        let why = describe(error);
        *lock(&self.problem) = Some(failed_read(&why));
        lock(&self.failures).note(why, Instant::now());
        self.replayed.store(None);
    }

    /// Returns the state for operators.
    pub(crate) fn state(&self) -> StandbyState {
        let age = self.usable().map(|replayed| replayed.written_at.elapsed().as_secs_f64());
        StandbyState { used: age.is_some(), age_seconds: age, problem: lock(&self.problem).clone() }
    }

    /// Writes a mark on the primary if one is due, and reads the latest mark from there.
    async fn update_mark(&self) -> Result<(), StoreError> {
        if lock(&self.written).back().is_some_and(|last| last.written_at.elapsed() < MARK_INTERVAL) {
            return Ok(());
        }
        self.primary.write_mark(MARK_INTERVAL.mul_f64(0.9)).await?;
        let asked_at = Instant::now();
        let ReadMark { mark, age, .. } = self.primary.mark().await?;
        let Some(written_at) = asked_at.checked_sub(age) else { return Ok(()) };
        let mut written = lock(&self.written);
        if written.back().is_some_and(|last| last.mark.position.epoch != mark.position.epoch) {
            // Another server was promoted. The earlier positions have expired.
            written.clear();
            self.replayed.store(None);
        }
        if written.back().is_none_or(|last| last.mark.number < mark.number) {
            written.push_back(TimedMark { mark: Arc::new(mark), written_at });
        }
        while written.len() > 1 && written[0].written_at.elapsed() > self.staleness {
            written.pop_front();
        }
        Ok(())
    }

    /// Checks the standby. An error says why reads must not use it.
    async fn check(&self) -> Result<TimedMark, String> {
        if lock(&self.written).is_empty() {
            return Err("no mark could be read on the primary yet".to_owned());
        }
        let ReadMark { mark, is_standby, .. } = self.store.mark().await.map_err(describe)?;
        if self.store.leaves_promoted_host(is_standby) {
            return Err("the host was promoted, so it is not a standby any more".to_owned());
        }
        let written_at = self.written_at(&mark)?;
        if self.needed.iter().any(|kind| !mark.backfilled.iter().any(|complete| complete == kind)) {
            return Err("the first backfill is not complete yet in its data".to_owned());
        }
        Ok(TimedMark { mark: Arc::new(mark), written_at })
    }

    /// Returns when the mark of the standby was written, unless that is too long ago.
    fn written_at(&self, mark: &Mark) -> Result<Instant, String> {
        let written = lock(&self.written);
        // The standby can already have a later mark, which this process has not read on the primary. The latest mark that this
        // process knows then limits the age.
        let known = written.iter().rev().find(|known| known.mark.number <= mark.number);
        let is_foreign = known.is_some_and(|known| mark.written_at < known.mark.written_at);
        if is_foreign || !written.iter().any(|known| known.mark.position.epoch == mark.position.epoch) {
            return Err(
                "it does not replicate the server of DATABASE_URL, or has not replayed the first mark after a promotion yet"
                    .to_owned(),
            );
        }
        // Data whose age is near the limit must not switch between the servers at each check.
        let limit = if self.usable().is_some() { self.staleness } else { self.staleness.mul_f64(RESUME_BELOW) };
        let recent = known.filter(|known| known.written_at.elapsed() <= limit);
        let behind = || format!("its data is more than {} s old", limit.as_secs());
        Ok(recent.ok_or_else(behind)?.written_at)
    }

    /// Records the result of a check. Logs if reads now use another server.
    fn note_check(&self, outcome: Result<TimedMark, String>) {
        let outcome = match lock(&self.failures).current(Instant::now()) {
            Some(why) => Err(failed_read(why)),
            None => outcome,
        };
        let age = outcome.as_ref().ok().map(|replayed| replayed.written_at.elapsed().as_secs());
        self.metrics.standby(age.and_then(|age| i64::try_from(age).ok()));
        let problem = outcome.as_ref().err().cloned();
        self.replayed.store(outcome.ok().map(Arc::new));
        if lock(&self.report).is_due(problem.as_deref(), Instant::now()) {
            match &problem {
                None => tracing::info!("the standby answers /user_management, /organizations and /authorization"),
                Some(why) => tracing::warn!(
                    "the primary answers /user_management, /organizations and /authorization, because the standby cannot be used: {why}"
                ),
            }
        }
        *lock(&self.problem) = problem;
    }
}

/// Describes the failure without its advice, because the advice names `DATABASE_URL`.
fn describe(error: StoreError) -> String {
    error.failure().map_or_else(|| error.to_string(), DatabaseFailure::what)
}

fn failed_read(why: &str) -> String {
    format!("a read has failed: {why}")
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BackgroundLoop for Arc<Standby> {
    const NAME: &'static str = "standby";

    async fn tick(&self) -> Duration {
        // Concurrently: if the primary does not answer, the standby is used until its data is too old.
        let (marked, outcome) = tokio::join!(self.update_mark(), self.check());
        let outcome = outcome.map_err(|why| match marked {
            Ok(()) => why,
            Err(error) => format!("{why}; the mark could not be written on the primary: {}", describe(error)),
        });
        self.note_check(outcome);
        CHECK_INTERVAL
    }
}
