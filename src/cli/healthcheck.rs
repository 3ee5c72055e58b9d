//! `healthcheck`: check the service on this machine, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{ArgMatches, Command};

use super::{Exit, Failure, flag};
use crate::config::{self, Source};
use crate::workos::http::http_client;

pub(super) fn command() -> Command {
    let ready = flag("ready", "Check readiness (/readyz) instead of liveness (/healthz)");
    Command::new("healthcheck")
        .about("Check the service on this machine. Exit with 0 if it is healthy, else with 1")
        .arg(ready)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let address = reachable(config::listen(source)?);
    let path = if matches.get_flag("ready") { "readyz" } else { "healthz" };
    let client = http_client().map_err(Failure::defect)?;
    let answer = client.get(format!("http://{address}/{path}")).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(Exit::Yes),
        Ok(answer) => Err(Failure::new(
            Exit::No,
            format!("the service at {address} is not healthy: /{path} answered {}", answer.status().as_u16()),
        )),
        Err(_) => Err(Failure::new(
            Exit::No,
            format!(
                "the service at {address} does not answer: start `authkit-sync serve`, or correct AUTHKIT_SYNC_LISTEN"
            ),
        )),
    }
}

/// Returns the address for a connection to a listener on `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
