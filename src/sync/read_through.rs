//! Read-through: reads a user from WorkOS if a caller needs it before its first event has arrived.
//!
//! At sign-up, the first request of a user often arrives before the webhook. A process sends one request per user at a time, and
//! all callers wait for its response. A user that WorkOS does not know is remembered for some seconds. It never becomes a
//! tombstone.

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
use crate::domain::user::User;
use crate::workos::api::{ApiError, Found};

/// Number of concurrent requests to WorkOS.
const MAX_CONCURRENT_READS: usize = 8;

/// Timeout for a caller.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long, and for how many users, a process remembers that WorkOS does not know them.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);
const MAX_UNKNOWN: usize = 10_000;

/// How long a check of the API key stays valid, seconds.
const KEY_CHECK_TTL: i64 = 3_600;

/// WorkOS is unreachable, or its response could not be verified in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the user is not synced yet, and WorkOS is unreachable")]
pub struct WorkosUnreachable;

type Request = Shared<BoxFuture<'static, Result<Arc<Stored<User>>, WorkosUnreachable>>>;

/// Reads single users from WorkOS. Cloning is cheap; clones share their requests.
#[derive(Clone)]
pub struct ReadThrough(Arc<Inner>);

struct Inner {
    context: JobContext,
    /// The last successful checks. Locked during a check, so that concurrent requests wait for the same one.
    trusted: AsyncMutex<Option<Trust>>,
    permits: Semaphore,
    in_flight: Mutex<InFlight>,
}

#[derive(Clone, Copy)]
struct Trust {
    /// When the check of the API key succeeded: the key belongs to this environment.
    at: Timestamp,
    /// A live user could be read by ID.
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
    /// Creates a reader with the API key of `context`. It applies what it reads to the store of `context`.
    #[must_use]
    pub fn new(context: JobContext) -> Self {
        let permits = Semaphore::new(MAX_CONCURRENT_READS);
        Self(Arc::new(Inner { context, trusted: AsyncMutex::default(), permits, in_flight: Mutex::default() }))
    }

    /// Reads a user from WorkOS that the table does not contain, applies it, and returns the stored state: a live user, a
    /// tombstone that another process stored meanwhile, or [`Stored::Absent`] if WorkOS does not know the user either.
    ///
    /// # Errors
    /// [`WorkosUnreachable`], within 5 seconds.
    pub async fn read(&self, id: &str) -> Result<Arc<Stored<User>>, WorkosUnreachable> {
        if !is_possible_id(id) {
            return Ok(Arc::new(Stored::Absent));
        }
        let request = {
            let mut in_flight = self.in_flight();
            in_flight.unknown.retain(|_, since| since.elapsed() < UNKNOWN_TTL);
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

    /// Starts the request in its own task, so that a caller that stops waiting does not cancel it for the others.
    fn start_request(&self, id: String) -> Request {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let outcome = tokio::time::timeout(READ_TIMEOUT, this.request(&id)).await.unwrap_or(Err(WorkosUnreachable));
            let mut in_flight = this.in_flight();
            in_flight.requests.remove(&id);
            if matches!(outcome.as_deref(), Ok(Stored::Absent)) && in_flight.unknown.len() < MAX_UNKNOWN {
                in_flight.unknown.insert(id, Instant::now());
            }
            outcome
        });
        task.map(|done| done.unwrap_or(Err(WorkosUnreachable))).boxed().shared()
    }

    /// Checks that the API key belongs to this environment, unless that was checked within the last hour.
    async fn trust(&self) -> Result<(), JobError> {
        let context = &self.0.context;
        let mut trusted = self.0.trusted.lock().await;
        let now = context.clock.now();
        if !trusted.is_some_and(|Trust { at, .. }| at <= now && now < at.plus_seconds(KEY_CHECK_TTL)) {
            *trusted = None;
            key_check::check(context).await?;
            *trusted = Some(Trust { at: now, reads_by_id: false });
        }
        Ok(())
    }

    /// Checks that a 404 without an ID means an unknown user: a live user can be read by ID.
    async fn trust_not_found(&self) -> Result<(), JobError> {
        let mut trusted = self.0.trusted.lock().await;
        if !trusted.is_some_and(|trust| trust.reads_by_id) {
            key_check::check_reads_by_id(&self.0.context).await?;
            *trusted = trusted.map(|trust| Trust { reads_by_id: true, ..trust });
        }
        Ok(())
    }

    async fn request(&self, id: &str) -> Result<Arc<Stored<User>>, WorkosUnreachable> {
        let _permit = self.0.permits.acquire().await.map_err(|_| WorkosUnreachable)?;
        let outcome = async {
            let context = &self.0.context;
            // Another process may have committed the user since the caller read the table.
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
            Ok::<Stored<User>, JobError>(context.store.user(id).await?)
        };
        match outcome.await {
            Ok(stored) => Ok(Arc::new(stored)),
            Err(error) => {
                if matches!(error, JobError::Api(ApiError::KeyRefused(_))) {
                    // The next key may belong to another environment.
                    *self.0.trusted.lock().await = None;
                }
                tracing::warn!("a user could not be read from WorkOS, so the caller gets 503: {error}");
                Err(WorkosUnreachable)
            }
        }
    }
}

/// Returns whether WorkOS could have assigned this ID. An ID from a caller must not change the path of a request that contains our
/// API key (`..`, a slash).
fn is_possible_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}
