//! Read-through: reads a user from WorkOS that a caller needs before any event has delivered it.
//!
//! At sign-up a user's first request often beats the webhook. One question per user and process is under way at a time,
//! whoever waits for it; a "no" is remembered for some seconds; and a "no" never makes a tombstone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;

use super::job::{JobContext, JobError};
use super::{apply, key_check};
use crate::domain::decide::Stored;
use crate::domain::event::{Observation, Origin};
use crate::domain::timestamp::Timestamp;
use crate::workos::api::{ApiError, Found};

/// Number of concurrent requests to WorkOS.
const MAX_CONCURRENT_READS: usize = 8;

/// Timeout for a caller.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a user WorkOS does not know is not asked about again, and how many of them are remembered.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
const UNKNOWN_MOST: usize = 10_000;

/// How long the key is taken for this environment's before that is judged anew, seconds.
const TRUSTED_FOR: i64 = 3_600;

/// WorkOS is unreachable, or its response could not be verified in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the user is not synced yet, and WorkOS is unreachable")]
pub struct WorkosUnreachable;

type Request = Shared<BoxFuture<'static, Result<Arc<Stored>, WorkosUnreachable>>>;

/// Reads single users from WorkOS. Cloning is cheap; clones share their requests.
#[derive(Clone)]
pub struct ReadThrough(Arc<Inner>);

struct Inner {
    context: JobContext,
    /// What was last found good. Held while that is judged, so that all wait for one judgement.
    trusted: AsyncMutex<Option<Trust>>,
    permits: Semaphore,
    in_flight: Mutex<InFlight>,
}

#[derive(Clone, Copy)]
struct Trust {
    /// When the key was found to be this environment's.
    at: Timestamp,
    /// Live users can be read by ID.
    reads_by_id: bool,
}

#[derive(Default)]
struct InFlight {
    requests: HashMap<String, Request>,
    unknown: HashMap<String, Instant>,
}

impl std::fmt::Debug for ReadThrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadThrough")
    }
}

impl ReadThrough {
    /// Reads with the API key of `context` and applies to its store.
    #[must_use]
    pub fn new(context: JobContext) -> Self {
        let permits = Semaphore::new(MAX_CONCURRENT_READS);
        Self(Arc::new(Inner { context, trusted: AsyncMutex::default(), permits, in_flight: Mutex::default() }))
    }

    /// What WorkOS says of a user that the table does not know, applied before it is answered: alive, a tombstone that came
    /// in meanwhile, or [`Stored::Absent`] when WorkOS does not know it either.
    ///
    /// # Errors
    /// [`WorkosUnreachable`], within five seconds.
    pub async fn read(&self, id: &str) -> Result<Arc<Stored>, WorkosUnreachable> {
        if !could_be(id) {
            return Ok(Arc::new(Stored::Absent));
        }
        let request = {
            let mut in_flight = self.in_flight();
            in_flight.unknown.retain(|_, since| since.elapsed() < UNKNOWN_FOR);
            if in_flight.unknown.contains_key(id) {
                return Ok(Arc::new(Stored::Absent));
            }
            in_flight.requests.entry(id.to_owned()).or_insert_with(|| self.start_request(id.to_owned())).clone()
        };
        tokio::time::timeout(READ_TIMEOUT, request).await.unwrap_or(Err(WorkosUnreachable))
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the request in its own task, so that a caller that leaves does not cancel it for the others.
    fn start_request(&self, id: String) -> Request {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let outcome = tokio::time::timeout(READ_TIMEOUT, this.ask(&id)).await.unwrap_or(Err(WorkosUnreachable));
            let mut in_flight = this.in_flight();
            in_flight.requests.remove(&id);
            if matches!(outcome.as_deref(), Ok(Stored::Absent)) && in_flight.unknown.len() < UNKNOWN_MOST {
                in_flight.unknown.insert(id, Instant::now());
            }
            outcome
        });
        task.map(|done| done.unwrap_or(Err(WorkosUnreachable))).boxed().shared()
    }

    /// Passes when the key has been found to be this environment's within the hour, or is now.
    async fn trust(&self) -> Result<(), JobError> {
        let context = &self.0.context;
        let mut trusted = self.0.trusted.lock().await;
        let now = context.clock.now();
        if !trusted.is_some_and(|Trust { at, .. }| at <= now && now < at.plus_seconds(TRUSTED_FOR)) {
            *trusted = None;
            key_check::check(context).await?;
            *trusted = Some(Trust { at: now, reads_by_id: false });
        }
        Ok(())
    }

    /// Passes when a 404 that names no ID can be believed.
    async fn trust_not_found(&self) -> Result<(), JobError> {
        let mut trusted = self.0.trusted.lock().await;
        if !trusted.is_some_and(|trust| trust.reads_by_id) {
            key_check::check_reads_by_id(&self.0.context).await?;
            *trusted = trusted.map(|trust| Trust { reads_by_id: true, ..trust });
        }
        Ok(())
    }

    async fn ask(&self, id: &str) -> Result<Arc<Stored>, WorkosUnreachable> {
        let _permit = self.0.permits.acquire().await.map_err(|_| WorkosUnreachable)?;
        let asked = async {
            let context = &self.0.context;
            // Whoever looked just before another's answer was committed need not ask for it again.
            let known = context.store.user(id).await?;
            if !matches!(known, Stored::Absent) {
                return Ok(known);
            }
            self.trust().await?;
            let listed: Observation = match context.api.user(id).await? {
                Found::Unknown { has_id, .. } => {
                    if !has_id {
                        self.trust_not_found().await?;
                    }
                    return Ok(Stored::Absent);
                }
                Found::Live(listed) => *listed,
            };
            apply(&context.store, Origin::ReadThrough, std::slice::from_ref(&listed)).await?;
            Ok::<Stored, JobError>(context.store.user(id).await?)
        };
        match asked.await {
            Ok(stored) => Ok(Arc::new(stored)),
            Err(error) => {
                if matches!(error, JobError::Api(ApiError::KeyRefused(_))) {
                    // What comes after a refused key may be another environment's.
                    *self.0.trusted.lock().await = None;
                }
                tracing::warn!("a user could not be read through: {error}");
                Err(WorkosUnreachable)
            }
        }
    }
}

/// Whether WorkOS could have assigned this ID. An ID made up by a caller must not become another path at WorkOS (`..`, a slash),
/// requested with our key.
fn could_be(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}
