//! Settings. The flags, `--help`, the guide `operating` and `deploy/env.example` come from one table or are compared with it.
//!
//! A setting is an environment variable and, unless it is secret, a flag that overrides it. Secrets have no flag, because `ps`
//! shows flags. A command reads all its settings before it starts anything and reports every problem at once.

mod actions;
mod table;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::workos::api::ApiKey;
use crate::workos::signature::Secret;
pub use actions::Actions;
pub use table::{SETTINGS, Setting};

/// The values of the settings: flags first, then the environment. Empty text counts as unset.
#[derive(Debug, Default)]
pub struct Source {
    values: BTreeMap<&'static str, String>,
}

impl Source {
    /// Reads every setting of the table from `flag`, else from `environment`.
    #[must_use]
    pub fn new(
        flag: impl Fn(&Setting) -> Option<String>,
        environment: impl Fn(&'static str) -> Option<String>,
    ) -> Self {
        let values = SETTINGS.iter().filter_map(|setting| {
            let value = flag(setting).or_else(|| environment(setting.name))?;
            let value = value.trim();
            (!value.is_empty()).then(|| (setting.name, value.to_owned()))
        });
        Self { values: values.collect() }
    }
}

/// Everything that is wrong with the settings, one line each. It never contains a value.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(Vec<String>);

/// Reads settings and collects all problems.
#[derive(Debug)]
pub struct Reader<'a> {
    source: &'a Source,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Creates a reader.
    #[must_use]
    pub fn new(source: &'a Source) -> Self {
        Self { source, problems: Vec::new() }
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        let fallback = || SETTINGS.iter().find(|setting| setting.name == name).and_then(|setting| setting.default);
        self.source.values.get(name).map(String::as_str).or_else(fallback)
    }

    fn required(&mut self, name: &str) -> &'a str {
        self.text(name).unwrap_or_else(|| {
            let help = SETTINGS.iter().find(|setting| setting.name == name).map_or("", |setting| setting.help);
            self.problems.push(format!("{name} is not set. Set it to: {help}"));
            ""
        })
    }

    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, &'static str>) -> Option<T> {
        match parse(self.text(name)?) {
            Ok(value) => Some(value),
            Err(wanted) => {
                self.problems.push(format!("{name} is malformed: it must be {wanted}"));
                None
            }
        }
    }

    /// Returns the settings if there are no problems.
    fn finish<T>(self, settings: Option<T>) -> Result<T, Problems> {
        match settings {
            Some(settings) if self.problems.is_empty() => Ok(settings),
            _ => Err(Problems(self.problems)),
        }
    }
}

/// The database.
#[derive(Clone, Debug)]
pub struct Database {
    /// Address and role.
    pub options: PgConnectOptions,
    /// Connections per pool.
    pub pool: u32,
    /// Timeout of one transaction or lookup.
    pub timeout: Duration,
}

/// The WorkOS environment.
#[derive(Debug)]
pub struct Environment {
    /// `WORKOS_CLIENT_ID`
    pub client_id: String,
    /// `WORKOS_API_KEY`
    pub api_key: Option<ApiKey>,
    /// Base URL from `WORKOS_API_HTTPS`, `_HOSTNAME` and `_PORT`.
    pub api_base: String,
}

/// The background jobs.
#[derive(Debug)]
pub struct Background {
    /// `AUTHKIT_SYNC_CATCH_UP`
    pub catch_up: bool,
    /// `AUTHKIT_SYNC_CATCH_UP_INTERVAL`
    pub catch_up_interval: Duration,
    /// `AUTHKIT_SYNC_EVENT_TYPES`
    pub event_types: Vec<String>,
    /// `AUTHKIT_SYNC_SESSION_SIGN_INS`
    pub session_sign_ins: bool,
    /// `AUTHKIT_SYNC_BACKFILL`
    pub backfill: bool,
    /// `AUTHKIT_SYNC_RECONCILE_INTERVAL`
    pub reconcile_interval: Option<Duration>,
    /// `AUTHKIT_SYNC_RETENTION`
    pub retention: Duration,
}

