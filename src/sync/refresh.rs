//! Refresh: reads objects and lists from WorkOS for which an event reported a change without the new state (`workos.refreshes`). It
//! also reads the roles of the environment on a timer, because WorkOS sends no event for a new name, priority or default role.

use std::time::Duration;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::role_lists::{ListOutcome, read_list};
use super::runner::Runner;
use super::{apply, key_check};
use crate::domain::event::Origin;
use crate::domain::object::Kind;
use crate::domain::role::Refresh as Wanted;
use crate::domain::timestamp::Timestamp;
use crate::store::refreshes::DueRefresh;
use crate::store::role_lists::ENVIRONMENT;
use crate::workos::api::{ApiError, Found};

/// Interval of the check whether a read is due.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Interval between two reads of the roles of the environment.
const ROLES_INTERVAL: Duration = Duration::from_secs(600);

/// The pause after a failed read of one list or object. It doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// The pause of the timer after an answer that could not be used, in seconds.
const RETRY_AFTER: i64 = 60;

/// Time for which a check of the API key stays valid, in seconds.
const KEY_CHECK_TTL: i64 = 3_600;

/// Runs the refresh.
pub type Refresh = Runner<RefreshJob>;

/// The refresh as a job.
#[derive(Debug)]
pub struct RefreshJob {
    context: JobContext,
    /// Time between two reads of the roles of the environment.
    interval: Duration,
    /// When the API key was last checked.
    key_checked_at: Option<Timestamp>,
    /// When the timer may read again, after an answer that could not be used.
    retry_at: Option<Timestamp>,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshStep {
    /// Something was read.
    Read,
    /// Nothing is due.
    Idle,
}

/// What is due.
enum Due {
    /// An event requested a read.
    Requested(DueRefresh),
    /// The timer requests the roles of the environment.
    Timer(Origin),
}

impl Refresh {
    /// Creates a refresh.
    #[must_use]
    pub fn new(context: JobContext) -> Self {
        let interval = context.jittered(ROLES_INTERVAL);
        Self::of_job(context.clone(), RefreshJob { context, interval, key_checked_at: None, retry_at: None })
    }
}

impl Job for RefreshJob {
    const NAME: &'static str = "refresh";

    type Output = RefreshStep;

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_idle = self.due().await?.is_none();
        Ok(is_idle.then(|| self.context.jittered(POLL_INTERVAL)))
    }

    /// Reads one list or object.
    async fn step(&mut self) -> Result<RefreshStep, JobError> {
        let Some(due) = self.due().await? else { return Ok(RefreshStep::Idle) };
        self.check_key().await?;
        match due {
            Due::Timer(origin) => {
                let is_answered = self.read_roles(ENVIRONMENT, origin).await?;
                self.retry_at = (!is_answered).then(|| self.context.clock.now().plus_seconds(RETRY_AFTER));
            }
            Due::Requested(due) => self.read_requested(&due).await?,
        }
        Ok(RefreshStep::Read)
    }

    fn is_last(step: &RefreshStep) -> bool {
        *step == RefreshStep::Idle
    }

    fn rest_after(&self, step: RefreshStep) -> Duration {
        if step == RefreshStep::Idle { self.context.jittered(POLL_INTERVAL) } else { REQUEST_INTERVAL }
    }
}

impl RefreshJob {
    async fn due(&self) -> Result<Option<Due>, JobError> {
        let (store, kinds) = (&self.context.store, self.context.kinds);
        if !kinds.organizations && !kinds.roles {
            return Ok(None);
        }
        if let Some(due) = store.due_refresh().await? {
            return Ok(Some(Due::Requested(due)));
        }
        if !kinds.roles || self.retry_at.is_some_and(|at| self.context.clock.now() < at) {
            return Ok(None);
        }
        Ok(match store.role_list_age(ENVIRONMENT).await? {
            None => Some(Due::Timer(Origin::Backfill)),
            Some(age) if age >= self.interval => Some(Due::Timer(Origin::Reconcile)),
            Some(_) => None,
        })
    }

    /// Checks that the API key belongs to this environment, unless that was checked within the last hour.
    async fn check_key(&mut self) -> Result<(), JobError> {
        let now = self.context.clock.now();
        if !self.key_checked_at.is_some_and(|at| at <= now && now < at.plus_seconds(KEY_CHECK_TTL)) {
            self.key_checked_at = None;
            key_check::check(&self.context).await?;
            self.key_checked_at = Some(now);
        }
        Ok(())
    }

    /// Reads what an event requested. After a failure, only this request waits for its retry, so that it does not block others.
    async fn read_requested(&mut self, due: &DueRefresh) -> Result<(), JobError> {
        let store = &self.context.store;
        match self.read(&due.refresh).await {
            Ok(true) => Ok(store.finish_refresh(due).await?),
            Ok(false) => Ok(store.postpone_refresh(due, FIRST_PAUSE, LONGEST_PAUSE).await?),
            Err(error) => {
                store.postpone_refresh(due, FIRST_PAUSE, LONGEST_PAUSE).await?;
                if let JobError::Api(ApiError::KeyRefused { .. }) = error {
                    // The next key may belong to another environment.
                    self.key_checked_at = None;
                }
                if let JobError::Api(ApiError::Refused { status, code, .. }) = &error {
                    tracing::warn!(
                        kind = due.refresh.kind(),
                        status,
                        code,
                        "WorkOS refused a read that an event requested; the service retries it later"
                    );
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// Returns whether the requested read is done. If not, it is retried.
    async fn read(&self, wanted: &Wanted) -> Result<bool, JobError> {
        let kinds = self.context.kinds;
        match wanted {
            Wanted::Roles if kinds.roles => self.read_roles(ENVIRONMENT, Origin::ReadThrough).await,
            Wanted::OrganizationRoles(id) if kinds.roles => self.read_roles(id, Origin::ReadThrough).await,
            Wanted::Organization(id) if kinds.organizations => {
                // Only a delete event or a reconcile deletes an organization that WorkOS does not know.
                if let Found::Live(organization) = self.context.api.object(Kind::Organization, id).await? {
                    apply(&self.context.store, Origin::ReadThrough, &[*organization]).await?;
                }
                Ok(true)
            }
            // This kind was disabled after the event had been received.
            Wanted::Roles | Wanted::OrganizationRoles(_) | Wanted::Organization(_) => Ok(true),
        }
    }

    /// Reads a list of roles and permissions. Returns whether the requested read is done: false if the list is unusable, or if a
    /// list that was read later is already stored.
    async fn read_roles(&self, organization_id: &str, origin: Origin) -> Result<bool, JobError> {
        let outcome = read_list(&self.context, organization_id, origin).await?;
        if outcome == ListOutcome::Unusable {
            tracing::warn!(
                "WorkOS listed no role of the environment; the stored roles stay, and the list is read again later"
            );
        }
        Ok(matches!(outcome, ListOutcome::Stored | ListOutcome::NoOrganization))
    }
}
