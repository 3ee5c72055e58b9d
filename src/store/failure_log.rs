//! Logs each cause of database failures once, for all requests and jobs that fail because of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;

/// A cause that persists is logged again after this time.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Maximum number of causes that are stored.
const MAX_CAUSES: usize = 32;

/// The causes that were logged. All stores of a process share one.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    causes: Mutex<HashMap<String, Cause>>,
    /// Whether the connection failed and no statement has succeeded since then.
    is_down: AtomicBool,
}

#[derive(Debug)]
struct Cause {
    logged_at: Instant,
    /// Failures since then.
    unlogged: u64,
}

impl FailureLog {
    /// Logs the failure if it is the first one with this cause, or the first one after a minute. Logs when the database answers
    /// again.
    pub(super) fn note<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Ok(_) if self.is_down.load(Ordering::Relaxed) => self.recovered(),
            Err(error) => self.failed(error),
            Ok(_) => {}
        }
    }

    fn failed(&self, error: &StoreError) {
        let Some(failure) = error.failure() else { return };
        if failure.is_of_connection() {
            self.is_down.store(true, Ordering::Relaxed);
        }
        let text = error.to_string();
        let Some(unlogged) = self.count(&text) else { return };
        if matches!(error, StoreError::TimedOut(_)) && !failure.is_of_connection() {
            tracing::warn!(repeated = unlogged, "{text}");
        } else {
            tracing::error!(repeated = unlogged, "{text}");
        }
    }

    /// Counts a failure. Returns the number of failures that were not logged, if this one is to be logged.
    pub(super) fn count(&self, text: &str) -> Option<u64> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(cause) = causes.get_mut(text) {
            if now.duration_since(cause.logged_at) < REPEAT_AFTER {
                cause.unlogged += 1;
                return None;
            }
            let unlogged = cause.unlogged;
            *cause = Cause { logged_at: now, unlogged: 0 };
            return Some(unlogged);
        }
        if causes.len() >= MAX_CAUSES {
            causes.clear();
        }
        causes.insert(text.to_owned(), Cause { logged_at: now, unlogged: 0 });
        Some(0)
    }

    fn recovered(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            self.causes.lock().unwrap_or_else(PoisonError::into_inner).clear();
            tracing::info!("the database answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_to_be_logged_once_and_again_after_a_recovery() {
        let log = FailureLog::default();
        assert_eq!((log.count("refused"), log.count("refused"), log.count("disk full")), (Some(0), None, Some(0)));
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        log.note(&Err::<(), _>(StoreError::from(sqlx::Error::Io(refused()))));
        assert!(log.is_down.load(Ordering::Relaxed));
        log.note(&Ok(()));
        assert_eq!((log.count("refused"), log.is_down.load(Ordering::Relaxed)), (Some(0), false));
    }

    #[test]
    fn the_number_of_remembered_causes_is_limited() {
        let log = FailureLog::default();
        for number in 0..=MAX_CAUSES * 3 {
            log.count(&number.to_string());
        }
        assert!(log.causes.lock().unwrap().len() <= MAX_CAUSES);
    }
}
