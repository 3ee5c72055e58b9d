//! [`AuthKit`]: everything put together, for the binary and for applications that embed it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use sqlx::postgres::PgPool;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::{HttpKeySource, Identity, KeyCache, KeySource, TokenError, TokenPolicy, TokenVerifier};
use crate::domain::clock::Clock;
use crate::domain::user::User;
use crate::http::{self, Edge, Limits, Served};
use crate::lookup::{LookupError, Lookups};
use crate::metrics::Metrics;
use crate::store::environment::Unfit;
use crate::store::migrations::{self, MigrationsError};
use crate::store::{self, Store, StoreError};
use crate::supervise::Supervisor;
use crate::workos::signature::{self, Secret};

/// WorkOS's own API.
const WORKOS_API: &str = "https://api.workos.com";

/// The largest webhook body by default. WorkOS's are a few kilobytes.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// Where WorkOS posts by default.
pub const WEBHOOK_PATH: &str = "/workos/webhook";

/// Body bytes in memory, all requests together.
const BYTES_IN_FLIGHT: usize = 64 * 1024 * 1024;

/// How long the database is left alone between two tries at start.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// A synced copy of one WorkOS environment's users: receives webhooks, answers lookups. Cloning is cheap.
///
/// It takes a pool and settings as arguments and touches neither the environment, nor signals, nor any global.
#[derive(Clone, Debug)]
pub struct AuthKit {
    edge: Arc<Edge>,
    /// Where to run pending migrations first, if that was asked for.
    migrate: Option<PgPool>,
}

/// Settings of an [`AuthKit`]; see [`AuthKit::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    receipts: PgPool,
    lookups: PgPool,
    client_id: String,
    database_timeout: Duration,
    api_base: String,
    jwks_url: Option<String>,
    key_source: Option<KeySourceArgument>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    allow_shared_issuer: bool,
    webhook_secrets: Vec<Secret>,
    webhook_path: String,
    signature_tolerance: Duration,
    body_limit: usize,
    body_timeout: Duration,
    clock: Clock,
    migrate: bool,
}

struct KeySourceArgument(Arc<dyn KeySource>);

impl std::fmt::Debug for KeySourceArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySource")
    }
}

/// Why an [`AuthKit`] could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

/// Why [`AuthKit::run`] ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database answered, and must not be served by this process.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Pending migrations were to be run first, and could not be.
    #[error(transparent)]
    Migrations(#[from] MigrationsError),
}

impl AuthKit {
    /// Begins with a pool on a migrated database and the WorkOS client id whose users it holds.
    pub fn builder(pool: PgPool, client_id: impl Into<String>) -> Builder {
        Builder {
            receipts: pool.clone(),
            lookups: pool,
            client_id: client_id.into(),
            database_timeout: store::TIMEOUT,
            api_base: WORKOS_API.to_owned(),
            jwks_url: None,
            key_source: None,
            issuers: Vec::new(),
            audiences: Vec::new(),
            allow_shared_issuer: false,
            webhook_secrets: Vec::new(),
            webhook_path: WEBHOOK_PATH.to_owned(),
            signature_tolerance: signature::WEBHOOK_TOLERANCE,
            body_limit: BODY_LIMIT,
            body_timeout: Duration::from_secs(10),
            clock: Clock::system(),
            migrate: false,
        }
    }

    /// **`get_auth_user`**: the live user behind an access token.
    ///
    /// One signature check and one indexed statement; no call to WorkOS unless its keys have changed.
    ///
    /// # Errors
    /// [`LookupError`]: the token is refused, its user is deleted or unknown, or something of ours is away. Only the first
    /// is a reason to sign anybody out.
    pub async fn get_auth_user(&self, token: &str) -> Result<User, LookupError> {
        self.edge.lookups.session(token).await.map(|(user, _)| user)
    }

    /// The token's own claims, checked, without asking the database.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn identity(&self, token: &str) -> Result<Identity, TokenError> {
        self.edge.lookups.identity(token).await
    }

    /// The application's routes, to be mounted in any axum 0.8 application. An embedder bounds its own connections.
    pub fn router(&self) -> Router {
        http::router(self.edge.clone())
    }

    /// The operator's routes: probes with detail, `/metrics`. Not for the public.
    pub fn ops_router(&self) -> Router {
        http::ops_router(self.edge.clone())
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
        let metrics = self.edge.metrics.clone();
        let mut loops = Supervisor::new(metrics.clone(), stop.clone());
        let keys = self.edge.keys.clone();
        loops.start("signing_keys", move || {
            let keys = keys.clone();
            async move { keys.tick().await }
        });
        let limits = Limits::default();
        let service = http::service(self.edge.clone());
        let public = tokio::spawn(http::serve(listener, service, limits, metrics.clone(), stop.clone()));
        let ops = ops.map(|ops| tokio::spawn(http::serve(ops, self.ops_router(), limits, metrics, stop.clone())));
        let ended = tokio::select! {
            () = shutdown => Ok(()),
            error = self.unfit() => Err(error),
        };
        tracing::info!("shutting down: no new connections, open requests are answered");
        stop.cancel();
        let served = public.await;
        if let Some(ops) = ops {
            let _ = ops.await;
        }
        loops.ended().await;
        match served {
            Ok(Served::Drained) => tracing::info!("every open request was answered"),
            _ => tracing::warn!("the deadline passed with requests open; they were cut off"),
        }
        ended
    }

    /// Resolves when the database says that it must not be served; never, once it said that it may.
    async fn unfit(&self) -> RunError {
        let mut waiting = false;
        loop {
            match self.prepare().await {
                Ok(()) => {
                    tracing::info!("the database answers and its schema is current");
                    return std::future::pending().await;
                }
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
        }
        match self.edge.store.check().await {
            Err(StoreError::Unfit(unfit)) => Err(unfit.into()),
            other => other.map_err(|error| MigrationsError::Database(error).into()),
        }
    }
}

