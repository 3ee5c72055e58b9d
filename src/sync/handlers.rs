//! Handlers: what an application does when something changes, in Rust or in SQL.
//!
//! A handler's writes, and the fact that it has run, commit together: exactly once in effect, whatever crashes. Each change
//! has a transaction of its own. One that fails waits in the backlog, with the later ones of its user behind it, while
//! everybody else's go on. A handler belongs to one process at a time, by a lease; should two run it all the same, the one
//! that moves it second loses everything it did.

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

/// Changes dealt with before a handler's row is read again.
const BATCH: i64 = 100;

/// Between two looks at the feed, and at what is due again.
const FEED_POLL_INTERVAL: Duration = Duration::from_millis(200);
const BACKLOG_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long a handler in Rust may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A handler in Rust: an `async fn(Change, Tx) -> Result<(), E>` is one.
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

/// A handler in Rust, under its name.
#[derive(Clone)]
pub struct RustHandler {
    /// The name under which its progress is stored.
    pub name: Arc<str>,
    /// The types of changes it handles.
    pub types: Types,
    /// A new handler first receives every live user.
    pub from_start: bool,
    /// Timeout of one run.
    pub timeout: Duration,
    /// What it does.
    pub handle: Arc<dyn Handle>,
}

impl fmt::Debug for RustHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RustHandler").field("name", &self.name).field("types", &self.types).finish_non_exhaustive()
    }
}

/// One handler in one process.
#[derive(Debug)]
pub struct HandlerWorker {
    context: JobContext,
    feed: Feed,
    name: Arc<str>,
    /// `None` for a handler in SQL, which every process has.
    rust: Option<RustHandler>,
    /// When its lease was last taken.
    held: Mutex<Option<Instant>>,
    failures: Mutex<u32>,
}

/// Runs the handler for new changes of the feed.
#[derive(Clone, Debug)]
pub struct FeedLoop(pub Arc<HandlerWorker>);

/// Retries the handler's backlog. A loop of its own, so that slow failures do not delay new changes.
#[derive(Clone, Debug)]
pub struct BacklogLoop(pub Arc<HandlerWorker>);

impl BackgroundLoop for FeedLoop {
    const NAME: &'static str = "handler";

    async fn tick(&self) -> Duration {
        let outcome = self.0.process_feed().await;
        self.0.rest(outcome).await
    }
}

impl BackgroundLoop for BacklogLoop {
    const NAME: &'static str = "handler_backlog";

    async fn tick(&self) -> Duration {
        let outcome = self.0.retry_backlog().await;
        self.0.rest(outcome).await
    }
}

impl HandlerWorker {
    /// Works for the handler in Rust, or for the one in SQL of that name.
    #[must_use]
    pub fn new(context: JobContext, feed: Feed, name: &str, rust: Option<RustHandler>) -> Self {
        Self { context, feed, name: name.into(), rust, held: Mutex::default(), failures: Mutex::default() }
    }

    async fn rest(&self, outcome: Result<Duration, JobError>) -> Duration {
        let mut failures = self.failures.lock().await;
        match outcome {
            Ok(rest) => {
                *failures = 0;
                rest
            }
            // Paused, removed, or another process has it now: the next look tells.
            Err(JobError::Store(StoreError::Overtaken)) => {
                *self.held.lock().await = None;
                FEED_POLL_INTERVAL
            }
            Err(trouble) => {
                tracing::warn!(handler = &*self.name, "a handler cannot continue: {trouble}");
                let rest = self.context.rest_after(&trouble, *failures);
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
            // What stands in the database is what the last process to start takes; that may have been an older release.
            handler.types = rust.types.clone();
        }
        let ours = self.rust.is_some() != handler.sql.is_some();
        if !ours || handler.paused || !self.leads().await? {
            return Ok(None);
        }
        let trouble = handler.sql.as_ref().and_then(|sql| {
            if !sql.present {
                Some(format!("the function {} does not exist; create it, or remove the handler", sql.function))
            } else if !sql.settable {
                Some(format!("the service may not set role {}; grant it to the service's own", sql.role))
            } else {
                None
            }
        });
        if trouble != handler.problem {
            match &trouble {
                Some(trouble) => tracing::error!(handler = &*self.name, "a handler is stopped: {trouble}"),
                None => tracing::info!(handler = &*self.name, "a handler works again"),
            }
            store.set_handler_problem(&self.name, trouble.as_deref()).await?;
        }
        Ok(trouble.is_none().then_some(handler))
    }

    /// Whether this process has the handler, which it keeps for a while without another word.
    async fn leads(&self) -> Result<bool, StoreError> {
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if held.is_some_and(|at| now.duration_since(at) < RENEWAL) {
            return Ok(true);
        }
        let lease = self.context.store.hold_lease(&format!("handler:{}", self.name), &self.context.holder).await?;
        *held = lease.held.then_some(now);
        Ok(lease.held)
    }

    /// One batch along the feed, or of the live users it is told of first.
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
        let mut at = handler.position;
        for entry in entries {
            if handler.types.take(entry.kind.event_type()) {
                let to = entry.position;
                self.process_change(&handler, HandlerMove::Feed { from: at, to }, entry, &head, &mut waiting).await?;
                at = to;
            }
        }
        if end > at {
            store.move_handler(&self.name, HandlerMove::Feed { from: at, to: end }).await?;
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
            let behind = Postponement { attempts: 0, delay: Some(Duration::ZERO), failure: None };
            return Ok(self.context.store.postpone(&self.name, moved, &change, &behind).await?);
        }
        let told = self.feed.with_current_user(entry, &head.epoch).await?;
        if !self.run(handler, told, moved, &change).await? && !change.user_id.is_empty() {
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
            // Who was created since the start is in the feed.
            let told = if *later { None } else { self.created_change(&change, &epoch).await? };
            match told.filter(|told| handler.types.take(told.kind.event_type())) {
                Some(told) => drop(self.run(handler, told, moved, &change).await?),
                None => store.move_handler(&self.name, moved).await?,
            }
            from = id;
        }
        Ok(Duration::ZERO)
    }

