//! Shared by `backfill` and `reconcile`: their settings, retries after temporary failures, and progress on stderr.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Exit, Failure, serve, with_settings};
use crate::authkit::binding::PublishedKeys;
use crate::config::{self, Database, Environment, Source};
use crate::domain::clock::Clock;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::scans::ScanCounts;
use crate::sync::job::{Job, JobContext, JobError, REQUEST_INTERVAL, STANDBY, keeping};
use crate::tokens::{HttpKeySource, KeyCache};
use crate::workos::api::{Api, ApiKey};

const SETTINGS: [&str; 10] = [
    "DATABASE_URL",
    "WORKOS_CLIENT_ID",
    "WORKOS_API_KEY",
    "WORKOS_API_HOSTNAME",
    "WORKOS_API_PORT",
    "WORKOS_API_HTTPS",
    "AUTHKIT_SYNC_DB_POOL",
    "AUTHKIT_SYNC_DB_TIMEOUT",
    "AUTHKIT_SYNC_LOG_FORMAT",
    "RUST_LOG",
];

/// Failures in a row before the command gives up: some minutes.
const PATIENCE: u32 = 8;

/// Attempts to get the lease. A lease of a dead process has expired by then.
const TURNS: u32 = 8;

/// Pause between two progress lines if stderr is not a terminal.
const LINES: Duration = Duration::from_secs(5);

pub(super) fn with_walk_settings(command: Command) -> Command {
    with_settings(command, &SETTINGS)
}

pub(super) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// The database of an environment. Before the database is bound to the client ID, WorkOS must know that ID.
pub(super) fn store(database: &Database, environment: &Environment) -> Result<Store, Failure> {
    let keys = HttpKeySource::of_client(&environment.client_id, &environment.api_base);
    let keys = keys.map_err(|error| Failure::new(Exit::Config, error))?;
    let verifier = PublishedKeys(KeyCache::new(Arc::new(keys), Clock::system()));
    let pool = serve::pool(database);
    let store = Store::new(pool.clone(), pool, &environment.client_id, database.timeout);
    Ok(store.verifying_client(Arc::new(verifier)))
}

/// Connects the database and the API of the settings.
pub(super) fn context(source: &Source) -> Result<JobContext, Failure> {
    let (database, environment) = config::walk(source)?;
    let store = store(&database, &environment)?;
    let key = environment.api_key.unwrap_or_else(|| ApiKey::new(""));
    let api = Api::new(&environment.api_base, key, Clock::system());
    let api = api.map_err(|error| Failure::new(Exit::Config, error))?;
    Ok(JobContext::new(store, api, Clock::system(), Arc::new(Metrics::default()), fastrand::u64(..)))
}

/// The result of one step.
pub(super) enum Reached<T> {
    /// Another process has the lease.
    Elsewhere,
    /// Users so far, and the position.
    Going(ScanCounts, String),
    /// The last step.
    End(T),
}

/// Runs steps until the last one. Retries after temporary failures, and stops at Ctrl-C.
pub(super) async fn follow<T, J: Job>(
    context: &JobContext,
    driver: &J,
    mut step: impl AsyncFnMut() -> Result<Reached<T>, JobError>,
) -> Result<T, Failure> {
    let (progress, name) = (Progress::start(), J::NAME);
    let steps = async {
        let (mut failures, mut turns) = (0, 0);
        loop {
            let rest = match keeping(driver, step()).await {
                Ok(Reached::End(end)) => return Ok(end),
                Ok(Reached::Going(counts, place)) => {
                    failures = 0;
                    progress.show(counts, &place);
                    REQUEST_INTERVAL
                }
                Ok(Reached::Elsewhere) if turns < TURNS => {
                    turns += 1;
                    progress.say(&format!("another process is running a {name}: waiting for it to finish"));
                    STANDBY
                }
                Ok(Reached::Elsewhere) => {
                    let message = format!("another process is running a {name} and continues it; nothing to do");
                    return Err(Failure::unavailable(message));
                }
                Err(trouble) if trouble.may_pass() && failures < PATIENCE => {
                    context.pass_on_pause(name, &trouble).await;
                    let rest = context.rest_after(&trouble, failures);
                    failures += 1;
                    progress.say(&format!("{trouble}: retrying in {} s", rest.as_secs().max(1)));
                    rest
                }
                Err(trouble) => return Err(trouble.into()),
            };
            keeping(driver, tokio::time::sleep(rest)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = steps => outcome,
        () = serve::terminated() => Err(Failure::unavailable("interrupted; run the command again to continue")),
    };
    progress.bar.finish_and_clear();
    let _ = context.release().await;
    outcome
}

/// A progress bar on a terminal, plain lines otherwise.
struct Progress {
    bar: ProgressBar,
    plain: bool,
    last: std::sync::Mutex<(Instant, i64)>,
}

impl Progress {
    fn start() -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} users  {per_sec}  {msg}") {
            bar.set_style(style);
        }
        Self { bar, plain, last: std::sync::Mutex::new((Instant::now(), 0)) }
    }

    fn show(&self, counts: ScanCounts, place: &str) {
        let total = counts.total();
        self.bar.set_position(total.unsigned_abs());
        self.bar.set_message(place.to_owned());
        let Ok(mut last) = self.last.lock() else { return };
        let (since, before) = *last;
        if self.plain && since.elapsed() >= LINES {
            let seconds = i64::try_from(since.elapsed().as_secs()).unwrap_or(1).max(1);
            eprintln!("{total} users  {}/s  {place}", (total - before) / seconds);
            *last = (Instant::now(), total);
        }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}
