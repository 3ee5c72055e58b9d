//! The builder of an [`AuthKit`](crate::AuthKit).

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;

use super::action_settings::ActionSettings;
use super::background::Jobs;
use crate::domain::clock::Clock;
use crate::domain::kinds::Kinds;
use crate::http::{CONNECTIONS, DRAIN_DELAY, KEY_LENGTH, ServiceKeys, WRITE_TIMEOUT};
use crate::store::{self, Pool};
use crate::sync::handlers::TIMEOUT;
use crate::sync::standby::MAX_STALENESS;
pub use crate::sync::standby::{MIN_STALENESS, STALENESS};
use crate::tokens::KeySource;
use crate::workos::api::ApiKey;
use crate::workos::signature::{self, Secret};

/// Host name of WorkOS's API.
pub const WORKOS_API_HOSTNAME: &str = "api.workos.com";

/// Webhooks that may wait for their commit, by default.
const WEBHOOK_QUEUE: usize = crate::sync::group_commit::QUEUE;

/// Default limit of a webhook body, in bytes. WorkOS's bodies have a few kilobytes.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// Default path of the webhook route.
pub const WEBHOOK_PATH: &str = "/workos/webhook";

/// Memory for the bodies of all webhooks together, in bytes.
pub(super) const WEBHOOK_MEMORY: usize = 64 * 1024 * 1024;

/// Default pause of catch-up at the end of the Events API.
pub const CATCH_UP_INTERVAL: Duration = Duration::from_secs(5);

/// Default interval between two reconciles.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(86_400);

/// Default retention period of events in the inbox.
pub const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// By default, the Events API is polled.
pub const CATCH_UP: bool = true;

/// By default, all existing users are read once.
pub const BACKFILL: bool = true;

/// By default, a missing user is read from WorkOS.
pub const READ_THROUGH: bool = true;

/// By default, `session.created` updates no user.
pub const SESSION_SIGN_INS: bool = false;

/// By default, a token of the shared issuer must name this client.
pub const ALLOW_SHARED_ISSUER: bool = false;

/// Settings of an [`AuthKit`](crate::AuthKit); see [`AuthKit::builder`](crate::AuthKit::builder).
#[derive(Debug)]
#[must_use]
pub struct Builder {
    pub(super) receipts: Pool,
    pub(super) lookups: Pool,
    pub(super) background: Pool,
    pub(super) handlers: Pool,
    /// The standby, and the maximum age of its data.
    pub(super) standby: Option<(Pool, Duration)>,
    pub(super) handler_timeout: Duration,
    pub(super) client_id: String,
    pub(super) database_timeout: Duration,
    pub(super) api_base: String,
    pub(super) jwks_url: Option<String>,
    pub(super) key_source: Option<KeySourceArgument>,
    pub(super) issuers: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) allow_shared_issuer: bool,
    pub(super) webhook_secrets: Vec<Secret>,
    pub(super) actions: ActionSettings,
    pub(super) webhook_path: String,
    pub(super) signature_tolerance: Duration,
    pub(super) body_limit: usize,
    pub(super) webhook_queue: usize,
    pub(super) body_timeout: Duration,
    pub(super) connections: usize,
    pub(super) write_timeout: Duration,
    pub(super) drain_delay: Duration,
    pub(super) clock: Clock,
    pub(super) migrate: bool,
    pub(super) api_key: Option<ApiKey>,
    pub(super) service_keys: ServiceKeys,
    pub(super) cors_origins: Vec<HeaderValue>,
    pub(super) read_through: bool,
    pub(super) session_sign_ins: bool,
    pub(super) kinds: Kinds,
    pub(super) jobs: Jobs,
    /// Invalid arguments of the methods. [`Builder::build`] reports them.
    pub(super) mistakes: Vec<String>,
}

pub(super) struct KeySourceArgument(pub(super) Arc<dyn KeySource>);

impl std::fmt::Debug for KeySourceArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySource")
    }
}

