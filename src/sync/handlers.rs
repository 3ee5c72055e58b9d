//! Runs handlers: code of the application that reacts to changes, in Rust or in SQL.
//!
//! One transaction contains the writes of a handler for one change and the progress of the handler. So each change is handled
//! exactly once in effect, even after a crash. A change that fails waits in the backlog together with later changes of its user.
//! Changes of other users continue. A lease assigns a handler to one process. If two processes run it at the same time, the
//! second one to commit is rolled back.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::feed::Feed;
use super::job::{JobContext, JobError, STANDBY};
use super::runner::BackgroundLoop;
use crate::domain::change::{Change, ChangeKind, Difference, Position};
use crate::domain::decide::Stored;
use crate::domain::event::Origin;
use crate::domain::handler::{self, Types};
use crate::store::StoreError;
use crate::store::changes::{ChangeRow, FeedHead};
use crate::store::handlers::{BacklogChange, BoxError, Handler, HandlerFailure, HandlerMove, Postponement, Tx, call};
use crate::store::leases::RENEWAL;

/// Number of changes that are processed before the handler's row is read again.
const BATCH: i64 = 100;

/// Intervals between two polls of the feed, and of the backlog.
const FEED_POLL_INTERVAL: Duration = Duration::from_millis(200);
const BACKLOG_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Default timeout of a Rust handler.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A Rust handler, for example an `async fn(Change, Tx) -> Result<(), E>`.
pub trait Handle: Send + Sync + 'static {
    /// Handles one change. An error rolls back everything written through `tx`, and the change is retried later.
    fn handle(&self, change: Change, tx: Tx) -> BoxFuture<'static, Result<(), BoxError>>;
}

impl<F, R, E> Handle for F
where
    F: Fn(Change, Tx) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<BoxError>,
{
    fn handle(&self, change: Change, tx: Tx) -> BoxFuture<'static, Result<(), BoxError>> {
        self(change, tx).map(|done| done.map_err(Into::into)).boxed()
    }
}

/// A Rust handler with its options.
#[derive(Clone)]
pub struct RustHandler {
    /// The name under which its progress is stored.
    pub name: Arc<str>,
    /// The types of the changes that it handles.
    pub types: Types,
    /// Whether a new handler first receives every live user.
    pub from_start: bool,
    /// Timeout of one run.
    pub timeout: Duration,
    /// The code.
    pub handle: Arc<dyn Handle>,
}

impl fmt::Debug for RustHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RustHandler").field("name", &self.name).field("types", &self.types).finish_non_exhaustive()
    }
}

/// Runs one handler in this process.
#[derive(Debug)]
pub struct HandlerWorker {
    context: JobContext,
    feed: Feed,
    name: Arc<str>,
    /// The Rust handler. `None` for a SQL handler, which every process can run.
    rust: Option<RustHandler>,
    /// When this process last renewed the lease.
    held: Mutex<Option<Instant>>,
    failures: Mutex<u32>,
}

/// Runs the handler for new changes of the feed.
#[derive(Clone, Debug)]
pub struct FeedLoop(pub Arc<HandlerWorker>);

/// Retries the handler's backlog. It is a separate loop, so that slow failures do not delay new changes.
#[derive(Clone, Debug)]
pub struct BacklogLoop(pub Arc<HandlerWorker>);

impl BackgroundLoop for FeedLoop {
    const NAME: &'static str = "handler";

    async fn tick(&self) -> Duration {
        let outcome = self.0.process_feed().await;
        self.0.rest_after(outcome).await
    }
}

impl BackgroundLoop for BacklogLoop {
    const NAME: &'static str = "handler_backlog";

    async fn tick(&self) -> Duration {
        let outcome = self.0.retry_backlog().await;
        self.0.rest_after(outcome).await
    }
}

impl HandlerWorker {
    /// Creates a worker for a Rust handler, or for the SQL handler with this name.
    #[must_use]
    pub fn new(context: JobContext, feed: Feed, name: &str, rust: Option<RustHandler>) -> Self {
        Self { context, feed, name: name.into(), rust, held: Mutex::default(), failures: Mutex::default() }
    }

    async fn rest_after(&self, outcome: Result<Duration, JobError>) -> Duration {
        let mut failures = self.failures.lock().await;
        match outcome {
            Ok(rest) => {
                *failures = 0;
                rest
            }
            // It was paused or removed, or another process runs it now. The next poll reads its state again.
            Err(JobError::Store(StoreError::Overtaken)) => {
                *self.held.lock().await = None;
                FEED_POLL_INTERVAL
            }
            Err(problem) => {
                let handler = &*self.name;
                if problem.is_reported_elsewhere() {
                    tracing::debug!(handler, "a handler could not process its changes and continues later: {problem}");
                } else {
                    tracing::warn!(handler, "a handler could not process its changes and continues later: {problem}");
                }
                let rest = self.context.backoff(&problem, *failures);
                *failures = failures.saturating_add(1);
                rest
            }
        }
    }

