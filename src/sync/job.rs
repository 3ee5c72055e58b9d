//! The `Job` trait, the context that all jobs of a process share, their errors, and the backoff after an error.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::job_status::JobFailure;
pub use super::job_status::{JobRun, JobStatus, JobStatuses};
use crate::domain::clock::Clock;
use crate::domain::kinds::Kinds;
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::leases::Lease;
use crate::store::{Store, StoreError};
use crate::workos::api::{Api, ApiError};

/// Interval at which a process without the lease of a job tries to get it.
pub const STANDBY: Duration = Duration::from_secs(3);

/// Interval between two requests of one job, well below WorkOS's rate limits (WorkOS's own SDK lists with 350 ms).
pub const REQUEST_INTERVAL: Duration = Duration::from_millis(350);

/// Pause after WorkOS rejected the API key, and after the key check failed.
const KEY_REJECTED_PAUSE: Duration = Duration::from_secs(5 * 60);
const KEY_CHECK_PAUSE: Duration = Duration::from_secs(3 * 60);

/// Pause after an error that only an operator can resolve.
const OPERATOR_PAUSE: Duration = Duration::from_secs(3_600);

/// Backoff after a failure. It doubles from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Background work in steps. A [`Runner`](super::runner::Runner) manages the lease, the backoff and the status of the job, so that
/// a test or a simulation can run single steps.
pub trait Job: Send + 'static {
    /// The job's name in the log, in metrics, in the status and in its lease.
    const NAME: &'static str;

    /// The result of a step.
    type Output: Send;

    /// Returns whether only one process at a time may run the job.
    fn needs_lease(&self) -> bool {
        true
    }

    /// Returns the pause if the job has nothing to do. Called before the lease is taken.
    fn rest_if_idle(&mut self) -> impl Future<Output = Result<Option<Duration>, JobError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Discards the state that the job keeps from earlier steps. Called when another process has the lease.
    fn reset(&mut self) {}

    /// Runs one step. It can panic, and it can be dropped at any await point. Neither loses data.
    fn step(&mut self) -> impl Future<Output = Result<Self::Output, JobError>> + Send;

    /// Returns whether the step was the last one. After the last one, the lease is released.
    fn is_last(_output: &Self::Output) -> bool {
        false
    }

    /// Returns how many objects the scan has compared so far, if the step was part of a scan that is still running.
    fn compared(_output: &Self::Output) -> Option<i64> {
        None
    }

    /// Returns the pause after a step.
    fn rest_after(&self, output: Self::Output) -> Duration;
}