impl Builder {
    pub(super) fn new(pool: Pool, client_id: String) -> Self {
        Self {
            receipts: pool.clone(),
            lookups: pool.clone(),
            background: pool.clone(),
            handlers: pool,
            standby: None,
            handler_timeout: TIMEOUT,
            client_id,
            database_timeout: store::TIMEOUT,
            api_base: format!("https://{WORKOS_API_HOSTNAME}"),
            jwks_url: None,
            key_source: None,
            issuers: Vec::new(),
            audiences: Vec::new(),
            allow_shared_issuer: ALLOW_SHARED_ISSUER,
            webhook_secrets: Vec::new(),
            actions: ActionSettings::default(),
            webhook_path: WEBHOOK_PATH.to_owned(),
            signature_tolerance: signature::WEBHOOK_TOLERANCE,
            body_limit: BODY_LIMIT,
            webhook_queue: WEBHOOK_QUEUE,
            body_timeout: Duration::from_secs(10),
            connections: CONNECTIONS,
            write_timeout: WRITE_TIMEOUT,
            drain_delay: DRAIN_DELAY,
            clock: Clock::system(),
            migrate: false,
            api_key: None,
            service_keys: ServiceKeys::default(),
            cors_origins: Vec::new(),
            read_through: READ_THROUGH,
            session_sign_ins: SESSION_SIGN_INS,
            kinds: Kinds::ALL,
            jobs: Jobs {
                catch_up: CATCH_UP,
                catch_up_interval: CATCH_UP_INTERVAL,
                backfill: BACKFILL,
                refresh: true,
                reconcile_interval: Some(RECONCILE_INTERVAL),
                retention: RETENTION,
                event_types: Vec::new(),
                webhooks: false,
                handlers: Vec::new(),
            },
            mistakes: Vec::new(),
        }
    }