    /// Returns the handler if this process may run it now.
    async fn ready(&self) -> Result<Option<Handler>, JobError> {
        let store = &self.context.store;
        let Some(mut handler) = store.handlers(Some(&self.name)).await?.pop() else { return Ok(None) };
        if let Some(rust) = &self.rust {
            // The process that started last has stored its types in the database. It can be an older release.
            handler.types = rust.types.clone();
        }
        let ours = self.rust.is_some() != handler.sql.is_some();
        if !ours || handler.paused || !self.hold_lease().await? {
            return Ok(None);
        }
        let problem = handler.sql.as_ref().and_then(|sql| {
            if !sql.present {
                Some(format!(
                    "the function {} does not exist; create it, or remove the handler with \
                     `authkit-sync handlers remove`",
                    sql.function
                ))
            } else if !sql.settable {
                Some(format!(
                    "the service's role must be a member of role {}; grant that role to the service's role",
                    sql.role
                ))
            } else {
                None
            }
        });
        if problem != handler.problem {
            match &problem {
                Some(problem) => tracing::error!(handler = &*self.name, "a handler is blocked: {problem}"),
                None => tracing::info!(handler = &*self.name, "a handler is no longer blocked"),
            }
            store.set_handler_problem(&self.name, problem.as_deref()).await?;
        }
        Ok(problem.is_none().then_some(handler))
    }

    /// Takes or renews the handler's lease, at most once per [`RENEWAL`]. Returns whether this process holds it.
    async fn hold_lease(&self) -> Result<bool, StoreError> {
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if held.is_some_and(|at| now.duration_since(at) < RENEWAL) {
            return Ok(true);
        }
        let lease = self.context.store.hold_lease(&format!("handler:{}", self.name), &self.context.holder).await?;
        *held = lease.held.then_some(now);
        Ok(lease.held)
    }

    /// Processes one batch of the feed, or of the live users that a new handler receives first.
    async fn process_feed(&self) -> Result<Duration, JobError> {
        let Some(handler) = self.ready().await? else { return Ok(STANDBY) };
        if let Some(initial_users_through) = &handler.initial_users_through {
            return self.process_live_users(&handler, initial_users_through).await;
        }
        let store = &self.context.store;
        let head = store.feed_head().await?;
        if head.horizon <= handler.position {
            return Ok(FEED_POLL_INTERVAL);
        }
        let entries = store.changes(handler.position, head.horizon, BATCH).await?;
        let full = i64::try_from(entries.len()).is_ok_and(|count| count == BATCH);
        let end = entries.last().map(|last| last.position).filter(|_| full).unwrap_or(head.horizon);
        let named: Vec<&str> = entries.iter().filter_map(|entry| entry.user_id.as_deref()).collect();
        let mut waiting = store.waiting_users(&self.name, &named).await?;
        let mut position = handler.position;
        for entry in entries {
            if handler.types.contains(entry.kind.event_type()) {
                let to = entry.position;
                self.process_change(&handler, HandlerMove::Feed { from: position, to }, entry, &head, &mut waiting)
                    .await?;
                position = to;
            }
        }
        if end > position {
            store.move_handler(&self.name, HandlerMove::Feed { from: position, to: end }).await?;
        }
        Ok(if full { Duration::ZERO } else { FEED_POLL_INTERVAL })
    }

    /// Handles one change, or adds it to the backlog if an earlier change of its user waits there.
    async fn process_change(
        &self,
        handler: &Handler,
        moved: HandlerMove<'_>,
        entry: ChangeRow,
        head: &FeedHead,
        waiting: &mut HashSet<String>,
    ) -> Result<(), JobError> {
        let user_id = entry.user_id.clone().unwrap_or_default();
        let change = BacklogChange { position: entry.position, user_id, from_start: false, attempts: 0 };
        if waiting.contains(&change.user_id) {
            let postponement = Postponement { attempts: 0, delay: Some(Duration::ZERO), failure: None };
            return Ok(self.context.store.postpone(&self.name, moved, &change, &postponement).await?);
        }
        let entry = self.feed.with_current_object(entry, &head.epoch).await?;
        if !self.run(handler, entry, moved, &change).await? && !change.user_id.is_empty() {
            waiting.insert(change.user_id);
        }
        Ok(())
    }

    /// Handles one batch of live users for a new handler.
    async fn process_live_users(&self, handler: &Handler, initial_users_through: &str) -> Result<Duration, JobError> {
        let store = &self.context.store;
        let users = store.initial_users(initial_users_through, handler.start_position, BATCH).await?;
        if users.is_empty() {
            store.end_initial_users(&self.name, initial_users_through).await?;
            return Ok(Duration::ZERO);
        }
        let epoch = store.feed_head().await?.epoch;
        let mut from = initial_users_through;
        for (id, later) in &users {
            let user_id = id.clone();
            let change = BacklogChange { position: handler.start_position, user_id, from_start: true, attempts: 0 };
            let moved = HandlerMove::InitialUsers { from, to: id };
            // Users that were created after the start are in the feed.
            let created = if *later { None } else { self.created_change(&change, &epoch).await? };
            match created.filter(|created| handler.types.contains(created.kind.event_type())) {
                Some(created) => drop(self.run(handler, created, moved, &change).await?),
                None => store.move_handler(&self.name, moved).await?,
            }
            from = id;
        }
        Ok(Duration::ZERO)
    }

