//! Starts the handlers of this process: its own in Rust, and every handler in SQL.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::HandlerValues;
use crate::supervise::Supervisor;
use crate::sync::feed::Feed;
use crate::sync::handlers::{BacklogLoop, FeedLoop, HandlerWorker, RustHandler};
use crate::sync::job::{Job, JobContext, JobError};
use crate::sync::runner::Runner;

/// Interval of the check for new handlers.
const INTERVAL: Duration = Duration::from_secs(2);

/// Starts two loops for each handler and updates the handler metrics.
#[derive(Debug)]
pub(super) struct Dispatcher {
    context: JobContext,
    feed: Feed,
    rust: Vec<RustHandler>,
    /// Whether the handlers in Rust are registered in the database.
    is_registered: bool,
    /// Handlers whose loops run, with true for SQL: a name can move from Rust to SQL.
    started: HashSet<(String, bool)>,
    /// Handlers that have metrics.
    measured: Vec<String>,
    loops: Supervisor,
}

impl Dispatcher {
    pub(super) fn runner(context: JobContext, rust: Vec<RustHandler>) -> Runner<Self> {
        // Dropping the dispatcher drops the loops.
        let loops = Supervisor::new(context.clone(), CancellationToken::new());
        let (feed, started) = (Feed::new(context.store.clone()), HashSet::new());
        let job =
            Self { context: context.clone(), feed, rust, is_registered: false, started, measured: Vec::new(), loops };
        Runner::of_job(context, job)
    }
}

impl Job for Dispatcher {
    const NAME: &'static str = "handlers";

    type Output = ();

    fn needs_lease(&self) -> bool {
        false
    }

    fn rest_after(&self, (): ()) -> Duration {
        INTERVAL
    }

    async fn step(&mut self) -> Result<(), JobError> {
        let store = &self.context.store;
        // A handler with a name that is already used does not prevent the others.
        let mut used_name = None;
        if !self.is_registered {
            for handler in &self.rust {
                if !store.register_handler(&handler.name, &handler.types, handler.from_start).await? {
                    used_name = Some(handler.name.to_string());
                }
            }
            self.is_registered = used_name.is_none();
        }
        for handler in store.handlers(None).await? {
            let in_sql = handler.sql.is_some();
            let rust = self.rust.iter().find(|rust| !in_sql && *rust.name == *handler.name).cloned();
            let ours = rust.is_some() || in_sql;
            if ours && self.started.insert((handler.name.clone(), in_sql)) {
                let worker = HandlerWorker::new(self.context.clone(), self.feed.clone(), &handler.name, rust);
                let worker = Arc::new(worker);
                self.loops.start(FeedLoop(worker.clone()));
                self.loops.start(BacklogLoop(worker));
            }
        }
        let lags = store.handler_lags().await?;
        for removed in self.measured.iter().filter(|name| !lags.iter().any(|lag| lag.name == **name)) {
            self.context.metrics.remove_handler(removed);
        }
        for lag in &lags {
            let values = HandlerValues {
                lag: lag.lag,
                waiting: lag.waiting,
                dead_lettered: lag.dead_lettered,
                is_blocked: lag.blocked,
                is_paused: lag.paused,
                has_process: lag.has_process,
            };
            self.context.metrics.handler(&lag.name, values);
        }
        self.measured = lags.into_iter().map(|lag| lag.name).collect();
        used_name.map_or(Ok(()), |name| Err(JobError::NameTaken(name)))
    }
}
