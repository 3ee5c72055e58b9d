//! `serve`: receive webhooks and answer lookups.

use std::net::SocketAddr;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio::net::TcpListener;

use super::{Exit, Failure, with_settings};
use crate::authkit::{AuthKit, Builder, CONNECTIONS};
use crate::config::{self, Database, Source};
use crate::store::Pool;

const SETTINGS: [&str; 38] = [
    "DATABASE_URL",
    "WORKOS_CLIENT_ID",
    "WORKOS_API_KEY",
    "WORKOS_WEBHOOK_SECRET",
    "WORKOS_ACTION_SECRET",
    "WORKOS_API_HOSTNAME",
    "WORKOS_API_PORT",
    "WORKOS_API_HTTPS",
    "WORKOS_ISSUER",
    "WORKOS_JWKS_URL",
    "AUTHKIT_SYNC_LISTEN",
    "AUTHKIT_SYNC_OPS_LISTEN",
    "AUTHKIT_SYNC_API_KEYS",
    "AUTHKIT_SYNC_CORS_ORIGINS",
    "AUTHKIT_SYNC_READ_THROUGH",
    "AUTHKIT_SYNC_WEBHOOK_PATH",
    "AUTHKIT_SYNC_SIGNATURE_TOLERANCE",
    "AUTHKIT_SYNC_BODY_LIMIT",
    "AUTHKIT_SYNC_ACTION_RULES",
    "AUTHKIT_SYNC_ACTION_URL",
    "AUTHKIT_SYNC_ACTION_URL_SECRET",
    "AUTHKIT_SYNC_ACTION_URL_FAILURE",
    "AUTHKIT_SYNC_ACTION_URL_TIMEOUT",
    "AUTHKIT_SYNC_ACTION_URL_PRIVATE",
    "AUTHKIT_SYNC_AUDIENCES",
    "AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
    "AUTHKIT_SYNC_CATCH_UP",
    "AUTHKIT_SYNC_CATCH_UP_INTERVAL",
    "AUTHKIT_SYNC_EVENT_TYPES",
    "AUTHKIT_SYNC_SESSION_SIGN_INS",
    "AUTHKIT_SYNC_BACKFILL",
    "AUTHKIT_SYNC_RECONCILE_INTERVAL",
    "AUTHKIT_SYNC_RETENTION",
    "AUTHKIT_SYNC_DB_POOL",
    "AUTHKIT_SYNC_DB_TIMEOUT",
    "AUTHKIT_SYNC_LOG_FORMAT",
    "RUST_LOG",
    "PORT",
];

pub(super) fn command() -> Command {
    let migrate = Arg::new("migrate").long("migrate").action(ArgAction::SetTrue).help("Run pending migrations first");
    with_settings(
        Command::new("serve").about("Receive webhooks, answer lookups and run the background jobs").arg(migrate),
        &SETTINGS,
    )
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let settings = config::serve(source)?;
    let (listen, ops_listen) = (settings.listen, settings.ops_listen);
    let listener = bind(settings.listen, "AUTHKIT_SYNC_LISTEN").await?;
    let ops = bind(settings.ops_listen, "AUTHKIT_SYNC_OPS_LISTEN").await?;
    let undecided = settings.actions.nobody_decides();
    let polling_only = settings.webhook_secrets.is_empty();
    let authkit = builder(settings, matches.get_flag("migrate"))
        .connections(affordable_connections())
        .build()
        .map_err(|error| Failure::new(Exit::Config, error))?;
    tracing::info!(
        listen = %listen,
        ops_listen = %ops_listen,
        version = env!("CARGO_PKG_VERSION"),
        "authkit-sync is listening"
    );
    if polling_only {
        tracing::info!("polling only, because WORKOS_WEBHOOK_SECRET is not set: users are some seconds behind WorkOS");
    }
    if undecided {
        tracing::warn!(
            "every action is allowed, because WORKOS_ACTION_SECRET is set and neither AUTHKIT_SYNC_ACTION_RULES nor AUTHKIT_SYNC_ACTION_URL is"
        );
    }
    authkit.run(listener, Some(ops), terminated()).await?;
    Ok(Exit::Yes)
}

fn builder(settings: config::Serve, migrate: bool) -> Builder {
    let config::Serve { database, environment, background, .. } = settings;
    let mut builder = AuthKit::builder(pool(&database), environment.client_id)
        .migrate(migrate)
        .lookup_pool(pool(&database))
        .background_pool(pool(&database))
        .handler_pool(pool(&database))
        .database_timeout(database.timeout)
        .api_base(environment.api_base)
        .catch_up(background.catch_up)
        .catch_up_interval(background.catch_up_interval)
        .event_types(background.event_types)
        .session_sign_ins(background.session_sign_ins)
        .backfill(background.backfill)
        .reconcile_interval(background.reconcile_interval)
        .retention(background.retention)
        .cors_origins(&settings.cors_origins)
        .read_through(settings.read_through)
        .issuers(settings.tokens.issuers)
        .audiences(settings.tokens.audiences)
        .allow_shared_issuer(settings.tokens.allow_shared_issuer)
        .webhook_secrets(settings.webhook_secrets)
        .action_secrets(settings.actions.secrets)
        .action_rules(settings.actions.rules)
        .webhook_path(settings.webhook_path)
        .signature_tolerance(settings.signature_tolerance)
        .body_limit(settings.body_limit);
    for (label, key) in &settings.service_keys {
        builder = builder.service_key(label, key);
    }
    if let Some(endpoint) = settings.actions.endpoint {
        builder = builder.action_endpoint(endpoint);
    }
    if let Some(key) = environment.api_key {
        builder = builder.api_key(key);
    }
    if let Some(url) = settings.tokens.jwks_url {
        builder = builder.jwks_url(url);
    }
    builder
}

/// File descriptors reserved for the database, WorkOS and everything else.
const OTHER_FILES: usize = 256;

/// Raises the limit of open files and returns how many connections it allows. Without free descriptors for the database, idle
/// connections could stop the service.
fn affordable_connections() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let allowed = limit.current;
    limit.current = limit.maximum;
    let files = if setrlimit(Resource::Nofile, limit).is_ok() { limit.current } else { allowed };
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let affordable = files.saturating_sub(OTHER_FILES).clamp(16, CONNECTIONS);
    if affordable < CONNECTIONS {
        tracing::warn!(
            open_files = files,
            connections = affordable,
            "the limit of open files is low, so the service accepts fewer connections: raise it with `ulimit -n`"
        );
    }
    affordable
}

async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::unavailable(format!("cannot listen on {address}: {error}; free the port, or change {setting}"))
    })
}

/// Creates a pool that connects at first use, so that the service starts while the database is unreachable.
pub(super) fn pool(database: &Database) -> Pool {
    Pool::connect(database.options.clone(), database.pool, database.timeout)
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let term = async {
        match signal(SignalKind::terminate()) {
            Ok(mut term) => {
                term.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = term => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
