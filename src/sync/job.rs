//! The `Job` trait, and the context that all jobs of a process share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use super::job_error::JobError;
use super::job_status::JobFailure;
pub use super::job_status::{JobRun, JobStatus, JobStatuses};
use crate::domain::clock::Clock;
use crate::domain::kinds::Kinds;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::leases::Lease;
use crate::store::{Store, StoreError};
use crate::workos::api::{Api, ApiError};

/// Interval at which a process without the lease of a job tries to get it.
pub const STANDBY: Duration = Duration::from_secs(3);

/// Interval between two requests of one job, well below WorkOS's rate limits (WorkOS's own SDK lists with 350 ms).
pub const REQUEST_INTERVAL: Duration = Duration::from_millis(350);

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
