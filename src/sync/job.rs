//! What background jobs share: the `Job` trait, the context of the process, errors, and the rest after each error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::leases::Lease;
use crate::store::{Store, StoreError};
use crate::workos::api::{Api, ApiError};

/// How often a process that does not do a job asks whether it may.
pub const STANDBY: Duration = Duration::from_secs(3);

/// Interval between two requests of one job: well below WorkOS's limits (its own SDK paces lists at 350 ms).
pub const REQUEST_INTERVAL: Duration = Duration::from_millis(350);

/// Rest after WorkOS rejected the API key, and after the key check failed.
const SUSPENDED: Duration = Duration::from_secs(5 * 60);
const SUSPECTED: Duration = Duration::from_secs(3 * 60);

/// Rest after an error that only an operator can resolve.
const STOPPED: Duration = Duration::from_secs(3_600);

/// Rest after a failure: it doubles from the first to the longest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Background work in steps. A [`Runner`](super::runner::Runner) runs it: it owns the lease, the backoff and the status, so that
/// a test or a simulation can run single steps.
pub trait Job: Send + 'static {
    /// The job's name in the log, in metrics, in the status and in its lease.
    const NAME: &'static str;

    /// The result of a step.
    type Output: Send;

    /// Whether only one process at a time may run the job.
    fn needs_lease(&self) -> bool {
        true
    }

    /// Returns how long to rest if the job has nothing to do. Called before the lease is taken.
    fn rest_if_idle(&mut self) -> impl Future<Output = Result<Option<Duration>, JobError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Discards what the job remembers of earlier steps. Called when another process has the lease.
    fn reset(&mut self) {}

    /// Runs one step. It may panic, and may be dropped at any await point: neither loses anything.
    fn step(&mut self) -> impl Future<Output = Result<Self::Output, JobError>> + Send;

    /// Whether the step was the last one: then the lease is released.
    fn is_last(_output: &Self::Output) -> bool {
        false
    }

    /// Returns how long to rest after a step.
    fn rest_after(&self, output: Self::Output) -> Duration;
}

/// Why a step of a background job failed. Each message says what to do, if there is anything to do.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// WorkOS gave no usable answer.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A statement or a transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// WorkOS asked for a pause that is not over yet. Another process may have run the job at that time.
    #[error("WorkOS asked for a pause; {} s are left", left.as_secs())]
    Paused {
        /// The rest of the pause.
        left: Duration,
    },
    /// WorkOS does not know most users of a sample of our live users.
    #[error(
        "{unknown} of {sampled} live users are unknown to WorkOS: WORKOS_API_KEY is the suspect (another environment's?), \
         and nothing is changed. If these users are meant to be gone, run `authkit-sync reconcile --accept-deletions`; if \
         this database was copied from another environment, run `authkit-sync rebind`"
    )]
    WrongKey {
        /// The size of the sample.
        sampled: usize,
        /// Users of the sample that WorkOS does not know, without a delete event.
        unknown: usize,
    },
    /// A 404 without the ID, and no live user can be read by ID: any server may have answered.
    #[error(
        "WorkOS answers 404 without an `entity_id`, and no live user can be read by ID: the API address is the suspect \
         (WORKOS_API_HOSTNAME), or a proxy before it. No deletion is inferred"
    )]
    NotConfirmed,
    /// Reconcile would delete more users than it may without confirmation.
    #[error(
        "more than {bound} users are gone at WorkOS without an event that says so, and none was deleted here. If they are \
         meant to be gone, run `authkit-sync reconcile --accept-deletions`"
    )]
    TooMany {
        /// The number it may delete without confirmation.
        bound: usize,
    },
    /// WorkOS lists no user: reconcile deletes nobody.
    #[error(
        "WorkOS lists no users, but {live} are live here; nothing is changed. Check WORKOS_API_KEY and the API address"
    )]
    NobodyListed {
        /// Live users here.
        live: i64,
    },
    /// A handler in Rust has the name of a handler in SQL.
    #[error(
        "the name {0} belongs to a handler in SQL; choose another name, or remove that handler with `authkit-sync handlers \
         remove {0}`"
    )]
    NameTaken(String),
    /// The scan of WorkOS's list of users does not end.
    #[error("WorkOS's list of users repeatedly starts from the first page; the scan is restarted later")]
    Endless,
    /// WorkOS rejects a cursor that it has just returned.
    #[error(
        "WorkOS rejected catch-up's cursor again before the last page; catch-up restarts from `synced_through`. If \
         this repeats, report the cursor in `workos.catch_up` to WorkOS"
    )]
    CursorRefused,
    /// The Events API lists events newest first.
    #[error("the Events API lists events newest first; they are applied, and the cursor is not moved")]
    Backwards,
}

