//! `healthcheck`: ask the service on this machine whether it is well, for containers that have no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Exit, Failure, with_settings};
use crate::config::{self, Source};
use crate::workos::http::http_client;

pub(super) fn command() -> Command {
    let ready =
        Arg::new("ready").long("ready").action(ArgAction::SetTrue).help("ask whether it is ready, not only alive");
    let command =
        Command::new("healthcheck").about("Exit 0 when the service on this machine is well, else 1").arg(ready);
    with_settings(command, &["AUTHKIT_SYNC_LISTEN", "PORT"])
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let address = reachable(config::listen(source)?);
    let path = if matches.get_flag("ready") { "readyz" } else { "healthz" };
    let client = http_client().map_err(Failure::defect)?;
    let answer = client.get(format!("http://{address}/{path}")).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(Exit::Yes),
        Ok(answer) => Err(Failure::new(Exit::No, format!("/{path} on {address} answers {}", answer.status().as_u16()))),
        Err(_) => Err(Failure::new(Exit::No, format!("nothing answers on {address}"))),
    }
}

/// An address to listen on, as one to connect to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
