//! [`AuthKit`]: everything put together, for the binary and for applications that embed it.

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

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::stream::Stream;
use sqlx::postgres::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::domain::change::{Change, Position};
use crate::domain::user::User;
use crate::http::{self, HttpState, Limits, OPS_CONNECTIONS, Served};
pub use crate::http::{ACTION_BODY_LIMIT, ACTION_PATH, CONNECTIONS, HEADERS, KEY_LENGTH, Rejection};
use crate::lookup::LookupError;
use crate::store::migrations::{self, MigrationsError};
use crate::store::roles;
use crate::store::{Pool, Store, StoreError};
use crate::supervise::Supervisor;
use crate::sync::feed::FeedError;
use crate::sync::job::JobContext;
use crate::tokens::{Identity, TokenError};
pub use builder::{BODY_LIMIT, Builder, CATCH_UP_INTERVAL, RECONCILE_INTERVAL, RETENTION, WEBHOOK_PATH};
pub use error::{BuildError, RunError};
pub use extract::AuthUser;

/// How long the database is left alone between two tries at start.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// A synced copy of one WorkOS environment's users: receives webhooks, answers lookups. Cloning is cheap.
///
/// It takes a pool and settings as arguments and touches neither the environment, nor signals, nor any global.
#[derive(Clone, Debug)]
pub struct AuthKit {
    state: Arc<HttpState>,
    /// Where to run pending migrations first, if that was asked for.
    migrate: Option<PgPool>,
    /// What each listener allows.
    limits: Limits,
    /// What background work goes with.
    context: JobContext,
    /// Where handlers run.
    handlers: Store,
    jobs: background::Jobs,
}

impl AuthKit {
    /// Begins with a pool on a migrated database and the WorkOS client id whose users it holds. The pool's role is the one that
    /// migrated, or one that may read and write every table of the schema `workos`; an application that holds `workos_reader`
    /// alone gives AuthKit a pool of its own, as `examples/notes.rs` does.
    ///
    /// A plain `PgPool` is used as it is. A [`Pool::connect`] makes lookups cheaper by two round trips.
    pub fn builder(pool: impl Into<Pool>, client_id: impl Into<String>) -> Builder {
        Builder::new(pool.into(), client_id.into())
    }

    /// **`get_auth_user`**: the live user behind an access token.
    ///
    /// One signature check and one indexed statement; no call to WorkOS unless its keys have changed.
    ///
    /// # Errors
    /// [`LookupError`]: the token is refused, its user is deleted or unknown, or something of ours is away. Only the first
    /// is a reason to sign anybody out.
    pub async fn get_auth_user(&self, token: &str) -> Result<User, LookupError> {
        self.state.lookups.session(token).await.map(|(user, _)| user)
    }

    /// The live user with this id; where read-through is on, WorkOS is asked about one who is not here.
    ///
    /// # Errors
    /// [`LookupError`], but none about a token.
    pub async fn get_user(&self, id: &str) -> Result<User, LookupError> {
        self.state.lookups.user(id).await
    }