impl JobError {
    /// Whether a retry can succeed. If not, an operator must act.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Api(error) => matches!(error, ApiError::Unavailable { .. }),
            Self::Store(error) => !matches!(error, StoreError::Unfit(_)),
            Self::Paused { .. } | Self::Endless | Self::CursorRefused | Self::Backwards => true,
            Self::WrongKey { .. }
            | Self::NotConfirmed
            | Self::TooMany { .. }
            | Self::NobodyListed { .. }
            | Self::NameTaken(_) => false,
        }
    }

    /// Returns the rest before the next attempt, after `failures` consecutive failures. `jitter` is in `0.0..1.0`.
    fn rest(&self, failures: u32, jitter: f64) -> Duration {
        let backoff = FIRST_REST.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(LONGEST_REST);
        // Half of it is jitter, so that replicas do not send their requests at the same time.
        let jittered = backoff.mul_f64(0.5 + jitter / 2.0);
        match self {
            Self::Api(ApiError::KeyRefused(_)) => SUSPENDED,
            Self::Api(ApiError::Unavailable { retry_after: Some(wish), .. }) => (*wish).max(jittered),
            Self::Paused { left } => *left,
            Self::WrongKey { .. } | Self::NotConfirmed => SUSPECTED,
            Self::TooMany { .. } | Self::NobodyListed { .. } => STOPPED,
            Self::Api(ApiError::Refused { .. })
            | Self::Endless
            | Self::CursorRefused
            | Self::Backwards
            | Self::NameTaken(_) => LONGEST_REST,
            Self::Store(StoreError::Overtaken) => FIRST_REST,
            Self::Api(ApiError::Unavailable { .. }) | Self::Store(_) => jittered,
        }
    }
}

/// The status of a job in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// `working`, `standby` (another process runs it) or `trouble`.
    pub state: &'static str,
    /// The error of the last step.
    pub trouble: Option<String>,
    /// When the status last changed.
    pub since: Timestamp,
}

/// The status of every job in this process.
#[derive(Debug, Default)]
pub struct JobStatuses(Mutex<BTreeMap<&'static str, JobStatus>>);

impl JobStatuses {
    /// Returns the current status of every job.
    #[must_use]
    pub fn standing(&self) -> BTreeMap<&'static str, JobStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the status of a job, and logs it if it changed.
    fn note(&self, name: &'static str, state: &'static str, trouble: Option<String>, now: Timestamp) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = jobs.get(name);
        if before.is_some_and(|job| job.state == state && job.trouble == trouble) {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::error!(job = name, "{trouble}"),
            None if before.is_some_and(|job| job.trouble.is_some()) => {
                tracing::info!(job = name, "the job works again")
            }
            None => tracing::debug!(job = name, state, "background job"),
        }
        jobs.insert(name, JobStatus { state, trouble, since: now });
    }
}

