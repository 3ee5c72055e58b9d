//! New secrets that cannot be used, so that the previous ones stay in use.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The problem of each setting whose new secret cannot be used. No problem contains a secret.
#[derive(Debug, Default)]
pub(crate) struct RejectedSecrets(Mutex<BTreeMap<&'static str, String>>);

impl RejectedSecrets {
    /// Records the problem of a setting, or that it has none.
    pub(crate) fn set(&self, setting: &'static str, problem: Option<String>) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => problems.insert(setting, problem),
            None => problems.remove(setting),
        };
    }

    /// Returns the current problems by setting.
    pub(crate) fn current(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
