//! SIGHUP: read the log filter (`RUST_LOG` in the `.env` file) again. It never ends the process.
//!
//! `serve` then also reads the secrets again (`rotation.rs`). Every other setting takes effect at the next start.

use clap::ArgMatches;
use tokio::signal::unix::{SignalKind, signal};

use super::{Dotenv, Failure, log_filter, source};
use crate::telemetry::{LogFilter, NotReplaced};

/// Starts to reread at every SIGHUP, in the background. Call it first, because before this call SIGHUP ends the process.
pub(super) fn listen(command: &str, matches: &ArgMatches, filter: LogFilter) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup()).map_err(Failure::defect)?;
    let (command, matches, mut filter) = (command.to_owned(), matches.clone(), filter);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reread(&command, &matches, &mut filter);
        }
    });
    Ok(())
}

/// Rereads once, and logs the result in one line.
fn reread(command: &str, matches: &ArgMatches, filter: &mut LogFilter) {
    let dotenv = if command == "dev" { Dotenv::default() } else { Dotenv::read() };
    let overridden = std::env::var_os("RUST_LOG").is_some_and(|text| !text.is_empty());
    if let Some(problem) = dotenv.problem {
        tracing::warn!(filter = filter.text(), problem, "SIGHUP: reread .env; it cannot be used, so nothing changes");
        return;
    }
    let wanted = log_filter(command, &source(matches, &dotenv));
    let replaced = filter.replace(&wanted, |from, to| {
        tracing::info!(
            from,
            to,
            "SIGHUP: reread .env; the log filter changes, other settings that are not secret do so at the next start"
        );
    });
    match replaced {
        Ok(()) => {}
        Err(NotReplaced::Malformed) => tracing::warn!(
            filter = filter.text(),
            "SIGHUP: reread .env; its RUST_LOG is malformed, so the log filter does not change"
        ),
        Err(NotReplaced::Unchanged) if overridden => tracing::info!(
            filter = filter.text(),
            "SIGHUP: reread .env; the log filter does not change, because the environment's RUST_LOG overrides the file's"
        ),
        Err(NotReplaced::Unchanged) => tracing::info!(
            filter = filter.text(),
            "SIGHUP: reread .env; the log filter is the same, other settings that are not secret change at the next start"
        ),
    }
}