/// What the jobs of a process share. Cloning is cheap; all clones belong to one process.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// The database.
    pub store: Store,
    /// WorkOS's API.
    pub api: Api,
    /// Tells the time.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The status of the jobs in this process.
    pub jobs: Arc<JobStatuses>,
    /// Sessions are stored as sign-ins (`AUTHKIT_SYNC_SESSION_SIGN_INS`).
    pub session_sign_ins: bool,
    /// This process's name in leases.
    pub holder: Arc<str>,
    random: Arc<Mutex<fastrand::Rng>>,
    /// The jobs whose lease this process keeps.
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
        Self { store, api, clock, metrics, jobs, session_sign_ins: false, holder, random, held }
    }

    /// Sets whether sessions are stored as sign-ins.
    #[must_use]
    pub fn storing_sign_ins(self, session_sign_ins: bool) -> Self {
        Self { session_sign_ins, ..self }
    }

    /// Returns the same context on another connection pool.
    #[must_use]
    pub fn on_store(&self, store: Store) -> Self {
        Self { store, ..self.clone() }
    }

    fn jitter(&self) -> f64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }

    /// Returns the duration changed by up to 20 % at random.
    pub(super) fn about(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.jitter())
    }

    /// Takes or renews the lease of a job. Returns whether this process holds it.
    ///
    /// # Errors
    /// [`JobError::Paused`] if this process holds the lease, but WorkOS asked the job for a pause.
    pub(super) async fn leads(&self, job: &'static str) -> Result<bool, JobError> {
        let Lease { held, pause, .. } = self.hold(job).await?;
        if !held {
            self.jobs.note(job, "standby", None, self.clock.now());
        }
        match pause {
            Some(left) => Err(JobError::Paused { left }),
            None => Ok(held),
        }
    }

    async fn hold(&self, job: &'static str) -> Result<Lease, StoreError> {
        let lease = self.store.hold_lease(job, &self.holder).await?;
        self.api.note_second_clock(lease.now);
        let mut jobs = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.held {
            jobs.insert(job)
        } else {
            jobs.remove(job)
        };
        Ok(lease)
    }

    /// Renews the lease of a job, if this process holds it.
    pub(super) async fn keep(&self, job: &'static str) {
        let holds = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(job);
        if holds {
            // If it fails, the next renewal or the next step reports it.
            let _ = self.hold(job).await;
        }
    }

    /// Stores the pause that WorkOS asked for, so that every process observes it.
    pub(crate) async fn pass_on_pause(&self, job: &str, trouble: &JobError) {
        let JobError::Api(ApiError::Unavailable { retry_after: Some(pause), .. }) = trouble else { return };
        if let Err(error) = self.store.pause_job(job, *pause).await {
            tracing::debug!(
                job,
                error = %error,
                "the pause that WorkOS asked for could not be stored; only this process observes it"
            );
        }
    }

    /// Records the result of a step, and returns how long to rest. `None`: another process has the lease.
    pub(crate) async fn rest(
        &self,
        job: &'static str,
        failures: &mut u32,
        outcome: Result<Option<Duration>, JobError>,
    ) -> Duration {
        let now = self.clock.now();
        if let Err(JobError::Paused { left }) = outcome {
            return left;
        }
        self.metrics.job(job, outcome.is_ok());
        match outcome {
            Ok(rest) => {
                *failures = 0;
                if rest.is_some() {
                    self.jobs.note(job, "working", None, now);
                }
                rest.unwrap_or(STANDBY)
            }
            // Another process was faster, which is no error.
            Err(trouble @ JobError::Store(StoreError::Overtaken)) => trouble.rest(0, 0.0),
            // Reported where it is detected.
            Err(JobError::Store(StoreError::Unbound)) => STANDBY,
            Err(trouble) => {
                self.jobs.note(job, "trouble", Some(trouble.to_string()), now);
                self.pass_on_pause(job, &trouble).await;
                let rest = trouble.rest(*failures, self.jitter());
                *failures = failures.saturating_add(1);
                rest
            }
        }
    }

    /// Returns how long to rest after `failures` consecutive failures.
    #[must_use]
    pub fn rest_after(&self, trouble: &JobError, failures: u32) -> Duration {
        trouble.rest(failures, self.jitter())
    }

    /// Releases the lease of a job.
    pub(super) async fn yield_job(&self, job: &'static str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_are_bounded_and_heed_workos() {
        let failed = |retry_after| JobError::Api(ApiError::Unavailable { why: String::new(), retry_after });
        let rests: Vec<Duration> = (0..9).map(|failures| failed(None).rest(failures, 0.0)).collect();
        assert!(rests.is_sorted() && rests[0] >= Duration::from_millis(500), "{rests:?}");
        assert!(failed(None).rest(u32::MAX, 0.999) <= LONGEST_REST);
        let wish = Duration::from_secs(90);
        assert_eq!(failed(Some(wish)).rest(0, 0.5), wish);
        assert_eq!(JobError::Api(ApiError::KeyRefused(401)).rest(0, 0.5), SUSPENDED);
    }
}
