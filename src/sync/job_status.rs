//! The status of the background jobs of this process, and what is logged when it changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::domain::timestamp::Timestamp;

/// A failed step of a job.
pub(super) struct JobFailure {
    pub(super) text: String,
    /// Whether a retry can succeed.
    pub(super) is_temporary: bool,
    /// Whether the failure is logged once for all jobs, so that the job does not log it.
    pub(super) is_reported_elsewhere: bool,
    /// Whether the cause is that WorkOS did not answer.
    pub(super) is_of_workos: bool,
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
    /// Whether a retry can succeed.
    #[serde(skip)]
    pub is_temporary: bool,
    /// Whether the error comes from the database. Such an error is logged once for all jobs.
    #[serde(skip)]
    pub is_of_database: bool,
    /// Whether the cause is that WorkOS did not answer.
    #[serde(skip)]
    pub is_of_workos: bool,
}

impl JobStatus {
    fn without_error(state: &'static str, since: Timestamp) -> Self {
        Self { state, error: None, since, is_temporary: false, is_of_database: false, is_of_workos: false }
    }
}

/// A temporary failure of WorkOS is logged as an error when this many steps in a row have failed.
const LOGGED_AS_ERROR_AFTER: u32 = 2;

/// The error of a job whose step panicked.
const PANICKED: &str = "the background job panicked, which is a defect of authkit-sync; report it with the lines of the log before it. \
                        The service restarts the job";

/// When a job runs, and its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobRun {
    /// When this process last began a step. `None` if it has not begun one yet.
    pub began_at: Option<Timestamp>,
    /// When this process next checks whether the job has work.
    pub next_at: Option<Timestamp>,
    /// Objects that the current scan of the job has compared. `None` if there is no scan.
    pub compared: Option<i64>,
}

/// The status of every job in this process.
#[derive(Debug, Default)]
pub struct JobStatuses {
    statuses: Mutex<BTreeMap<&'static str, JobStatus>>,
    runs: Mutex<BTreeMap<&'static str, JobRun>>,
}

impl JobStatuses {
    /// Returns the current status of every job.
    #[must_use]
    pub fn current(&self) -> BTreeMap<&'static str, JobStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when each job runs.
    #[must_use]
    pub fn runs(&self) -> BTreeMap<&'static str, JobRun> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records something about the runs of a job.
    pub(super) fn note_run(&self, name: &'static str, note: impl FnOnce(&mut JobRun)) {
        note(self.runs.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }

    /// Sets the status of a job that did not fail, and logs a recovery.
    pub(super) fn set(&self, name: &'static str, state: &'static str, now: Timestamp) {
        let before = self.replace(name, JobStatus::without_error(state, now));
        if before.is_some_and(|before| before.error.is_some() && !before.is_of_database) {
            tracing::info!(job = name, "a background job has recovered");
        }
    }

    /// Sets the status of a job whose step failed, and logs a new failure.
    pub(super) fn set_failing(&self, name: &'static str, failure: &JobFailure, now: Timestamp) {
        let (error, is_logged) = (&failure.text, !failure.is_reported_elsewhere);
        let status = JobStatus {
            error: Some(error.clone()),
            is_temporary: failure.is_temporary,
            is_of_database: failure.is_reported_elsewhere,
            is_of_workos: failure.is_of_workos,
            ..JobStatus::without_error("failing", now)
        };
        let before = self.replace(name, status);
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

    /// Sets the status of a job whose step panicked, and logs it.
    pub(super) fn set_panicked(&self, name: &'static str, now: Timestamp) {
        tracing::error!(job = name, "{PANICKED}");
        self.replace(name, JobStatus { error: Some(PANICKED.to_owned()), ..JobStatus::without_error("failing", now) });
    }

    /// Removes the status of a job if it is that of a panic. Returns whether it was.
    pub(super) fn remove_panicked(&self, name: &'static str) -> bool {
        let mut jobs = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let has_panicked = jobs.get(name).is_some_and(|job| job.error.as_deref() == Some(PANICKED));
        if has_panicked {
            jobs.remove(name);
        }
        has_panicked
    }

    /// Replaces a status, and returns the one before. An unchanged status keeps its time.
    fn replace(&self, name: &'static str, status: JobStatus) -> Option<JobStatus> {
        let mut jobs = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
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
        let failure = JobFailure {
            text: "429".into(),
            is_temporary: true,
            is_reported_elsewhere: false,
            is_of_workos: true,
            failures: 0,
        };
        statuses.set_failing("catch_up", &failure, now);
        statuses.set_failing("catch_up", &JobFailure { failures: 1, ..failure }, now.plus_seconds(9));
        let status = statuses.current()["catch_up"].clone();
        assert_eq!((status.state, status.error.as_deref(), status.since), ("failing", Some("429"), now));
        statuses.set("catch_up", "working", now.plus_seconds(10));
        assert_eq!(statuses.current()["catch_up"].error, None);
    }
}