    /// Sets a separate pool for lookups, so that many webhooks do not block them.
    pub fn lookup_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.lookups = pool.into();
        self
    }

    /// Sets a separate pool for background jobs, so that a backfill does not block webhooks or lookups.
    pub fn background_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.background = pool.into();
        self
    }

    /// Reads for `/user_management`, `/organizations` and `/authorization` from a streaming standby of the database. When a request
    /// starts, the standby's data is at most as old as `staleness`, which is from 3 seconds to a day. If the data is older, or
    /// the standby fails, the primary answers. Lookups by token and the change feed always use the primary.
    pub fn standby(mut self, pool: impl Into<Pool>, staleness: Duration) -> Self {
        if !(MIN_STALENESS..=MAX_STALENESS).contains(&staleness) {
            self.mistakes.push(format!(
                "the staleness of a standby must be at least {} s and at most a day",
                MIN_STALENESS.as_secs()
            ));
        }
        self.standby = Some((pool.into(), staleness));
        self
    }

    /// Sets the environment's API key. Without it, there is no catch-up, backfill, reconcile or read-through.
    pub fn api_key(mut self, key: ApiKey) -> Self {
        self.api_key = Some(key);
        self
    }

    /// Adds a service key for backends. Enables `/user_management/users` and `/changes`.
    ///
    /// The key must have at least 32 bytes. Only its hash is kept. Logs contain its label.
    pub fn service_key(mut self, label: &str, key: &str) -> Self {
        if key.len() < KEY_LENGTH {
            self.mistakes.push(format!(
                "a service key is shorter than {KEY_LENGTH} bytes and could be guessed; use a longer one"
            ));
        }
        self.service_keys.add(label, key);
        self
    }

    /// Sets the origins (`https://app.example.com`) whose pages can call the lookups from a browser. Default none. Values that are
    /// not origins are ignored.
    pub fn cors_origins(mut self, origins: &[String]) -> Self {
        let named = origins.iter().filter(|origin| origin.contains("://"));
        self.cors_origins = named.filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        self
    }

    /// Sets whether a missing user is requested from WorkOS before the answer is 404. Default true. Requires the API key.
    pub fn read_through(mut self, on: bool) -> Self {
        self.read_through = on;
        self
    }

    /// Sets whether [`AuthKit::run`](crate::AuthKit::run) polls the Events API, in addition to webhooks or instead of them.
    /// Default true.
    pub fn catch_up(mut self, on: bool) -> Self {
        self.jobs.catch_up = on;
        self
    }

    /// Sets the pause of catch-up at the end of the Events API. Default 5 seconds.
    pub fn catch_up_interval(mut self, interval: Duration) -> Self {
        self.jobs.catch_up_interval = interval;
        self
    }

    /// Sets additional event types that catch-up reads. The types of what is synced are always included.
    pub fn event_types(mut self, types: Vec<String>) -> Self {
        self.jobs.event_types = types;
        self
    }

    /// Sets what is synced in addition to users: organizations, memberships, roles, ended sessions. Default: all of them. Other
    /// kinds are neither stored nor checked.
    pub fn kinds(mut self, kinds: Kinds) -> Self {
        self.kinds = kinds;
        self
    }

    /// Sets whether a `session.created` event updates the user's `last_sign_in_at`, except during impersonation. Default false.
    ///
    /// WorkOS updates its own field later and sends no event for it, so ours can be more recent. If true, catch-up reads the type.
    pub fn session_sign_ins(mut self, on: bool) -> Self {
        self.session_sign_ins = on;
        self
    }

    /// Sets whether [`AuthKit::run`](crate::AuthKit::run) reads all existing users once. Default true.
    pub fn backfill(mut self, on: bool) -> Self {
        self.jobs.backfill = on;
        self
    }

    /// Sets the interval of reconciles. `None`: reconcile only when events may be lost. Default 24 hours.
    pub fn reconcile_interval(mut self, interval: Option<Duration>) -> Self {
        self.jobs.reconcile_interval = interval;
        self
    }

    /// Sets the retention period of events in the inbox. Default 90 days.
    ///
    /// Below 35 days only the payloads are deleted earlier. The rest of a row stays 35 days, so that an event that is read again is
    /// recognized as a duplicate.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.jobs.retention = retention;
        self
    }

    /// Sets the timeout of a transaction or lookup, including the wait for a connection. Default 5 seconds.
    pub fn database_timeout(mut self, timeout: Duration) -> Self {
        self.database_timeout = timeout;
        self
    }

    /// Sets the base URL of WorkOS's API, for a custom auth domain or an emulator. Default `https://api.workos.com`.
    pub fn api_base(mut self, base: impl Into<String>) -> Self {
        self.api_base = base.into().trim_end_matches('/').to_owned();
        self
    }

    /// Sets the URL of the signing keys. Default `<api base>/sso/jwks/<client ID>`.
    pub fn jwks_url(mut self, url: impl Into<String>) -> Self {
        self.jwks_url = Some(url.into());
        self
    }

    /// Sets another source of signing keys than a URL.
    pub fn key_source(mut self, source: Arc<dyn KeySource>) -> Self {
        self.key_source = Some(KeySourceArgument(source));
        self
    }

    /// Sets the accepted issuers. Default: those derived from the API base and the client ID.
    pub fn issuers(mut self, issuers: Vec<String>) -> Self {
        self.issuers = issuers;
        self
    }

    /// Sets the accepted audiences in addition to the client ID.
    pub fn audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Sets whether a token of WorkOS's shared issuer is accepted even if nothing in it names this client. Default false.
    ///
    /// If true, only the signing keys of the client bind a token to it.
    pub fn allow_shared_issuer(mut self, allow: bool) -> Self {
        self.allow_shared_issuer = allow;
        self
    }

    /// Sets the secret of the webhook endpoint, or several during a rotation. Enables the webhook route.
    pub fn webhook_secrets(mut self, secrets: Vec<Secret>) -> Self {
        self.webhook_secrets = secrets;
        self
    }

    /// Sets the path of the webhook route. Default `/workos/webhook`.
    pub fn webhook_path(mut self, path: impl Into<String>) -> Self {
        self.webhook_path = path.into();
        self
    }

    /// Sets how many webhooks may wait for their commit. Default 4,096. More are answered 503 `busy`, and WorkOS retries them.
    pub fn webhook_queue(mut self, events: usize) -> Self {
        self.webhook_queue = events;
        self
    }

    /// Sets the tolerated difference between the time of a webhook's signature and our clock. Default 180 seconds.
    pub fn signature_tolerance(mut self, tolerance: Duration) -> Self {
        self.signature_tolerance = tolerance;
        self
    }

    /// Sets the limit of a webhook body, in bytes. Default 1 MiB.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// Sets the timeout for receiving the body of a webhook or an action. Default 10 seconds.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Sets the limit of open connections of [`AuthKit::run`](crate::AuthKit::run). Default 4096.
    ///
    /// At the limit, the connection that has gone longest without completing a request is closed. Each connection needs a file
    /// descriptor, in addition to those of the database connections.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Sets the timeout for a client of [`AuthKit::run`](crate::AuthKit::run) that accepts no byte of an answer. Default 30
    /// seconds. Then its connection is closed.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets the delay at shutdown between failing `/readyz` and closing the listeners. Default 5 seconds; zero: no delay. There is
    /// none if nothing has requested `/readyz` within the last minute.
    pub fn drain_delay(mut self, delay: Duration) -> Self {
        self.drain_delay = delay;
        self
    }

    /// Sets whether pending migrations are run at start. Default false. Until they have run, the service answers 503.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Sets the clock for checking signatures and tokens. Default: the system clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
}
