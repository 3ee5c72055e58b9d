//! The cache of WorkOS's signing keys.
//!
//! A lookup takes no lock. A refresh replaces the whole set, and only with a parsed one. After failed refreshes the keys stay in
//! use for a day. Unknown key IDs cause at most one request to WorkOS per cooldown.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::watch;

use super::keys::{KeyFingerprint, KeySet};
use super::source::{KeyFetchError, KeySource};
use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;

/// Age after which the set is refreshed in the background, seconds.
const FRESH: i64 = 600;

/// Age after which the set is no longer used, seconds.
const USABLE: i64 = 24 * 3_600;

/// Pause between two requests for unknown key IDs, seconds: after a success, and after a failure.
const COOLDOWN: i64 = 30;
const COOLDOWN_FAILING: i64 = 5;

/// Timeout of a request, and of a caller that waits for it.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(6);

/// The state of the keys, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct KeyStatus {
    /// Number of usable keys.
    pub keys: usize,
    /// When they were fetched.
    pub fetched_at: Option<Timestamp>,
    /// Time of the first failed refresh since the last success.
    pub failing_since: Option<Timestamp>,
    /// Why the last refresh failed.
    pub error: Option<String>,
    /// Number of failed refreshes since the start of the process.
    pub failures: u64,
    /// Seconds by which this machine's clock is ahead of WorkOS's, within about one second. Negative if it is behind.
    pub clock_ahead_seconds: Option<i64>,
}

/// Why there is no key for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// WorkOS does not publish the key.
    Unknown,
    /// WorkOS is unreachable.
    Unavailable {
        /// Pause before a retry.
        retry_after: Duration,
    },
}

/// The cache. Cloning is cheap; clones share the keys.
#[derive(Clone)]
pub struct KeyCache(Arc<Inner>);

struct Inner {
    source: Arc<dyn KeySource>,
    clock: Clock,
    held: ArcSwap<Held>,
    /// The running request, if any. The lock is never held during the request.
    flight: Mutex<Option<watch::Receiver<bool>>>,
    /// Number of failed refreshes.
    failures: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Held {
    set: Arc<KeySet>,
    fetched_at: Option<Timestamp>,
    asked_at: Option<Timestamp>,
    failing_since: Option<Timestamp>,
    error: Option<KeyFetchError>,
    clock_ahead: Option<i64>,
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyCache").field(&self.status()).finish()
    }
}

impl Held {
    fn usable(&self, now: Timestamp) -> bool {
        self.fetched_at.is_some_and(|at| age(at, now) < USABLE)
    }

    fn cooldown_left(&self, now: Timestamp) -> i64 {
        let cooldown = if self.error.is_some() { COOLDOWN_FAILING } else { COOLDOWN };
        self.asked_at.map_or(0, |at| cooldown - age(at, now))
    }
}

/// Returns the seconds since `at`. After the clock was set back, it returns the maximum, so that a refresh is due.
fn age(at: Timestamp, now: Timestamp) -> i64 {
    if at > now { i64::MAX } else { now.unix_seconds() - at.unix_seconds() }
}