/// Which access tokens are accepted.
#[derive(Debug)]
pub struct Tokens {
    /// `WORKOS_ISSUER`
    pub issuers: Vec<String>,
    /// `WORKOS_JWKS_URL`
    pub jwks_url: Option<String>,
    /// `AUTHKIT_SYNC_AUDIENCES`
    pub audiences: Vec<String>,
    /// `AUTHKIT_SYNC_ALLOW_SHARED_ISSUER`
    pub allow_shared_issuer: bool,
}

/// The settings of `serve`.
#[derive(Debug)]
pub struct Serve {
    /// The database.
    pub database: Database,
    /// The WorkOS environment.
    pub environment: Environment,
    /// The background jobs.
    pub background: Background,
    /// `AUTHKIT_SYNC_API_KEYS`: labels and keys.
    pub service_keys: Vec<(String, String)>,
    /// `AUTHKIT_SYNC_CORS_ORIGINS`
    pub cors_origins: Vec<String>,
    /// `AUTHKIT_SYNC_READ_THROUGH`
    pub read_through: bool,
    /// `WORKOS_WEBHOOK_SECRET`
    pub webhook_secrets: Vec<Secret>,
    /// Which access tokens are accepted.
    pub tokens: Tokens,
    /// The settings of actions.
    pub actions: Actions,
    /// `AUTHKIT_SYNC_LISTEN`, or all addresses with `PORT`.
    pub listen: SocketAddr,
    /// `AUTHKIT_SYNC_OPS_LISTEN`
    pub ops_listen: SocketAddr,
    /// `AUTHKIT_SYNC_WEBHOOK_PATH`
    pub webhook_path: String,
    /// `AUTHKIT_SYNC_SIGNATURE_TOLERANCE`
    pub signature_tolerance: Duration,
    /// `AUTHKIT_SYNC_BODY_LIMIT`, bytes.
    pub body_limit: usize,
}

/// Reads the settings of `migrate`.
///
/// # Errors
/// [`Problems`]
pub fn database(source: &Source) -> Result<Database, Problems> {
    let mut reader = Reader::new(source);
    let database = reader.database();
    reader.finish(database)
}

/// Reads whether sessions are stored as sign-ins.
///
/// # Errors
/// [`Problems`]
pub fn session_sign_ins(source: &Source) -> Result<bool, Problems> {
    let mut reader = Reader::new(source);
    let session_sign_ins = reader.parsed("AUTHKIT_SYNC_SESSION_SIGN_INS", value::on_off);
    reader.finish(session_sign_ins)
}

/// Reads the settings of `rebind`: the database and its new client ID.
///
/// # Errors
/// [`Problems`]
pub fn rebind(source: &Source) -> Result<(Database, Environment), Problems> {
    let mut reader = Reader::new(source);
    let (database, environment) = (reader.database(), reader.environment());
    reader.finish(database.zip(environment))
}

/// Reads the settings of `backfill` and `reconcile`: the database and the environment with its API key.
///
/// # Errors
/// [`Problems`]
pub fn walk(source: &Source) -> Result<(Database, Environment), Problems> {
    let mut reader = Reader::new(source);
    let database = reader.database();
    reader.required("WORKOS_API_KEY");
    let environment = reader.environment();
    reader.finish(database.zip(environment))
}

/// Reads the settings of `token explain`. The database is optional.
///
/// # Errors
/// [`Problems`]
pub fn token(source: &Source) -> Result<(Environment, Tokens, Option<Database>), Problems> {
    let mut reader = Reader::new(source);
    let (environment, tokens) = (reader.environment(), reader.tokens());
    let database = reader.text("DATABASE_URL").is_some().then(|| reader.database());
    let settings = environment.zip(tokens).map(|(environment, tokens)| (environment, tokens, database.flatten()));
    reader.finish(settings)
}

/// Reads the settings of `serve`.
///
/// # Errors
/// [`Problems`]
pub fn serve(source: &Source) -> Result<Serve, Problems> {
    let mut reader = Reader::new(source);
    let settings = reader.serve();
    reader.finish(settings)
}