/// Why a step of a background job failed. If an operator must act, the message says how.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A request to WorkOS failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A statement or a transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// WorkOS requested a pause from this job, in this process or in another one, and the pause has not ended.
    #[error("WorkOS requested a pause, which ends in {} s", left.as_secs())]
    Paused {
        /// The remaining time of the pause.
        left: Duration,
    },
    /// WorkOS does not know most users of a sample of our live users.
    #[error(
        "WorkOS does not know {unknown} of {sampled} sampled users, so WORKOS_API_KEY probably belongs to another \
         environment. Nothing was changed. Correct the key. If these users were really deleted at WorkOS, run \
         `authkit-sync reconcile --accept-deletions`. If this database was copied from another environment, run \
         `authkit-sync rebind`"
    )]
    WrongKey {
        /// The size of the sample.
        sampled: usize,
        /// Users of the sample that WorkOS does not know, without a delete event.
        unknown: usize,
    },
    /// A 404 does not contain the ID, and no live user can be read by ID. The answer may not come from WorkOS.
    #[error(
        "WorkOS answered 404 without an `entity_id`, and no live user can be read by ID, so the answer may come from \
         another server. Nothing was deleted. Check WORKOS_API_HOSTNAME and any proxy between the service and WorkOS"
    )]
    NotConfirmed,
    /// Reconcile would delete more objects of a kind than it may without the permission of an operator.
    #[error(
        "more than {bound} {} no longer exist at WorkOS, and no event reported their deletion. None was deleted here. If \
         they were really deleted at WorkOS, run `authkit-sync reconcile --accept-deletions`",
        kind.plural()
    )]
    TooMany {
        /// The number of objects it may delete without permission.
        bound: usize,
        /// The kind of the objects.
        kind: Kind,
    },
    /// WorkOS lists no objects of a kind. Reconcile deletes none.
    #[error(
        "WorkOS lists no {0}, but {live} {0} are live here. Nothing was changed. Check WORKOS_API_KEY and \
         WORKOS_API_HOSTNAME",
        kind.plural()
    )]
    EmptyList {
        /// The number of live objects here.
        live: i64,
        /// The kind of the objects.
        kind: Kind,
    },
    /// A Rust handler has the name of a SQL handler.
    #[error(
        "the handler name {0} is already used by a SQL handler; choose another name, or remove that handler with \
         `authkit-sync handlers remove {0}`"
    )]
    NameTaken(String),
    /// The scan of a list of WorkOS never reaches the last page.
    #[error("a list of WorkOS starts again from the first page each time; the scan is retried later")]
    Endless,
    /// WorkOS rejects a cursor that it has just returned.
    #[error(
        "WorkOS rejected a new catch-up cursor before the last page; catch-up restarts from `synced_through`. If this \
         repeats, report the cursor in `workos.catch_up` to WorkOS"
    )]
    CursorRejected,
    /// The Events API lists events newest first.
    #[error(
        "the Events API lists events newest first; the events of the page are applied, and the cursor does not move"
    )]
    NewestFirst,
}

impl JobError {
    /// Returns whether a retry can succeed. If not, an operator must act.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Api(error) => matches!(error, ApiError::Unavailable { .. }),
            Self::Store(error) => !matches!(error, StoreError::Unfit(_)),
            Self::Paused { .. } | Self::Endless | Self::CursorRejected | Self::NewestFirst => true,
            Self::WrongKey { .. }
            | Self::NotConfirmed
            | Self::TooMany { .. }
            | Self::EmptyList { .. }
            | Self::NameTaken(_) => false,
        }
    }

    /// Returns whether the failure is reported once elsewhere: the store logs failures of the database, and `serve` ends when the
    /// database is unfit.
    pub(super) fn is_reported_elsewhere(&self) -> bool {
        let Self::Store(error) = self else { return false };
        let is_state = matches!(error, StoreError::Unfit(_) | StoreError::Unbound | StoreError::Overtaken);
        is_state || error.failure().is_some()
    }

    /// Returns the pause before the next attempt, after `failures` consecutive failures. `jitter` is in `0.0..1.0`.
    fn backoff(&self, failures: u32, jitter: f64) -> Duration {
        let longest = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(LONGEST_BACKOFF);
        // Half of it is jitter, so that replicas do not send their requests at the same time.
        let jittered = longest.mul_f64(0.5 + jitter / 2.0);
        match self {
            Self::Api(ApiError::KeyRefused { .. }) => KEY_REJECTED_PAUSE,
            Self::Api(ApiError::Unavailable { retry_after: Some(pause), .. }) => (*pause).max(jittered),
            Self::Paused { left } => *left,
            Self::WrongKey { .. } | Self::NotConfirmed => KEY_CHECK_PAUSE,
            Self::TooMany { .. } | Self::EmptyList { .. } => OPERATOR_PAUSE,
            Self::Api(ApiError::Refused { .. })
            | Self::Endless
            | Self::CursorRejected
            | Self::NewestFirst
            | Self::NameTaken(_) => LONGEST_BACKOFF,
            Self::Store(StoreError::Overtaken) => FIRST_BACKOFF,
            Self::Api(ApiError::Unavailable { .. }) | Self::Store(_) => jittered,
        }
    }
}

