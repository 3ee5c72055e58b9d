//! [`AuthKit`] connects all parts, for the binary and for applications that embed it.

mod action_settings;
mod actions;
mod background;
pub(crate) mod binding;
mod build;
mod builder;
mod dispatcher;
mod error;
mod extract;
mod handlers;
mod secrets;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::stream::Stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::domain::change::{Change, Position};
use crate::domain::user::User;
use crate::http::{self, HttpState, Limits, OPS_CONNECTIONS, OPS_DRAIN, Served};
pub use crate::http::{ACTION_BODY_LIMIT, ACTION_PATH, CONNECTIONS, DRAIN_DELAY, HEADERS, KEY_LENGTH, Rejection};
use crate::lookup::{LookupError, Session};
use crate::store::migrations::{self, MigrationsError};
use crate::store::roles;
use crate::store::{Pool, Store, StoreError};
use crate::supervise::Supervisor;
use crate::sync::feed::FeedError;
use crate::sync::heartbeat::Heartbeat;
use crate::sync::job::JobContext;
use crate::tokens::{Identity, TokenError};
pub use builder::{
    ALLOW_SHARED_ISSUER, BACKFILL, BODY_LIMIT, Builder, CATCH_UP, CATCH_UP_INTERVAL, MIN_STALENESS, READ_THROUGH,
    RECONCILE_INTERVAL, RETENTION, SESSION_SIGN_INS, STALENESS, WEBHOOK_PATH, WORKOS_API_HOSTNAME,
};
pub use error::{BuildError, RunError, SecretError};
pub use extract::AuthUser;

/// Pause between two attempts to reach the database at start.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two checks of a database that this process must not serve, until an operator repairs it.
const UNFIT_PAUSE: Duration = Duration::from_secs(5);

/// A synced copy of the users of one WorkOS environment. Receives webhooks and answers lookups. Cloning is cheap.
///
/// It takes a pool and settings as arguments. It uses no environment variables, signals or global state.
#[derive(Clone, Debug)]
pub struct AuthKit {
    state: Arc<HttpState>,
    /// The pool for pending migrations, if they are to be run at start.
    migrate: Option<Pool>,
    /// The limits of each listener.
    limits: Limits,
    /// The context of the background jobs.
    context: JobContext,
    /// The store of the handlers.
    handlers: Store,
    jobs: background::Jobs,
}

impl AuthKit {
    /// Returns a builder for a migrated database and the WorkOS client ID of its users.
    ///
    /// The role of the pool must be able to read and write every table of the schema `workos`. The role that ran the migrations
    /// can. If the application's own role is only a member of `workos_reader`, give AuthKit a separate pool, as `examples/notes.rs`
    /// does.
    ///
    /// A plain `PgPool` works. [`Pool::connect`] saves two round trips per lookup.
    pub fn builder(pool: impl Into<Pool>, client_id: impl Into<String>) -> Builder {
        Builder::new(pool.into(), client_id.into())
    }

    /// Returns the live user of an access token (**`get_auth_user`**).
    ///
    /// It needs one signature check and one indexed statement. It calls WorkOS only if its keys have changed.
    ///
    /// # Errors
    /// [`LookupError`]: the token is rejected, its user is deleted or unknown, or the service has a failure. Sign the user out only
    /// in the first case.
    pub async fn get_auth_user(&self, token: &str) -> Result<User, LookupError> {
        self.state.lookups.auth_user(token).await
    }

