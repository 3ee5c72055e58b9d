//! `serve`: receive webhooks and answer lookups.

use std::net::SocketAddr;

use clap::{ArgMatches, Command};
use tokio::net::TcpListener;

use super::termination::Termination;
use super::{Exit, Failure, flag, rotation};
use crate::authkit::CONNECTIONS;
use crate::config::{self, OPS_LISTEN, Rotation, Source, WEBHOOK_SECRETS};

pub(super) fn command() -> Command {
    Command::new("serve")
        .about("Receive webhooks, answer lookups and run the background jobs")
        .arg(flag("migrate", "Run pending migrations first"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let mut termination = Termination::listen();
    let (listen, ops_listen) = (config::listen(source)?, source.get(&OPS_LISTEN)?);
    let builder = config::builder(source)?.migrate(matches.get_flag("migrate")).connections(affordable_connections());
    let listener = bind(listen, "AUTHKIT_SYNC_LISTEN").await?;
    let ops = bind(ops_listen, "AUTHKIT_SYNC_OPS_LISTEN").await?;
    let authkit = builder.build().map_err(|error| Failure::new(Exit::Config, error))?;
    // The configured port can be 0, which means any free port.
    tracing::info!(
        listen = %listener.local_addr().unwrap_or(listen),
        ops_listen = %ops.local_addr().unwrap_or(ops_listen),
        version = env!("CARGO_PKG_VERSION"),
        "authkit-sync is listening"
    );
    if source.find(&WEBHOOK_SECRETS).is_none() {
        tracing::info!("polling only, because WORKOS_WEBHOOK_SECRET is not set: users are some seconds behind WorkOS");
    }
    if config::allows_every_action(source) {
        tracing::warn!(
            "every action is allowed, because WORKOS_ACTION_SECRET is set and neither AUTHKIT_SYNC_ACTION_RULES nor AUTHKIT_SYNC_ACTION_URL is"
        );
    }
    rotation::start(Rotation::new(authkit.clone(), source), matches)?;
    let draining = authkit.clone();
    let signalled = async move {
        let signal = termination.received().await;
        tracing::info!(signal, "received a signal, so the service stops");
        tokio::spawn(async move {
            let signal = termination.received().await;
            tracing::info!(signal, "received a second signal");
            draining.skip_drain_delay();
        });
    };
    authkit.run(listener, Some(ops), signalled).await?;
    tracing::info!("the service has stopped");
    Ok(Exit::Yes)
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