/// Reads the setting of `webhook sign`: the first secret.
///
/// # Errors
/// [`Problems`]
pub fn signing_secret(source: &Source) -> Result<Secret, Problems> {
    let mut reader = Reader::new(source);
    reader.required("WORKOS_WEBHOOK_SECRET");
    let secret = reader.webhook_secrets().into_iter().next();
    reader.finish(secret)
}

/// Reads the setting of `healthcheck`: the address of the public listener.
///
/// # Errors
/// [`Problems`]
pub fn listen(source: &Source) -> Result<SocketAddr, Problems> {
    let mut reader = Reader::new(source);
    let listen = reader.listen();
    reader.finish(listen)
}

/// Returns true for the log format `json`. The command itself reports a malformed value.
#[must_use]
pub fn logs_json(source: &Source) -> bool {
    source.values.get("AUTHKIT_SYNC_LOG_FORMAT").is_some_and(|format| format == "json")
}

/// Returns `RUST_LOG`, if set.
#[must_use]
pub fn log_filter(source: &Source) -> Option<&str> {
    source.values.get("RUST_LOG").map(String::as_str)
}

impl Reader<'_> {
    fn database(&mut self) -> Option<Database> {
        self.required("DATABASE_URL");
        let options = self.parsed("DATABASE_URL", value::database_url);
        let pool = self.parsed("AUTHKIT_SYNC_DB_POOL", value::pool_size);
        let timeout = self.parsed("AUTHKIT_SYNC_DB_TIMEOUT", value::duration);
        Some(Database { options: options?, pool: pool?, timeout: timeout? })
    }

    fn client_id(&mut self) -> Option<String> {
        self.required("WORKOS_CLIENT_ID");
        self.parsed("WORKOS_CLIENT_ID", value::client_id)
    }

    fn environment(&mut self) -> Option<Environment> {
        let client_id = self.client_id();
        let api_key = self.parsed("WORKOS_API_KEY", value::api_key).map(ApiKey::new);
        let api_base = self.api_base();
        Some(Environment { client_id: client_id?, api_key, api_base: api_base? })
    }

    fn background(&mut self) -> Option<Background> {
        let catch_up = self.parsed("AUTHKIT_SYNC_CATCH_UP", value::on_off);
        let catch_up_interval = self.parsed("AUTHKIT_SYNC_CATCH_UP_INTERVAL", value::duration);
        let event_types = self.parsed("AUTHKIT_SYNC_EVENT_TYPES", value::event_types).unwrap_or_default();
        let session_sign_ins = self.parsed("AUTHKIT_SYNC_SESSION_SIGN_INS", value::on_off);
        let backfill = self.parsed("AUTHKIT_SYNC_BACKFILL", value::auto_off);
        let reconcile_interval = self.parsed("AUTHKIT_SYNC_RECONCILE_INTERVAL", value::interval);
        let retention = self.parsed("AUTHKIT_SYNC_RETENTION", value::long_duration);
        Some(Background {
            catch_up: catch_up?,
            catch_up_interval: catch_up_interval?,
            event_types,
            session_sign_ins: session_sign_ins?,
            backfill: backfill?,
            reconcile_interval: reconcile_interval?,
            retention: retention?,
        })
    }

    fn serve(&mut self) -> Option<Serve> {
        let database = self.database();
        let environment = self.environment();
        let background = self.background();
        let read_through = self.parsed("AUTHKIT_SYNC_READ_THROUGH", value::on_off);
        let cors_origins = self.parsed("AUTHKIT_SYNC_CORS_ORIGINS", value::origins).unwrap_or_default();
        let service_keys = self.parsed("AUTHKIT_SYNC_API_KEYS", value::service_keys).unwrap_or_default();
        if service_keys.iter().any(|(_, key)| self.text("WORKOS_API_KEY") == Some(key)) {
            self.problems.push(
                "AUTHKIT_SYNC_API_KEYS contains WORKOS_API_KEY, which also allows writing to WorkOS. Create separate keys".to_owned(),
            );
        }
        let works = |it: &Background| it.catch_up || it.backfill || it.reconcile_interval.is_some();
        if background.as_ref().is_some_and(works) || read_through == Some(true) {
            self.required("WORKOS_API_KEY");
        }
        let webhook_secrets = self.webhook_secrets();
        if webhook_secrets.is_empty() && background.as_ref().is_some_and(|it| !it.catch_up) {
            self.problems.push(
                "WORKOS_WEBHOOK_SECRET is not set and AUTHKIT_SYNC_CATCH_UP is off, so no event can arrive. Set one of them"
                    .to_owned(),
            );
        }
        let actions = self.actions(&webhook_secrets);
        let tokens = self.tokens();
        let listen = self.listen();
        let ops_listen = self.parsed("AUTHKIT_SYNC_OPS_LISTEN", value::address);
        let webhook_path = self.parsed("AUTHKIT_SYNC_WEBHOOK_PATH", value::path);
        let signature_tolerance = self.parsed("AUTHKIT_SYNC_SIGNATURE_TOLERANCE", value::duration);
        let body_limit = self.parsed("AUTHKIT_SYNC_BODY_LIMIT", value::size);
        self.parsed("AUTHKIT_SYNC_LOG_FORMAT", value::log_format);
        Some(Serve {
            database: database?,
            environment: environment?,
            background: background?,
            service_keys,
            cors_origins,
            read_through: read_through?,
            webhook_secrets,
            tokens: tokens?,
            actions,
            listen: listen?,
            ops_listen: ops_listen?,
            webhook_path: webhook_path?,
            signature_tolerance: signature_tolerance?,
            body_limit: body_limit?,
        })
    }

    fn tokens(&mut self) -> Option<Tokens> {
        let issuers = self.parsed("WORKOS_ISSUER", value::urls).unwrap_or_default();
        let jwks_url = self.parsed("WORKOS_JWKS_URL", value::url);
        let audiences = self.parsed("AUTHKIT_SYNC_AUDIENCES", value::list).unwrap_or_default();
        let allow_shared_issuer = self.parsed("AUTHKIT_SYNC_ALLOW_SHARED_ISSUER", value::boolean);
        Some(Tokens { issuers, jwks_url, audiences, allow_shared_issuer: allow_shared_issuer? })
    }

    fn webhook_secrets(&mut self) -> Vec<Secret> {
        self.secrets("WORKOS_WEBHOOK_SECRET", "Webhooks")
    }

    /// Reads the signing secrets of an endpoint. `page` is the page of the dashboard that shows them.
    fn secrets(&mut self, name: &str, page: &str) -> Vec<Secret> {
        let secrets = self.parsed(name, value::list).unwrap_or_default();
        if secrets.iter().any(|secret| secret.starts_with("sk_")) {
            self.problems.push(format!(
                "{name} contains an API key (sk_…). Copy the signing secret of the endpoint from the dashboard, page {page}"
            ));
        }
        secrets.into_iter().map(Secret::new).collect()
    }

    fn api_base(&mut self) -> Option<String> {
        let host = self.parsed("WORKOS_API_HOSTNAME", value::hostname);
        let https = self.parsed("WORKOS_API_HTTPS", value::boolean);
        let port = match self.text("WORKOS_API_PORT") {
            Some(_) => format!(":{}", self.parsed("WORKOS_API_PORT", value::port)?),
            None => String::new(),
        };
        Some(format!("{}://{}{port}", if https? { "https" } else { "http" }, host?))
    }

    /// Returns `AUTHKIT_SYNC_LISTEN`, else all addresses with `PORT`, else the default.
    fn listen(&mut self) -> Option<SocketAddr> {
        if self.source.values.contains_key("AUTHKIT_SYNC_LISTEN") || self.text("PORT").is_none() {
            return self.parsed("AUTHKIT_SYNC_LISTEN", value::address);
        }
        self.parsed("PORT", value::port).map(|port| SocketAddr::from(([0, 0, 0, 0], port)))
    }
}
