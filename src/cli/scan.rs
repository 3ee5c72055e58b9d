//! Shared by `backfill` and `reconcile`: the connections, retries after temporary failures, and progress on stderr.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::database::store_of_known_client;
use super::termination::terminated;
use super::{Exit, Failure};
use crate::config::{self, Source, WORKOS_API_KEY};
use crate::domain::clock::Clock;
use crate::metrics::Metrics;
use crate::store::scans::ScanCounts;
use crate::sync::job::{Job, JobContext, REQUEST_INTERVAL, STANDBY};
use crate::sync::runner::{Runner, renewing};
use crate::telemetry;
use crate::workos::api::Api;

/// Number of consecutive failures after which the command fails. With the pauses they take some minutes.
const MAX_FAILURES: u32 = 8;

/// Number of attempts to get the lease. In this time the lease of a killed process expires.
const LEASE_ATTEMPTS: u32 = 8;

/// Pause between two progress lines if stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Connects the database and the API of the settings.
pub(super) fn context(source: &Source) -> Result<JobContext, Failure> {
    let environment = config::environment(source)?;
    let store = store_of_known_client(source, &environment)?;
    let api = Api::new(&environment.api_base, source.get(&WORKOS_API_KEY)?, Clock::system());
    let api = api.map_err(|error| Failure::new(Exit::Config, error))?;
    let context = JobContext::new(store, api, Clock::system(), Arc::new(Metrics::default()), fastrand::u64(..));
    Ok(context.syncing(config::kinds(source)?))
}

/// The result of one step.
pub(super) enum ScanStep<T> {
    /// The counts so far, and the position.
    Page(ScanCounts, String),
    /// The last step.
    Done(T),
}

/// Runs steps until the last one. Retries after temporary failures, and stops at Ctrl-C. `scan` names the scan in every line.
pub(super) async fn run_steps<T, J: Job>(
    context: &JobContext,
    job: &Runner<J>,
    scan: &'static str,
    scan_step: impl Fn(J::Output) -> ScanStep<T>,
) -> Result<T, Failure> {
    let progress = Progress::start(scan);
    let steps = async {
        let (mut failures, mut lease_attempts) = (0, 0);
        loop {
            let rest = match renewing(job, job.step()).await.map(|output| output.map(&scan_step)) {
                Ok(Some(ScanStep::Done(end))) => return Ok(end),
                Ok(Some(ScanStep::Page(counts, position))) => {
                    failures = 0;
                    progress.show(counts, &position);
                    REQUEST_INTERVAL
                }
                Ok(None) if lease_attempts < LEASE_ATTEMPTS => {
                    lease_attempts += 1;
                    progress.print("another process is running it: waiting for it to finish");
                    STANDBY
                }
                Ok(None) => {
                    let message = format!("another process is running the {scan} and continues it; nothing to do");
                    return Err(Failure::unavailable(message));
                }
                Err(error) if error.is_temporary() && failures < MAX_FAILURES => {
                    context.store_pause(J::NAME, &error).await;
                    let rest = context.backoff(&error, failures);
                    failures += 1;
                    progress.print(&format!("{error}; the next attempt is in {} s", rest.as_secs().max(1)));
                    rest
                }
                Err(error) => return Err(error.into()),
            };
            renewing(job, tokio::time::sleep(rest)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = steps => outcome,
        () = terminated() => Err(Failure::unavailable("interrupted; run the command again to continue")),
    };
    progress.bar.finish_and_clear();
    let _ = context.release().await;
    outcome
}

/// A progress bar on a terminal, plain lines otherwise.
struct Progress {
    scan: &'static str,
    bar: ProgressBar,
    is_plain: bool,
    last: std::sync::Mutex<(Instant, i64)>,
}

impl Progress {
    fn start(scan: &'static str) -> Self {
        let is_plain = telemetry::is_json() || !std::io::stderr().is_terminal();
        let bar = if is_plain { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {pos} read, {per_sec}  {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(scan);
        Self { scan, bar, is_plain, last: std::sync::Mutex::new((Instant::now(), 0)) }
    }

    fn show(&self, counts: ScanCounts, position: &str) {
        let total = counts.total();
        self.bar.set_position(total.unsigned_abs());
        self.bar.set_message(position.to_owned());
        let Ok(mut last) = self.last.lock() else { return };
        let (since, before) = *last;
        if self.is_plain && since.elapsed() >= LINE_INTERVAL {
            let seconds = i64::try_from(since.elapsed().as_secs()).unwrap_or(1).max(1);
            let rate = (total - before) / seconds;
            telemetry::say("INFO", &format!("{}: {total} read, {rate}/s  {position}", self.scan));
            *last = (Instant::now(), total);
        }
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| telemetry::say("INFO", &format!("{}: {line}", self.scan)));
    }
}
