//! The status of the background jobs of this process, and what is logged when it changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::domain::timestamp::Timestamp;

/// A failed step of a job.
pub(super) struct JobFailure {
    pub(super) text: String,
    /// A retry can succeed.
    pub(super) is_temporary: bool,
    /// The failure is logged once for all jobs, so the job does not log it.
    pub(super) is_reported_elsewhere: bool,
    /// Consecutive failures before this one.
    pub(super) failures: u32,
}

/// The status of a job in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// `working`, `failing`, or `standby` (another process runs the job).
    pub state: &'static str,
    /// The error of the last step, if it failed.
    pub error: Option<String>,
    /// When the status last changed.
    pub since: Timestamp,
    /// Whether the job itself logged the error.
    #[serde(skip)]
    is_logged: bool,
}

/// A temporary failure of WorkOS is logged as an error when this many steps in a row have failed.
const LOGGED_AS_ERROR_AFTER: u32 = 2;

/// The status of every job in this process.
#[derive(Debug, Default)]
pub struct JobStatuses(Mutex<BTreeMap<&'static str, JobStatus>>);

impl JobStatuses {
    /// Returns the current status of every job.
    #[must_use]
    pub fn current(&self) -> BTreeMap<&'static str, JobStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the status of a job that did not fail, and logs a recovery.
    pub(super) fn set(&self, name: &'static str, state: &'static str, now: Timestamp) {
        let before = self.replace(name, JobStatus { state, error: None, since: now, is_logged: false });
        if before.is_some_and(|before| before.is_logged) {
            tracing::info!(job = name, "a background job has recovered");
        }
    }

    /// Sets the status of a job whose step failed, and logs a new failure.
    pub(super) fn set_failing(&self, name: &'static str, failure: &JobFailure, now: Timestamp) {
        let (error, is_logged) = (&failure.text, !failure.is_reported_elsewhere);
        let before =
            self.replace(name, JobStatus { state: "failing", error: Some(error.clone()), since: now, is_logged });
        let is_new = before.is_none_or(|before| before.error.as_ref() != Some(error));
        match (is_logged, failure.is_temporary, failure.failures) {
            (true, true, 0) => tracing::warn!(job = name, "{error}; the job retries"),
            (true, true, LOGGED_AS_ERROR_AFTER) => {
                tracing::error!(job = name, "{error}; the job has failed several times and retries")
            }
            (true, false, _) if is_new => tracing::error!(job = name, "{error}"),
            _ => tracing::debug!(job = name, "{error}"),
        }
    }

    /// Replaces a status, and returns the one before. An unchanged status keeps its time.
    fn replace(&self, name: &'static str, status: JobStatus) -> Option<JobStatus> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = jobs.get(name).cloned();
        let is_same = before.as_ref().is_some_and(|job| job.state == status.state && job.error == status.error);
        if !is_same {
            tracing::debug!(job = name, state = status.state, "background job");
            jobs.insert(name, status);
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_failure_keeps_its_time_and_a_recovery_clears_it() {
        let (statuses, now) = (JobStatuses::default(), Timestamp::from_unix_micros(0));
        let failure = JobFailure { text: "429".into(), is_temporary: true, is_reported_elsewhere: false, failures: 0 };
        statuses.set_failing("catch_up", &failure, now);
        statuses.set_failing("catch_up", &JobFailure { failures: 1, ..failure }, now.plus_seconds(9));
        let status = statuses.current()["catch_up"].clone();
        assert_eq!((status.state, status.error.as_deref(), status.since), ("failing", Some("429"), now));
        statuses.set("catch_up", "working", now.plus_seconds(10));
        assert_eq!(statuses.current()["catch_up"].error, None);
    }
}
