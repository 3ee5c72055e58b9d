//! Read-through: reads an object from WorkOS if a caller needs it before its first event has arrived.
//!
//! At sign-up, the first request of a user often arrives before the webhook, and so does the first request of a new member. A
//! process sends one request per object at a time, and all callers wait for its response. For some seconds, the process does not
//! request an object again that WorkOS does not know. Such an object never becomes a tombstone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;

use super::job::{JobContext, JobError};
use super::{apply, key_check};
use crate::domain::event::{Observation, Origin};
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::workos::api::{ApiError, Found};

/// Number of concurrent requests to WorkOS.
const MAX_CONCURRENT_READS: usize = 8;

/// Timeout for a caller.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long, and for how many objects, a process caches that WorkOS does not know them.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);
const MAX_UNKNOWN: usize = 10_000;

/// Time for which a check of the API key stays valid, in seconds.
const KEY_CHECK_TTL: i64 = 3_600;

/// WorkOS is unreachable, or its response could not be verified in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object is not synced yet, and WorkOS is unreachable")]
pub struct WorkosUnreachable;

/// An object that a caller needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The user with this ID.
    User(String),
    /// The organization with this ID.
    Organization(String),
    /// The memberships of a user in an organization.
    Memberships {
        /// The user's ID.
        user_id: String,
        /// The organization's ID.
        organization_id: String,
    },
}

/// What WorkOS answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// WorkOS returned the object. It is stored now.
    Stored,
    /// WorkOS does not know the object.
    Unknown,
}

type Request = Shared<BoxFuture<'static, Result<Answer, WorkosUnreachable>>>;

/// Reads single objects from WorkOS. Cloning is cheap; clones share their requests.
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
    /// Whether a live user could be read by ID.
    reads_by_id: bool,
}

#[derive(Default)]
struct InFlight {
    requests: HashMap<Wanted, Request>,
    unknown: HashMap<Wanted, Instant>,
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

    /// Reads from WorkOS what the tables do not contain, and applies it. The caller then reads the tables again: another process
    /// may have stored a tombstone meanwhile.
    ///
    /// # Errors
    /// [`WorkosUnreachable`], within 5 seconds.
    pub async fn read(&self, wanted: Wanted) -> Result<Answer, WorkosUnreachable> {
        if !wanted.ids().all(is_possible_id) {
            return Ok(Answer::Unknown);
        }
        let request = {
            let mut in_flight = self.in_flight();
            in_flight.unknown.retain(|_, since| since.elapsed() < UNKNOWN_TTL);
            if in_flight.unknown.contains_key(&wanted) {
                return Ok(Answer::Unknown);
            }
            in_flight.requests.entry(wanted.clone()).or_insert_with(|| self.start_request(wanted)).clone()
        };
        tokio::time::timeout(READ_TIMEOUT, request).await.unwrap_or(Err(WorkosUnreachable))
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the request in its own task, so that a caller that stops waiting does not cancel it for the others.
    fn start_request(&self, wanted: Wanted) -> Request {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let request = tokio::time::timeout(READ_TIMEOUT, this.request(&wanted));
            let outcome = request.await.unwrap_or(Err(WorkosUnreachable));
            let mut in_flight = this.in_flight();
            in_flight.requests.remove(&wanted);
            if outcome == Ok(Answer::Unknown) && in_flight.unknown.len() < MAX_UNKNOWN {
                in_flight.unknown.insert(wanted, Instant::now());
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

    async fn request(&self, wanted: &Wanted) -> Result<Answer, WorkosUnreachable> {
        let _permit = self.0.permits.acquire().await.map_err(|_| WorkosUnreachable)?;
        match self.ask(wanted).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if matches!(error, JobError::Api(ApiError::KeyRefused { .. })) {
                    // The next key may belong to another environment.
                    *self.0.trusted.lock().await = None;
                }
                let what = wanted.name();
                tracing::warn!("the {what} of a token could not be read from WorkOS, so the caller gets 503: {error}");
                Err(WorkosUnreachable)
            }
        }
    }

    async fn ask(&self, wanted: &Wanted) -> Result<Answer, JobError> {
        let context = &self.0.context;
        // Another process may have committed it since the caller read the tables.
        if self.is_stored(wanted).await? {
            return Ok(Answer::Stored);
        }
        self.trust().await?;
        let listed: Vec<Observation> = match wanted {
            Wanted::User(id) => self.found(context.api.object(Kind::User, id).await?).await?,
            Wanted::Organization(id) => self.found(context.api.object(Kind::Organization, id).await?).await?,
            Wanted::Memberships { user_id, organization_id } => {
                match context.api.memberships_of(user_id, organization_id).await {
                    Ok(page) => page.items,
                    // The user or the organization is unknown. Another 404 could come from any server.
                    Err(ApiError::Refused { status: 404, code, .. }) if code == "entity_not_found" => Vec::new(),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if listed.is_empty() {
            return Ok(Answer::Unknown);
        }
        apply(&context.store, Origin::ReadThrough, &listed).await?;
        Ok(Answer::Stored)
    }

    async fn is_stored(&self, wanted: &Wanted) -> Result<bool, JobError> {
        let store = &self.0.context.store;
        let (kind, id) = match wanted {
            Wanted::User(id) => (Kind::User, id),
            Wanted::Organization(id) => (Kind::Organization, id),
            Wanted::Memberships { user_id, organization_id } => {
                return Ok(store.has_membership(user_id, organization_id).await?);
            }
        };
        Ok(!store.objects(kind, std::slice::from_ref(id)).await?.is_empty())
    }

    async fn found(&self, found: Found) -> Result<Vec<Observation>, JobError> {
        match found {
            Found::Live(listed) => Ok(vec![*listed]),
            Found::Unknown { has_id, .. } => {
                if !has_id {
                    self.trust_not_found().await?;
                }
                Ok(Vec::new())
            }
        }
    }
}

impl Wanted {
    fn ids(&self) -> impl Iterator<Item = &str> {
        let (one, other) = match self {
            Self::User(id) | Self::Organization(id) => (id, None),
            Self::Memberships { user_id, organization_id } => (user_id, Some(&**organization_id)),
        };
        std::iter::once(&**one).chain(other)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Organization(_) => "organization",
            Self::Memberships { .. } => "membership",
        }
    }
}

/// Returns whether WorkOS could have assigned this ID. An ID from a caller must not change the path of a request that contains our
/// API key (`..`, a slash).
fn is_possible_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}