    /// Returns who is behind an access token, and what the user may currently do in the token's organization, according to the
    /// database.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn get_session(&self, token: &str) -> Result<Session, LookupError> {
        self.state.lookups.session(token).await
    }

    /// Returns the live user with this ID. If read-through is enabled, a missing user is requested from WorkOS.
    ///
    /// # Errors
    /// [`LookupError`], except [`LookupError::Token`].
    pub async fn get_user(&self, id: &str) -> Result<User, LookupError> {
        self.state.lookups.user(id).await
    }

    /// Returns the live user with this external ID, if any. If several users have it, returns the one that WorkOS updated last.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn get_user_by_external_id(&self, external_id: &str) -> Result<Option<User>, StoreError> {
        self.state.store.user_by_external_id(external_id).await
    }

    /// Verifies the token and returns its claims. The database is not used.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn identity(&self, token: &str) -> Result<Identity, TokenError> {
        self.state.lookups.identity(token).await
    }

    /// Returns the current position of the change feed. Every change up to it is committed.
    ///
    /// To start a copy of the users, get the position first, then read the users, then read the changes after the position.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn position(&self) -> Result<Position, StoreError> {
        self.state.feed.now().await
    }

    /// Returns an endless stream of the changes after a position, in order.
    ///
    /// It waits for new changes and retries while the database is unreachable. It ends with an error if the position has expired.
    pub fn changes(&self, after: Position) -> impl Stream<Item = Result<Change, FeedError>> + Send + use<> {
        self.state.feed.clone().stream(after)
    }

    /// Returns the application's routes, to be mounted in an axum 0.8 application. Run [`AuthKit::run_background`] too. The
    /// application limits its own connections.
    pub fn router(&self) -> Router {
        http::router(self.state.clone())
    }

    /// Returns the operator's routes: the status page at `/`, probes with detail, and `/metrics`. Do not expose them to the public.
    pub fn ops_router(&self) -> Router {
        http::ops_router(self.state.clone())
    }

    /// Serves on `listener` (and the operator's routes on `ops`) and runs the background jobs until `shutdown` resolves. Then waits
    /// for the drain delay, if `/readyz` is polled, closes `listener`, answers the open requests within a deadline, and closes
    /// `ops` last.
    ///
    /// While the database is unreachable, it answers 503 and retries.
    ///
    /// # Errors
    /// [`RunError`] if this process must not serve the database, at start or later.
    pub async fn run(
        self,
        listener: TcpListener,
        ops: Option<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        let loops = self.start_loops(&stop);
        let metrics = self.state.metrics.clone();
        let ops_limits = Limits { connections: OPS_CONNECTIONS, drain: OPS_DRAIN, ..self.limits };
        let service = http::service(self.state.clone());
        let public = tokio::spawn(http::serve(listener, service, self.limits, metrics.clone(), stop.clone()));
        let stop_ops = CancellationToken::new();
        let ops =
            ops.map(|ops| tokio::spawn(http::serve(ops, self.ops_router(), ops_limits, metrics, stop_ops.clone())));
        let ended = self.until(shutdown).await;
        if ended.is_ok() {
            self.drain().await;
        }
        tracing::info!("shutting down; the service accepts no new connections and answers the open requests");
        self.state.closing.cancel();
        stop.cancel();
        let served = public.await;
        self.end_loops(loops).await;
        match served {
            Ok(Served::Drained) => tracing::info!("every open request was answered"),
            _ => tracing::warn!("some requests were still open at the deadline and were dropped"),
        }
        stop_ops.cancel();
        if let Some(ops) = ops {
            let _ = ops.await;
        }
        ended
    }

    /// Makes `/readyz` fail, and waits for the drain delay. [`AuthKit::run`] does it by itself. For an application that mounts
    /// [`AuthKit::router`]: await it before your own server stops.
    pub async fn drain(&self) {
        self.state.drain.pass().await;
    }

    /// Skips the drain delay, for example at a second signal.
    pub fn skip_drain_delay(&self) {
        self.state.drain.skip();
    }

    /// Runs only the background jobs, until `shutdown` resolves. For an application that mounts [`AuthKit::router`] in its own
    /// server. Without it, no polling, no backfill and no handler runs.
    ///
    /// While the database is unreachable or must not be served, for example because migrations are pending, it logs the reason,
    /// `/readyz` answers 503, and nothing runs. The jobs start when the database is repaired.
    ///
    /// # Errors
    /// [`RunError`]: why no job ran before `shutdown`, or why this process must no longer serve the database. In the second case it
    /// ends at once, and `/readyz` answers 503 from then on.
    pub async fn run_background(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut problem = None;
        let has_begun = tokio::select! {
            () = &mut shutdown => false,
            () = self.repaired(&mut problem) => true,
        };
        if !has_begun {
            self.state.closing.cancel();
            return problem.map_or(Ok(()), Err);
        }
        let stop = CancellationToken::new();
        let loops = self.start_loops(&stop);
        let ended = tokio::select! {
            () = shutdown => Ok(()),
            unfit = self.state.store.becomes_unfit() => Err(RunError::from(unfit)),
        };
        if let Err(error) = &ended {
            tracing::error!(
                "the background jobs have ended, because this process must not serve the database: {error}"
            );
        }
        self.state.closing.cancel();
        stop.cancel();
        self.end_loops(loops).await;
        ended
    }

    /// Waits until this process can serve the database. Keeps the current problem in `problem`.
    async fn repaired(&self, problem: &mut Option<RunError>) {
        while let Err(error) = self.becomes_fit().await {
            let text = error.to_string();
            if problem.as_ref().is_none_or(|known| known.to_string() != text) {
                tracing::error!(
                    "the background jobs do not run, because this process must not serve the database: {text}"
                );
            }
            *problem = Some(error);
            tokio::time::sleep(UNFIT_PAUSE).await;
        }
    }

    fn start_loops(&self, stop: &CancellationToken) -> Supervisor {
        self.jobs.report_missing_key();
        let mut loops = Supervisor::new(self.context.clone(), stop.clone());
        loops.start(self.state.keys.clone());
        loops.start(self.state.watch.clone());
        if let Some(standby) = &self.state.mirror.standby {
            loops.start(standby.clone());
        }
        let samples = self.state.status.samples().clone();
        loops.start(Heartbeat::new(self.context.clone(), self.state.watch.clone(), samples));
        self.jobs.start(&mut loops, &self.context, &self.handlers);
        loops
    }

    async fn end_loops(&self, loops: Supervisor) {
        loops.ended().await;
        // If the database is unreachable, the leases expire by themselves, and another process deletes the row of this one.
        let _ = self.context.release().await;
        let _ = self.context.store.remove_replica(&self.context.holder).await;
    }

    async fn until(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        tokio::select! {
            () = shutdown => Ok(()),
            error = self.unfit() => Err(error),
        }
    }

    /// Resolves when this process must not serve the database, at start or later.
    async fn unfit(&self) -> RunError {
        match self.becomes_fit().await {
            Ok(()) => self.state.store.becomes_unfit().await.into(),
            Err(error) => error,
        }
    }

    /// Waits until the database is reachable. Returns an error if this process must not serve it.
    async fn becomes_fit(&self) -> Result<(), RunError> {
        loop {
            match self.prepare().await {
                Ok(()) => {
                    tracing::info!("the database is reachable and its schema is current");
                    return Ok(());
                }
                Err(RunError::Migrations(MigrationsError::Database(StoreError::Unfit(unfit)))) => {
                    return Err(unfit.into());
                }
                Err(RunError::Migrations(MigrationsError::Database(error))) => self.state.store.note_failure(&error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(DATABASE_PAUSE).await;
        }
    }

    /// Runs pending migrations, if enabled, and checks whether this process can serve the database.
    async fn prepare(&self) -> Result<(), RunError> {
        if let Some(pool) = &self.migrate {
            let pool = &pool.current_connections().await.map_err(MigrationsError::Database)?;
            for migration in migrations::run(pool).await? {
                tracing::info!(migration, "migration applied");
            }
            for statement in roles::assert(pool).await.map_err(MigrationsError::Database)? {
                tracing::warn!(
                    statement,
                    "this role lacks the privilege for a statement that gives the roles of applications their \
                     rights; run it as a superuser"
                );
            }
        }
        Ok(self.state.store.check_bound().await.map_err(MigrationsError::Database)?)
    }
}