impl KeyCache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new(source: Arc<dyn KeySource>, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            source,
            clock,
            held: ArcSwap::default(),
            flight: Mutex::default(),
            failures: AtomicU64::new(0),
        }))
    }

    /// Returns the state of the keys.
    #[must_use]
    pub fn status(&self) -> KeyStatus {
        let held = self.0.held.load();
        KeyStatus {
            keys: held.set.len(),
            fetched_at: held.fetched_at,
            failing_since: held.failing_since,
            error: held.error.as_ref().map(ToString::to_string),
            failures: self.0.failures.load(Ordering::Relaxed),
            clock_ahead_seconds: held.clock_ahead,
        }
    }

    /// Adds the state of the keys to the metrics. `reports_clock`: the clock, too.
    pub(crate) fn measure(&self, metrics: &Metrics, reports_clock: bool) {
        let inner = self.0.clone();
        metrics.before_encoding(move |metrics| {
            let (held, now) = (inner.held.load(), inner.clock.now());
            let keys = if held.usable(now) { held.set.len() } else { 0 };
            let age = held.fetched_at.map(|at| now.unix_seconds().saturating_sub(at.unix_seconds()).max(0));
            metrics.signing_keys(keys, age, inner.failures.load(Ordering::Relaxed));
            if let Some(seconds) = held.clock_ahead.filter(|_| reports_clock) {
                metrics.clock_ahead("workos", seconds);
            }
        });
    }

    /// Returns whether WorkOS publishes keys for the client ID. `Ok(false)` means that WorkOS does not know the client ID.
    ///
    /// # Errors
    /// Why the request to WorkOS failed.
    pub async fn are_published(&self) -> Result<bool, KeyFetchError> {
        self.refresh_when_due().await;
        let held = self.0.held.load();
        match &held.error {
            _ if held.set.len() > 0 => Ok(true),
            Some(error) if error.is_unknown_client() => Ok(false),
            Some(error) => Err(error.clone()),
            None => Err(KeyFetchError::new("WorkOS has not answered yet")),
        }
    }

    /// Refreshes the keys if that is due, and returns the time until the next refresh.
    pub async fn refresh_when_due(&self) -> Duration {
        let now = self.0.clock.now();
        let held = self.0.held.load_full();
        let due = held.fetched_at.is_none_or(|at| age(at, now) >= FRESH);
        if due && held.cooldown_left(now) <= 0 {
            self.refresh().await;
        }
        let held = self.0.held.load();
        let now = self.0.clock.now();
        let until_stale = held.fetched_at.map_or(0, |at| FRESH.saturating_sub(age(at, now)));
        Duration::from_secs(until_stale.max(held.cooldown_left(now)).max(1).unsigned_abs())
    }

    /// Returns true if the cached key set is still usable and contains this key under the key ID.
    pub(super) fn is_published(&self, kid: &str, key: KeyFingerprint, now: Timestamp) -> bool {
        let held = self.0.held.load();
        held.usable(now) && held.set.get(kid).is_some_and(|published| published.fingerprint == key)
    }

    /// Verifies `signature` over `message` with the key `kid`, and returns which key that was. Fetches an unknown key. `Ok(None)`
    /// means a wrong signature.
    pub(super) async fn verify(
        &self,
        kid: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Option<KeyFingerprint>, NoKey> {
        let verify = |held: &Held, now| {
            let key = held.usable(now).then(|| held.set.get(kid)).flatten()?;
            Some(key.public.verify_sig(message, signature).is_ok().then_some(key.fingerprint))
        };
        let now = self.0.clock.now();
        if let Some(genuine) = verify(&self.0.held.load(), now) {
            return Ok(genuine);
        }
        if self.0.held.load().cooldown_left(now) <= 0 {
            self.refresh().await;
        }
        // The clock is read again, because `refresh` may have fetched keys after the first `now`.
        let (held, now) = (self.0.held.load(), self.0.clock.now());
        if let Some(genuine) = verify(&held, now) {
            return Ok(genuine);
        }
        if held.error.is_none() && held.usable(now) {
            return Err(NoKey::Unknown);
        }
        let wait = held.cooldown_left(now).clamp(1, COOLDOWN).unsigned_abs();
        Err(NoKey::Unavailable { retry_after: Duration::from_secs(wait) })
    }

    /// Waits for the running request, or starts one. The request has its own task, so a caller that stops waiting does not
    /// cancel it for the others.
    async fn refresh(&self) {
        let mut flight = {
            let mut flight = self.0.flight.lock().unwrap_or_else(PoisonError::into_inner);
            match &*flight {
                Some(running) if running.has_changed().is_ok() => running.clone(),
                // Another caller's request may have ended since this caller looked.
                _ if self.0.held.load().cooldown_left(self.0.clock.now()) > 0 => return,
                _ => {
                    let (done, waiting) = watch::channel(false);
                    *flight = Some(waiting.clone());
                    let inner = self.0.clone();
                    tokio::spawn(async move {
                        inner.fetch().await;
                        let _ = done.send(true);
                    });
                    waiting
                }
            }
        };
        let _ = tokio::time::timeout(REFRESH_TIMEOUT, flight.wait_for(|done| *done)).await;
    }
}

impl Inner {
    async fn fetch_set(&self) -> Result<KeySet, KeyFetchError> {
        let fetched = tokio::time::timeout(REFRESH_TIMEOUT, self.source.fetch()).await;
        let document = fetched.unwrap_or_else(|_| Err(KeyFetchError::new("the request timed out")))?;
        KeySet::parse(&document).ok_or_else(|| KeyFetchError::new("the answer contains no usable key"))
    }

    async fn fetch(&self) {
        // Without this, a panic would end the task of the request, and nobody would learn why there are no keys.
        let fetched = AssertUnwindSafe(async { self.fetch_set().await }).catch_unwind().await;
        let set = fetched.unwrap_or_else(|_panic| {
            Err(KeyFetchError::new("the source of the keys panicked, which is a defect; report it with the log"))
        });
        let now = self.clock.now();
        let before = self.held.load_full();
        let clock_ahead = self.source.date().map(|theirs| now.unix_seconds() - theirs.unix_seconds());
        let after = match set {
            Ok(set) => {
                if before.error.is_some() {
                    tracing::info!(keys = set.len(), "WorkOS's signing keys are reachable again");
                }
                Held { set: Arc::new(set), fetched_at: Some(now), asked_at: Some(now), clock_ahead, ..Held::default() }
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                log_failure(&error, &before);
                Held {
                    asked_at: Some(now),
                    failing_since: before.failing_since.or(Some(now)),
                    error: Some(error),
                    clock_ahead: clock_ahead.or(before.clock_ahead),
                    ..(*before).clone()
                }
            }
        };
        self.held.store(Arc::new(after));
    }
}

/// Logs a failed refresh, unless the last one failed for the same reason.
fn log_failure(error: &KeyFetchError, before: &Held) {
    let keys = before.set.len();
    if before.error.as_ref().is_some_and(|before| before.to_string() == error.to_string()) {
        tracing::debug!(error = %error, keys, "WorkOS's signing keys could still not be fetched");
    } else if keys == 0 {
        tracing::warn!(error = %error, "WorkOS's signing keys could not be fetched, so tokens cannot be checked and \
                                        lookups get 503; the service retries");
    } else {
        tracing::warn!(error = %error, keys, "WorkOS's signing keys could not be refreshed; the cached keys stay in \
                                              use, and the service retries");
    }
}
