//! How an [`AuthKit`](crate::AuthKit) is put together.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;

use super::action_settings::ActionSettings;
use super::background::Jobs;
use crate::domain::clock::Clock;
use crate::http::{CONNECTIONS, KEY_LENGTH, ServiceKeys, WRITE_TIMEOUT};
use crate::store::{self, Pool};
use crate::sync::catch_up::EVENT_TYPES;
use crate::sync::handlers::TIMEOUT;
use crate::tokens::KeySource;
use crate::workos::api::ApiKey;
use crate::workos::signature::{self, Secret};

/// WorkOS's own API.
const WORKOS_API: &str = "https://api.workos.com";

/// The largest webhook body by default. WorkOS's are a few kilobytes.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// Where WorkOS posts by default.
pub const WEBHOOK_PATH: &str = "/workos/webhook";

/// Bytes of webhooks in memory, all requests together.
pub(super) const WEBHOOK_MEMORY: usize = 64 * 1024 * 1024;

/// How long catch-up rests at the end by default.
pub const CATCH_UP_INTERVAL: Duration = Duration::from_secs(5);

/// From one reconcile to the next by default.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(86_400);

/// How long the inbox keeps events by default.
pub const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// Settings of an [`AuthKit`](crate::AuthKit); see [`AuthKit::builder`](crate::AuthKit::builder).
#[derive(Debug)]
#[must_use]
pub struct Builder {
    pub(super) receipts: Pool,
    pub(super) lookups: Pool,
    pub(super) background: Pool,
    pub(super) handlers: Pool,
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
    pub(super) body_timeout: Duration,
    pub(super) connections: usize,
    pub(super) write_timeout: Duration,
    pub(super) clock: Clock,
    pub(super) migrate: bool,
    pub(super) api_key: Option<ApiKey>,
    pub(super) service_keys: ServiceKeys,
    pub(super) cors_origins: Vec<HeaderValue>,
    pub(super) read_through: bool,
    pub(super) session_sign_ins: bool,
    pub(super) jobs: Jobs,
    /// What [`Builder::build`] will refuse.
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
            handler_timeout: TIMEOUT,
            client_id,
            database_timeout: store::TIMEOUT,
            api_base: WORKOS_API.to_owned(),
            jwks_url: None,
            key_source: None,
            issuers: Vec::new(),
            audiences: Vec::new(),
            allow_shared_issuer: false,
            webhook_secrets: Vec::new(),
            actions: ActionSettings::default(),
            webhook_path: WEBHOOK_PATH.to_owned(),
            signature_tolerance: signature::WEBHOOK_TOLERANCE,
            body_limit: BODY_LIMIT,
            body_timeout: Duration::from_secs(10),
            connections: CONNECTIONS,
            write_timeout: WRITE_TIMEOUT,
            clock: Clock::system(),
            migrate: false,
            api_key: None,
            service_keys: ServiceKeys::default(),
            cors_origins: Vec::new(),
            read_through: true,
            session_sign_ins: false,
            jobs: Jobs {
                catch_up: true,
                catch_up_interval: CATCH_UP_INTERVAL,
                backfill: true,
                reconcile_interval: Some(RECONCILE_INTERVAL),
                retention: RETENTION,
                event_types: EVENT_TYPES.map(str::to_owned).to_vec(),
                webhooks: false,
                handlers: Vec::new(),
            },
            mistakes: Vec::new(),
        }
    }

    /// Lookups draw on a pool of their own, so that a storm of webhooks cannot starve them.
    pub fn lookup_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.lookups = pool.into();
        self
    }

    /// Background work draws on a pool of its own, so that a backfill starves neither webhooks nor lookups.
    pub fn background_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.background = pool.into();
        self
    }

    /// The environment's API key. Without one there is no catch-up, no backfill and no reconcile.
    pub fn api_key(mut self, key: ApiKey) -> Self {
        self.api_key = Some(key);
        self
    }

    /// Lets backends read users at `/user_management/users` with this key, of at least [`KEY_LENGTH`] bytes; logs name it by its
    /// label. Only its hash is kept.
    /// Without any key there are no such routes.
    pub fn service_key(mut self, label: &str, key: &str) -> Self {
        if key.len() < KEY_LENGTH {
            self.mistakes.push(format!("a service key is shorter than {KEY_LENGTH} bytes: it could be guessed"));
        }
        self.service_keys.add(label, key);
        self
    }

    /// Lets pages of these origins (`https://app.example.com`) ask from a browser. Default none; what is no origin is left out.
    pub fn cors_origins(mut self, origins: &[String]) -> Self {
        let named = origins.iter().filter(|origin| origin.contains("://"));
        self.cors_origins = named.filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        self
    }

    /// Whether a user who is not here is asked about at WorkOS before a caller hears 404. Default on; needs the API key.
    pub fn read_through(mut self, on: bool) -> Self {
        self.read_through = on;
        self
    }

    /// Whether [`AuthKit::run`](crate::AuthKit::run) reads the Events API behind the webhooks, or instead of them. Default
    /// on.
    pub fn catch_up(mut self, on: bool) -> Self {
        self.jobs.catch_up = on;
        self
    }

    /// How long catch-up rests when it has read to the end. Default [`CATCH_UP_INTERVAL`].
    pub fn catch_up_interval(mut self, interval: Duration) -> Self {
        self.jobs.catch_up_interval = interval;
        self
    }

    /// The event types catch-up reads. Default [`EVENT_TYPES`]; those three are always among them.
    pub fn event_types(mut self, types: Vec<String>) -> Self {
        let more = types.into_iter().filter(|name| !EVENT_TYPES.contains(&name.as_str()));
        self.jobs.event_types = EVENT_TYPES.iter().map(|name| (*name).to_owned()).chain(more).collect();
        self
    }

    /// Whether a `session.created` moves its user's `last_sign_in_at`, unless somebody impersonates the user. WorkOS moves its own
    /// later and tells nobody, so this one can run ahead of it. Default off; when on, catch-up reads that type.
    pub fn session_sign_ins(mut self, on: bool) -> Self {
        self.session_sign_ins = on;
        self
    }

    /// Whether [`AuthKit::run`](crate::AuthKit::run) fills the table with every existing user, until that has been done once.
    /// Default on.
    pub fn backfill(mut self, on: bool) -> Self {
        self.jobs.backfill = on;
        self
    }

    /// How long after a complete walk [`AuthKit::run`](crate::AuthKit::run) reconciles; `None`: only when events may be lost.
    /// Default [`RECONCILE_INTERVAL`].
    pub fn reconcile_interval(mut self, interval: Option<Duration>) -> Self {
        self.jobs.reconcile_interval = interval;
        self
    }

    /// How long the inbox keeps events. Default [`RETENTION`]. Under 35 days only the payloads go; the rest of a row stays
    /// that long, so that an event that is read again is not new again.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.jobs.retention = retention;
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

    /// How long the body of a webhook or an action may take to arrive. Default 10 s.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// How many connections [`AuthKit::run`](crate::AuthKit::run) keeps open. For one more it closes the connection that has
    /// gone longest without completing a request. Default [`CONNECTIONS`]. Each takes a file descriptor, and the database
    /// needs some too.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How long a client of [`AuthKit::run`](crate::AuthKit::run) may take not one byte of an answer before its connection is
    /// closed. Default 30 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
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
}