    /// The live user with this external id, if there is one; of several the one WorkOS changed last.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn get_user_by_external_id(&self, external_id: &str) -> Result<Option<User>, StoreError> {
        self.state.store.user_by_external_id(external_id).await
    }

    /// The token's own claims, checked, without asking the database.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn identity(&self, token: &str) -> Result<Identity, TokenError> {
        self.state.lookups.identity(token).await
    }

    /// The present position of the change feed: every change up to it is committed. Read the users after asking for it, and
    /// follow from it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn position(&self) -> Result<Position, StoreError> {
        self.state.feed.now().await
    }

    /// Every change behind a position, in order, for ever; see [`Feed::stream`](crate::sync::feed::Feed::stream).
    pub fn changes(&self, after: Position) -> impl Stream<Item = Result<Change, FeedError>> + Send + use<> {
        self.state.feed.clone().stream(after)
    }

    /// The application's routes, to be mounted in any axum 0.8 application, beside [`AuthKit::run_background`]. An embedder
    /// bounds its own connections.
    pub fn router(&self) -> Router {
        http::router(self.state.clone())
    }

    /// The operator's routes: probes with detail, `/metrics`. Not for the public.
    pub fn ops_router(&self) -> Router {
        http::ops_router(self.state.clone())
    }

    /// Serves on `listener` (and the operator's routes on `ops`) and runs the background loops, until `shutdown` resolves;
    /// then answers what has begun, by a deadline. With the database away it serves 503 and keeps trying.
    ///
    /// # Errors
    /// [`RunError`] when the database turns out, at start or when it first answers, to be none this process may serve.
    pub async fn run(
        self,
        listener: TcpListener,
        ops: Option<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        let loops = self.start_loops(&stop);
        let metrics = self.state.metrics.clone();
        let (limits, ops_limits) = (self.limits, Limits { connections: OPS_CONNECTIONS, ..self.limits });
        let service = http::service(self.state.clone());
        let public = tokio::spawn(http::serve(listener, service, limits, metrics.clone(), stop.clone()));
        let ops = ops.map(|ops| tokio::spawn(http::serve(ops, self.ops_router(), ops_limits, metrics, stop.clone())));
        let ended = self.until(shutdown).await;
        tracing::info!("shutting down: no new connections, open requests are answered");
        self.state.closing.cancel();
        stop.cancel();
        let served = public.await;
        if let Some(ops) = ops {
            let _ = ops.await;
        }
        self.end_loops(loops).await;
        match served {
            Ok(Served::Drained) => tracing::info!("every open request was answered"),
            _ => tracing::warn!("the deadline passed with requests open; they were cut off"),
        }
        ended
    }

    /// Runs the background loops alone, until `shutdown` resolves: for an application that mounts [`AuthKit::router`] in a
    /// server of its own. Without it nothing is polled, and no handler runs.
    ///
    /// # Errors
    /// As [`AuthKit::run`].
    pub async fn run_background(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        let loops = self.start_loops(&stop);
        let ended = self.until(shutdown).await;
        self.state.closing.cancel();
        stop.cancel();
        self.end_loops(loops).await;
        ended
    }

    fn start_loops(&self, stop: &CancellationToken) -> Supervisor {
        let mut loops = Supervisor::new(self.state.metrics.clone(), stop.clone());
        loops.start(self.state.keys.clone());
        loops.start(self.state.watch.clone());
        self.jobs.start(&mut loops, &self.context, &self.handlers);
        loops
    }

    async fn end_loops(&self, loops: Supervisor) {
        loops.ended().await;
        // Nobody minds when the database is away: the leases run out by themselves.
        let _ = self.context.release().await;
    }

    async fn until(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        tokio::select! {
            () = shutdown => Ok(()),
            error = self.unfit() => Err(error),
        }
    }

    /// Resolves when the database must not be served, at start or later.
    async fn unfit(&self) -> RunError {
        let mut waiting = false;
        loop {
            match self.prepare().await {
                Ok(()) => {
                    tracing::info!("the database answers and its schema is current");
                    return self.state.store.turned_unfit().await.into();
                }
                Err(RunError::Migrations(MigrationsError::Database(StoreError::Unfit(unfit)))) => return unfit.into(),
                Err(RunError::Migrations(MigrationsError::Database(StoreError::Unbound))) => {}
                Err(RunError::Migrations(MigrationsError::Database(error))) => {
                    if !waiting {
                        tracing::error!(error = %error, "the database cannot be reached; answering 503 and trying again every second");
                    }
                    waiting = true;
                }
                Err(error) => return error,
            }
            tokio::time::sleep(DATABASE_PAUSE).await;
        }
    }

    /// Runs pending migrations, if that was asked for, and asks whether the database can be served.
    async fn prepare(&self) -> Result<(), RunError> {
        if let Some(pool) = &self.migrate {
            for migration in migrations::run(pool).await? {
                tracing::info!(migration, "migration applied");
            }
            for statement in roles::assert(pool).await.map_err(MigrationsError::Database)? {
                tracing::warn!(
                    statement,
                    "not allowed; somebody who is may want to run it, for the roles of applications"
                );
            }
        }
        Ok(self.state.store.check_bound().await.map_err(MigrationsError::Database)?)
    }
}
