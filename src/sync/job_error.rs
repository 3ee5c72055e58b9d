//! Why a step of a background job failed, and the pause before the next attempt.

use std::time::Duration;

use crate::domain::object::Kind;
use crate::store::StoreError;
use crate::workos::api::ApiError;

/// Pause after WorkOS rejected the API key, and after the key check failed.
const KEY_REJECTED_PAUSE: Duration = Duration::from_secs(5 * 60);
const KEY_CHECK_PAUSE: Duration = Duration::from_secs(3 * 60);

/// Pause after an error that only an operator can resolve.
const OPERATOR_PAUSE: Duration = Duration::from_secs(3_600);

/// Backoff after a failure. It doubles from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

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
    pub(super) fn backoff(&self, failures: u32, jitter: f64) -> Duration {
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
