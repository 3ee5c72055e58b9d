//! What background drivers share: their surroundings, their troubles, and how long to rest after each.

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

/// Between two requests of one job: well below WorkOS's limits (its own SDK paces lists at 350 ms).
pub const REQUEST_INTERVAL: Duration = Duration::from_millis(350);

/// A refused key, or one that is suspected: how often it is tried again.
const SUSPENDED: Duration = Duration::from_secs(5 * 60);
const SUSPECTED: Duration = Duration::from_secs(3 * 60);

/// What only an operator can change.
const STOPPED: Duration = Duration::from_secs(3_600);

/// Rest after a failure: doubles from the first to the longest.
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

/// Why a step of a background job did not go well. Every text says what to do, where there is something.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// WorkOS gave no usable answer.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The database did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// WorkOS asked this job for a pause, which is not over yet; the job may have been another process's then.
    #[error("WorkOS asked for a pause; {} s of it are left", left.as_secs())]
    Paused {
        /// What is left of it.
        left: Duration,
    },
    /// Most of a sample of our live users is unknown to WorkOS.
    #[error(
        "{unknown} of {sampled} live users are unknown to WorkOS: WORKOS_API_KEY is the suspect (another environment's?), \
         and nothing is changed. If these users are meant to be gone, run `authkit-sync reconcile --accept-deletions`; if \
         this database was copied from another environment, run `authkit-sync rebind`"
    )]
    WrongKey {
        /// Users asked about.
        sampled: usize,
        /// Of them, unknown to WorkOS and not deleted by an event.
        unknown: usize,
    },
    /// A 404 that may be any server's, and no live user that can be read by ID.
    #[error(
        "WorkOS answers 404 without an `entity_id`, and no live user can be read by ID: the API address is the suspect \
         (WORKOS_API_HOSTNAME), or a proxy before it. No deletion is inferred"
    )]
    NotConfirmed,
    /// More deletions would be inferred than go without saying.
    #[error(
        "more than {bound} users are gone at WorkOS without an event that says so, and none was deleted here. If they are \
         meant to be gone, run `authkit-sync reconcile --accept-deletions`"
    )]
    TooMany {
        /// How many go without saying.
        bound: usize,
    },
    /// A walk that saw nobody infers nothing.
    #[error("WorkOS lists no user at all, while {live} are alive here; nothing is changed")]
    NobodyListed {
        /// Live users here.
        live: i64,
    },
    /// A handler in Rust has the name of one in SQL.
    #[error("handler {0} is one in SQL; choose another name, or remove that one with `authkit-sync handlers remove`")]
    NameTaken(String),
    /// The walk cannot come to an end.
    #[error("WorkOS's list of users starts over again and again; the walk is begun anew later")]
    Endless,
    /// WorkOS refuses cursors that it has just given.
    #[error(
        "WorkOS refused catch-up's cursor again before the end was reached; reading starts again, by `synced_through`. If \
         this repeats, report the cursor in `workos.catch_up` to WorkOS"
    )]
    CursorRefused,
    /// The Events API lists events newest first.
    #[error("the Events API lists events newest first; they are applied, and the cursor stays where it is")]
    Backwards,
}

impl JobError {
    /// Trying again may help; if not, only an operator can.
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

    /// How long to rest before the next try, after `failures` in a row; `jitter` is in `0.0..1.0`.
    fn rest(&self, failures: u32, jitter: f64) -> Duration {
        let backoff = FIRST_REST.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(LONGEST_REST);
        // Half of it is jitter, so that replicas and environments do not knock in step.
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

/// How a job stands in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// `working`, `standby` (another process does it) or `trouble`.
    pub state: &'static str,
    /// What is wrong.
    pub trouble: Option<String>,
    /// Since when it stands so.
    pub since: Timestamp,
}

/// Every job's standing in this process.
#[derive(Debug, Default)]
pub struct JobStatuses(Mutex<BTreeMap<&'static str, JobStatus>>);

impl JobStatuses {
    /// As they stand now.
    #[must_use]
    pub fn standing(&self) -> BTreeMap<&'static str, JobStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how a job stands; what changes is logged once.
    fn note(&self, name: &'static str, state: &'static str, trouble: Option<String>, now: Timestamp) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = jobs.get(name);
        if before.is_some_and(|job| job.state == state && job.trouble == trouble) {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::error!(job = name, "{trouble}"),
            None if before.is_some_and(|job| job.trouble.is_some()) => tracing::info!(job = name, "goes on"),
            None => tracing::debug!(job = name, state, "background job"),
        }
        jobs.insert(name, JobStatus { state, trouble, since: now });
    }
}

/// What a driver works with. Cloning is cheap; clones are one process.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// Where things go.
    pub store: Store,
    /// Where they come from.
    pub api: Api,
    /// Tells the time.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How this process's jobs stand.
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
    /// Surroundings of one process; `seed` decides its name and its jitter.
    #[must_use]
    pub fn new(store: Store, api: Api, clock: Clock, metrics: Arc<Metrics>, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let holder = format!("{:032x}", random.u128(..)).into();
        let random = Arc::new(Mutex::new(random));
        let (jobs, held) = (Arc::default(), Arc::default());
        Self { store, api, clock, metrics, jobs, session_sign_ins: false, holder, random, held }
    }

    /// The same process, which stores sessions as sign-ins, or does not.
    #[must_use]
    pub fn storing_sign_ins(self, session_sign_ins: bool) -> Self {
        Self { session_sign_ins, ..self }
    }

    /// The same process on another pool.
    #[must_use]
    pub fn on_store(&self, store: Store) -> Self {
        Self { store, ..self.clone() }
    }

    fn jitter(&self) -> f64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }

    /// A duration give or take a fifth.
    pub(super) fn about(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.jitter())
    }

    /// Whether this process does the job now.
    ///
    /// # Errors
    /// [`JobError::Paused`] while the job is this process's and must leave WorkOS alone.
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

    /// Renews the lease of a job that this process does.
    pub(super) async fn keep(&self, job: &'static str) {
        let holds = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(job);
        if holds {
            // Should it fail, the next renewal or the next step tells.
            let _ = self.hold(job).await;
        }
    }

    /// Keeps every process from doing a job for as long as WorkOS asked for.
    pub(crate) async fn pass_on_pause(&self, job: &str, trouble: &JobError) {
        let JobError::Api(ApiError::Unavailable { retry_after: Some(pause), .. }) = trouble else { return };
        if let Err(error) = self.store.pause_job(job, *pause).await {
            tracing::debug!(job, error = %error, "the pause WorkOS asked for is kept by this process alone");
        }
    }

    /// Notes how a step went, and how long to rest now. `None` is a process standing by.
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
            // Losing a race to another process is no trouble.
            Err(trouble @ JobError::Store(StoreError::Overtaken)) => trouble.rest(0, 0.0),
            // Told where it is found out.
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

    /// How long to rest after a step that did not go well, `failures` times in a row.
    #[must_use]
    pub fn rest_after(&self, trouble: &JobError, failures: u32) -> Duration {
        trouble.rest(failures, self.jitter())
    }

    /// Lets another process have a job that is done.
    pub(super) async fn yield_job(&self, job: &'static str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
        // Nobody minds when it fails: the lease runs out by itself.
        let _ = self.store.release_leases(&self.holder, Some(job)).await;
    }

    /// Lets other processes take over at once. Called at the end.
    ///
    /// # Errors
    /// [`StoreError`]: then they do when the leases have run out.
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