    /// Returns the change that a new handler receives for a live user, or `None` if the user was deleted.
    async fn created_change(&self, change: &BacklogChange, epoch: &str) -> Result<Option<Change>, JobError> {
        let Stored::Live { object: user, .. } = self.context.store.user(&change.user_id).await? else {
            return Ok(None);
        };
        Ok(Some(Change {
            position: Position { epoch: epoch.to_owned(), number: change.position },
            kind: ChangeKind::User(Difference::Created),
            user_id: Some(change.user_id.clone()),
            object_id: None,
            changed: Vec::new(),
            event: None,
            origin: Origin::Backfill,
            at: self.context.clock.now(),
            user: Some(*user),
            organization: None,
            membership: None,
            data: None,
        }))
    }

    /// Retries the due changes of the backlog.
    async fn retry_backlog(&self) -> Result<Duration, JobError> {
        let Some(handler) = self.ready().await? else { return Ok(STANDBY) };
        let store = &self.context.store;
        let due = store.due_changes(&self.name, BATCH).await?;
        if due.is_empty() {
            return Ok(BACKLOG_POLL_INTERVAL);
        }
        let epoch = store.feed_head().await?.epoch;
        for change in &due {
            let moved = HandlerMove::Backlog(change);
            let entry = if change.from_start {
                self.created_change(change, &epoch).await?
            } else {
                match store.change(change.position).await? {
                    Some(entry) => Some(self.feed.with_current_object(entry, &epoch).await?),
                    None => None,
                }
            };
            match entry {
                Some(entry) => drop(self.run(&handler, entry, moved, change).await?),
                // The user was deleted, and the feed contains that change.
                None => store.move_handler(&self.name, moved).await?,
            }
        }
        Ok(Duration::ZERO)
    }

    /// Runs the handler, and returns whether it succeeded. After a failure, the change waits for a retry or is dead-lettered.
    async fn run(
        &self,
        handler: &Handler,
        entry: Change,
        moved: HandlerMove<'_>,
        change: &BacklogChange,
    ) -> Result<bool, JobError> {
        let store = &self.context.store;
        let outcome = match (&self.rust, &handler.sql) {
            (Some(rust), _) => {
                let run = store.run_handler(&self.name, rust.timeout, |tx| rust.handle.handle(entry, tx), moved);
                self.while_renewing_lease(run).await?
            }
            (None, Some(sql)) => {
                let entry = serde_json::to_string(&entry).unwrap_or_default();
                let run = store.run_handler(&self.name, sql.timeout, |tx| call(tx, sql.clone(), entry), moved);
                self.while_renewing_lease(run).await?
            }
            (None, None) => return Err(StoreError::Overtaken.into()),
        };
        self.context.metrics.handled(&self.name, outcome.is_ok());
        let Err(failure) = outcome else { return Ok(true) };
        let attempts = change.attempts.saturating_add(1);
        let delay = handler::delay_after(attempts);
        self.log_failure(&failure, change, attempts, delay);
        store.postpone(&self.name, moved, change, &Postponement { attempts, delay, failure: Some(failure) }).await?;
        Ok(false)
    }

    /// Awaits a run and renews the lease meanwhile, because a run can take longer than a lease lasts.
    async fn while_renewing_lease<T>(&self, run: impl Future<Output = T>) -> T {
        let mut run = std::pin::pin!(run);
        loop {
            tokio::select! {
                outcome = &mut run => return outcome,
                // If it fails, the commit checks whether this process may still move the handler.
                () = tokio::time::sleep(RENEWAL) => drop(self.hold_lease().await),
            }
        }
    }

    /// Logs a failure, without the message, which can contain personal data.
    fn log_failure(&self, failure: &HandlerFailure, change: &BacklogChange, attempts: i32, delay: Option<Duration>) {
        let (sqlstate, constraint) = (failure.sqlstate.as_deref(), failure.constraint.as_deref());
        let (handler, location, position) = (&*self.name, failure.location.as_deref(), change.position);
        match delay {
            Some(delay) => tracing::warn!(
                handler,
                position,
                attempts,
                sqlstate,
                constraint,
                location,
                delay_s = delay.as_secs(),
                "a handler failed for a change; the change, and later changes of its user, wait for the retry"
            ),
            None => tracing::error!(
                handler,
                position,
                attempts,
                sqlstate,
                constraint,
                location,
                "a handler failed for a change at every attempt, so the change is dead-lettered; see \
                 `authkit-sync handlers list`, and retry it with `handlers redrive`"
            ),
        }
    }
}