    /// What a new handler is told of a live user; nothing, when the user is gone.
    async fn created_change(&self, change: &BacklogChange, epoch: &str) -> Result<Option<Change>, JobError> {
        let Stored::Live { user, .. } = self.context.store.user(&change.user_id).await? else { return Ok(None) };
        Ok(Some(Change {
            position: Position { epoch: epoch.to_owned(), number: change.position },
            kind: ChangeKind::User(Difference::Created),
            user_id: Some(change.user_id.clone()),
            changed: Vec::new(),
            event: None,
            origin: Origin::Backfill,
            at: self.context.clock.now(),
            user: Some(*user),
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
            let told = if change.from_start {
                self.created_change(change, &epoch).await?
            } else {
                match store.change(change.position).await? {
                    Some(entry) => Some(self.feed.with_current_user(entry, &epoch).await?),
                    None => None,
                }
            };
            match told {
                Some(told) => drop(self.run(&handler, told, moved, change).await?),
                // The user is gone, and the feed tells of that.
                None => store.move_handler(&self.name, moved).await?,
            }
        }
        Ok(Duration::ZERO)
    }

    /// Runs the handler; whether that went well. A failure is noted, and the change waits or is set aside.
    async fn run(
        &self,
        handler: &Handler,
        told: Change,
        moved: HandlerMove<'_>,
        change: &BacklogChange,
    ) -> Result<bool, JobError> {
        let store = &self.context.store;
        let outcome = match (&self.rust, &handler.sql) {
            (Some(rust), _) => {
                let run = store.run_handler(&self.name, rust.timeout, |tx| rust.handle.handle(told, tx), moved);
                self.keeping_the_lease(run).await?
            }
            (None, Some(sql)) => {
                let told = serde_json::to_string(&told).unwrap_or_default();
                let run = store.run_handler(&self.name, sql.timeout, |tx| call(tx, sql.clone(), told), moved);
                self.keeping_the_lease(run).await?
            }
            (None, None) => return Err(StoreError::Overtaken.into()),
        };
        self.context.metrics.handled(&self.name, outcome.is_ok());
        let Err(failure) = outcome else { return Ok(true) };
        let attempts = change.attempts.saturating_add(1);
        let rest = handler::rest(attempts);
        self.log_failure(&failure, change, attempts, rest);
        store
            .postpone(&self.name, moved, change, &Postponement { attempts, delay: rest, failure: Some(failure) })
            .await?;
        Ok(false)
    }

    /// Renews the lease during a run, which can take longer than a lease lasts.
    async fn keeping_the_lease<T>(&self, run: impl Future<Output = T>) -> T {
        let mut run = std::pin::pin!(run);
        loop {
            tokio::select! {
                outcome = &mut run => return outcome,
                // Should it fail, the run decides at its end whether it still counts.
                () = tokio::time::sleep(RENEWAL) => drop(self.leads().await),
            }
        }
    }

    /// Logs a failure, without the message, which can contain personal data.
    fn log_failure(&self, failure: &HandlerFailure, change: &BacklogChange, attempts: i32, rest: Option<Duration>) {
        let (sqlstate, constraint) = (failure.sqlstate.as_deref(), failure.constraint.as_deref());
        let (handler, location, position) = (&*self.name, failure.location.as_deref(), change.position);
        match rest {
            Some(rest) => tracing::warn!(
                handler,
                position,
                attempts,
                sqlstate,
                constraint,
                location,
                rest_s = rest.as_secs(),
                "a handler failed; the change waits, and with it the later ones of its user"
            ),
            None => tracing::error!(
                handler,
                position,
                attempts,
                sqlstate,
                constraint,
                location,
                "a handler failed too often; the change is set aside (authkit-sync handlers list)"
            ),
        }
    }
}
