//! Reads secrets again: those in files every few seconds and at SIGHUP, those in the `.env` file at SIGHUP.
//!
//! Files are compared by their content. So the service notices a file that is written in place, a file that is replaced by a
//! rename, and the symbolic link that Kubernetes replaces, on every file system.

use std::time::Duration;

use clap::ArgMatches;
use tokio::signal::unix::{SignalKind, signal};

use super::{Dotenv, Failure, source};
use crate::config::Rotation;

/// The interval between two reads of the files.
const INTERVAL: Duration = Duration::from_secs(2);

/// Starts to replace secrets, in the background.
pub(super) fn start(mut rotation: Rotation, matches: &ArgMatches) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup()).map_err(Failure::defect)?;
    let matches = matches.clone();
    tokio::spawn(async move {
        loop {
            let is_hangup = tokio::select! {
                hangup = hangups.recv() => hangup.is_some(),
                () = tokio::time::sleep(INTERVAL), if rotation.has_files() => false,
            };
            let dotenv = if is_hangup { Dotenv::read() } else { Dotenv::default() };
            // A malformed `.env` file lacks settings. `hangup` reports it.
            let is_reread = is_hangup && dotenv.problem.is_none();
            let given = if is_reread { source(&matches, &dotenv) } else { rotation.unread() };
            let reading = tokio::task::spawn_blocking(move || {
                given.load();
                given
            });
            let Ok(given) = reading.await else { return };
            if is_hangup {
                rotation.retry_now();
            }
            let replaced = rotation.adopt(given).await;
            if is_hangup {
                tracing::info!(replaced = ?replaced, "the secrets were read again");
            }
        }
    });
    Ok(())
}
