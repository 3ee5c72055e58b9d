//! Whether WorkOS answers the requests of this process.

use std::sync::{Mutex, PoisonError};

use crate::domain::timestamp::Timestamp;

/// The last answer and the last failure.
#[derive(Clone, Debug, Default)]
pub struct ContactStatus {
    /// When WorkOS last answered with any status below 500.
    pub answered_at: Option<Timestamp>,
    /// Since when every request has failed. `None` if the last one was answered.
    pub failing_since: Option<Timestamp>,
    /// Why the last request failed.
    pub failure: Option<String>,
    /// The last answer refused the API key.
    pub is_key_refused: bool,
}

/// The results of this process's requests to WorkOS. It contains neither a URL nor an ID.
#[derive(Debug, Default)]
pub(super) struct Contact(Mutex<ContactStatus>);

impl Contact {
    pub(super) fn status(&self) -> ContactStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn answered(&self, status: u16, now: Timestamp) {
        if status >= 500 {
            return self.failed(format!("it answered {status}"), now);
        }
        let is_key_refused = matches!(status, 401 | 403);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            ContactStatus { answered_at: Some(now), is_key_refused, ..ContactStatus::default() };
    }

    pub(super) fn failed(&self, why: String, now: Timestamp) {
        let mut contact = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contact.failing_since.get_or_insert(now);
        contact.failure = Some(why);
    }
}