/// What the jobs of a process share. Cloning is cheap; all clones belong to one process.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// The database.
    pub store: Store,
    /// The WorkOS API.
    pub api: Api,
    /// The clock.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The status of the jobs in this process.
    pub jobs: Arc<JobStatuses>,
    /// What is synced.
    pub kinds: Kinds,
    /// The name of this process in leases.
    pub holder: Arc<str>,
    random: Arc<Mutex<fastrand::Rng>>,
    /// The jobs whose lease this process holds.
    held: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl JobContext {
    /// Creates the context of one process. `seed` determines its name in leases and its jitter.
    #[must_use]
    pub fn new(store: Store, api: Api, clock: Clock, metrics: Arc<Metrics>, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let holder = format!("{:032x}", random.u128(..)).into();
        let random = Arc::new(Mutex::new(random));
        let (jobs, held) = (Arc::default(), Arc::default());
        Self { store, api, clock, metrics, jobs, kinds: Kinds::ALL, holder, random, held }
    }

    /// Sets what is synced. Default: everything except sign-ins.
    #[must_use]
    pub fn syncing(self, kinds: Kinds) -> Self {
        Self { kinds, ..self }
    }

    /// Returns the same context on another connection pool.
    #[must_use]
    pub fn on_store(&self, store: Store) -> Self {
        Self { store, ..self.clone() }
    }

    fn jitter(&self) -> f64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }

    /// Returns the duration, changed at random by up to 20 %.
    pub(super) fn jittered(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.jitter())
    }

    /// Takes or renews the lease of a job, and returns whether this process holds it.
    ///
    /// # Errors
    /// [`JobError::Paused`] if this process holds the lease, but WorkOS has requested a pause from the job.
    pub(super) async fn hold_lease(&self, job: &'static str) -> Result<bool, JobError> {
        let Lease { held, pause, .. } = self.take_lease(job).await?;
        if !held {
            self.jobs.set(job, "standby", self.clock.now());
        }
        match pause {
            Some(left) => Err(JobError::Paused { left }),
            None => Ok(held),
        }
    }

    async fn take_lease(&self, job: &'static str) -> Result<Lease, StoreError> {
        let lease = self.store.hold_lease(job, &self.holder).await?;
        self.api.note_second_clock(lease.now);
        self.metrics.clock_ahead("database", self.clock.now().unix_seconds() - lease.now.unix_seconds());
        self.metrics.lease(job, lease.held);
        let mut jobs = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.held {
            jobs.insert(job)
        } else {
            jobs.remove(job)
        };
        Ok(lease)
    }

    /// Renews the lease of a job, if this process holds it.
    pub(super) async fn renew_lease(&self, job: &'static str) {
        if self.holds(job) {
            // If it fails, the next renewal or the next step reports it.
            let _ = self.take_lease(job).await;
        }
    }

    /// Stores the pause that WorkOS requested in the database, because it applies to every process.
    pub(crate) async fn store_pause(&self, job: &str, error: &JobError) {
        let JobError::Api(ApiError::Unavailable { retry_after: Some(pause), .. }) = error else { return };
        if let Err(error) = self.store.pause_job(job, *pause).await {
            tracing::debug!(
                job,
                error = %error,
                "the pause that WorkOS requested could not be stored, so other processes do not observe it"
            );
        }
    }

    /// Records the result of a step, and returns the pause before the next one. `Ok(None)` means that another process has the
    /// lease.
    pub(crate) async fn finish_step(
        &self,
        job: &'static str,
        failures: &mut u32,
        outcome: Result<Option<Duration>, JobError>,
    ) -> Duration {
        let now = self.clock.now();
        let rest = self.record_outcome(job, failures, outcome, now).await;
        self.note_pause(job, now, rest);
        rest
    }

    fn note_pause(&self, job: &'static str, now: Timestamp, rest: Duration) {
        let micros = i64::try_from(rest.as_micros()).unwrap_or(i64::MAX);
        self.jobs.note_run(job, |run| run.next_at = Some(now.plus_micros(micros)));
    }

    /// Records that a tick of a background loop panicked, and that the next one begins after a pause.
    pub(crate) fn note_panic(&self, name: &'static str, pause: Duration) {
        let now = self.clock.now();
        self.metrics.restart(name);
        self.metrics.job(name, false);
        self.jobs.set_panicked(name, now);
        self.note_pause(name, now, pause);
    }

    /// Records that a tick of a background loop succeeded after one that panicked.
    pub(crate) fn note_end_of_panics(&self, name: &'static str) {
        // A job that has failed since then, or has recorded a success, has another status.
        if self.jobs.remove_panicked(name) {
            self.metrics.job(name, true);
        }
    }

    async fn record_outcome(
        &self,
        job: &'static str,
        failures: &mut u32,
        outcome: Result<Option<Duration>, JobError>,
        now: Timestamp,
    ) -> Duration {
        if let Err(JobError::Paused { left }) = outcome {
            return left;
        }
        self.metrics.job(job, outcome.is_ok());
        match outcome {
            Ok(rest) => {
                *failures = 0;
                if rest.is_some() {
                    self.jobs.set(job, "working", now);
                }
                rest.unwrap_or(STANDBY)
            }
            // Another process did the step. This is not an error.
            Err(error @ JobError::Store(StoreError::Overtaken)) => error.backoff(0, 0.0),
            // Reported where it is detected.
            Err(JobError::Store(StoreError::Unbound)) => STANDBY,
            Err(error) => {
                self.jobs.set_failing(job, &failure(&error, *failures), now);
                self.store_pause(job, &error).await;
                let rest = error.backoff(*failures, self.jitter());
                *failures = failures.saturating_add(1);
                rest
            }
        }
    }

    /// Returns the pause after `failures` consecutive failures.
    #[must_use]
    pub fn backoff(&self, error: &JobError, failures: u32) -> Duration {
        error.backoff(failures, self.jitter())
    }

    /// Releases the lease of a job, if this process holds it.
    pub(super) async fn release_lease_if_held(&self, job: &'static str) {
        if self.holds(job) {
            self.release_lease(job).await;
        }
    }

    fn holds(&self, job: &'static str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(job)
    }

    /// Releases the lease of a job.
    pub(super) async fn release_lease(&self, job: &'static str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
        self.metrics.lease(job, false);
        // If it fails, the lease expires by itself.
        let _ = self.store.release_leases(&self.holder, Some(job)).await;
    }

    /// Releases every lease, so that other processes take over at once. Called at shutdown.
    ///
    /// # Errors
    /// [`StoreError`]: other processes take over when the leases have expired.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.store.release_leases(&self.holder, None).await
    }
}

fn failure(error: &JobError, failures: u32) -> JobFailure {
    JobFailure {
        text: error.to_string(),
        is_temporary: error.is_temporary(),
        is_reported_elsewhere: error.is_reported_elsewhere(),
        is_of_workos: matches!(error, JobError::Api(ApiError::Unavailable { .. })),
        failures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_is_bounded_and_observes_the_pause_of_workos() {
        let failed = |retry_after| {
            let (host, why) = (String::new(), String::new());
            JobError::Api(ApiError::Unavailable { host, why, status: None, retry_after })
        };
        let pauses: Vec<Duration> = (0..9).map(|failures| failed(None).backoff(failures, 0.0)).collect();
        assert!(pauses.is_sorted() && pauses[0] >= Duration::from_millis(500), "{pauses:?}");
        assert!(failed(None).backoff(u32::MAX, 0.999) <= LONGEST_BACKOFF);
        let pause = Duration::from_secs(90);
        assert_eq!(failed(Some(pause)).backoff(0, 0.5), pause);
        assert_eq!(
            JobError::Api(ApiError::KeyRefused { host: String::new(), status: 401 }).backoff(0, 0.5),
            KEY_REJECTED_PAUSE
        );
    }
}