impl Builder {
    /// Lookups draw on a pool of their own, so that a storm of webhooks cannot starve them.
    pub fn lookup_pool(mut self, pool: PgPool) -> Self {
        self.lookups = pool;
        self
    }

    /// How long one transaction or lookup may take, waiting for a connection included. Default 5 s.
    pub fn database_timeout(mut self, timeout: Duration) -> Self {
        self.database_timeout = timeout;
        self
    }

    /// Where WorkOS answers, without a trailing slash: a custom auth domain, or an emulator. Default `https://api.workos.com`.
    pub fn api_base(mut self, base: impl Into<String>) -> Self {
        self.api_base = base.into().trim_end_matches('/').to_owned();
        self
    }

    /// Where the signing keys are. Default `<api base>/sso/jwks/<client id>`.
    pub fn jwks_url(mut self, url: impl Into<String>) -> Self {
        self.jwks_url = Some(url.into());
        self
    }

    /// Signing keys from elsewhere than a URL.
    pub fn key_source(mut self, source: Arc<dyn KeySource>) -> Self {
        self.key_source = Some(KeySourceArgument(source));
        self
    }

    /// Accepted issuers, replacing those derived from the API base and the client id.
    pub fn issuers(mut self, issuers: Vec<String>) -> Self {
        self.issuers = issuers;
        self
    }

    /// Audiences accepted beside the client id.
    pub fn audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Accepts tokens of the issuer all WorkOS customers share even when nothing in them names this client; then the
    /// per-client keys are the only binding. Default off.
    pub fn allow_shared_issuer(mut self, allow: bool) -> Self {
        self.allow_shared_issuer = allow;
        self
    }

    /// The webhook endpoint's secret, or several while rotating. Without one there is no receiver.
    pub fn webhook_secrets(mut self, secrets: Vec<Secret>) -> Self {
        self.webhook_secrets = secrets;
        self
    }

    /// Where WorkOS posts. Default [`WEBHOOK_PATH`].
    pub fn webhook_path(mut self, path: impl Into<String>) -> Self {
        self.webhook_path = path.into();
        self
    }

    /// How far a signature's time may lie from ours, either way. Default 180 s.
    pub fn signature_tolerance(mut self, tolerance: Duration) -> Self {
        self.signature_tolerance = tolerance;
        self
    }

    /// The largest webhook body, bytes. Default [`BODY_LIMIT`].
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// How long a webhook's body may take to arrive. Default 10 s.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Runs pending migrations when the database first answers; until then the service answers 503. Default off.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// The clock that signatures and tokens are judged by. Default the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Puts everything together. Nothing is connected to yet.
    ///
    /// # Errors
    /// [`BuildError`] when a setting cannot be used.
    pub fn build(self) -> Result<AuthKit, BuildError> {
        if !self.webhook_path.starts_with('/') || self.webhook_path.contains(['{', '}', '?', '#']) {
            return Err(BuildError("the webhook path must begin with / and be a plain path".to_owned()));
        }
        let migrate = self.migrate.then(|| self.receipts.clone());
        let store = Store::new(self.receipts, self.lookups, &self.client_id, self.database_timeout);
        let source = match self.key_source {
            Some(KeySourceArgument(source)) => source,
            None => {
                let url = self.jwks_url.unwrap_or_else(|| format!("{}/sso/jwks/{}", self.api_base, self.client_id));
                let source = HttpKeySource::new(&url).map_err(|error| BuildError(error.to_string()))?;
                Arc::new(source) as Arc<dyn KeySource>
            }
        };
        let keys = KeyCache::new(source, self.clock.clone());
        let mut policy = TokenPolicy::new(&self.client_id, &self.api_base)
            .audiences(self.audiences)
            .allow_shared_issuer(self.allow_shared_issuer);
        if !self.issuers.is_empty() {
            policy = policy.issuers(self.issuers);
        }
        let tokens = Arc::new(TokenVerifier::new(policy, keys.clone(), self.clock.clone()));
        Ok(AuthKit {
            migrate,
            edge: Arc::new(Edge {
                lookups: Lookups::new(store.clone(), tokens),
                store,
                webhook_secrets: self.webhook_secrets,
                webhook_path: self.webhook_path,
                signature_tolerance: self.signature_tolerance,
                body_limit: self.body_limit,
                body_timeout: self.body_timeout,
                bytes_in_flight: Arc::new(Semaphore::new(BYTES_IN_FLIGHT)),
                clock: self.clock,
                metrics: Arc::new(Metrics::default()),
                keys,
            }),
        })
    }
}
