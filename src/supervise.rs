//! Runs background jobs and restarts them after a panic.
//!
//! A loop is a driver whose `tick` does one piece of work and says how long to rest. A panic is counted, and the tick is
//! retried after a pause. It never stops lookups or webhooks.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::sync::job::{Job, keeping};
use crate::tokens::KeyCache;

/// The pause after a panic doubles from the first value to the longest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Runs jobs until it is stopped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    loops: JoinSet<()>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Supervisor {
    pub(crate) fn new(metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        Self { loops: JoinSet::new(), stop, metrics }
    }

    /// Starts a loop. Its `tick` is dropped at an await point when the stop comes.
    pub(crate) fn start<J: Job>(&mut self, driver: J) {
        let (stop, metrics) = (self.stop.clone(), self.metrics.clone());
        self.loops.spawn(async move {
            let mut rest_after_panic = FIRST_REST;
            let rounds = async {
                loop {
                    let rest = match keeping(&driver, AssertUnwindSafe(driver.tick()).catch_unwind()).await {
                        Ok(rest) => {
                            rest_after_panic = FIRST_REST;
                            rest
                        }
                        Err(_panic) => {
                            metrics.restart(J::NAME);
                            tracing::error!(
                                r#loop = J::NAME,
                                "a background job panicked and is restarted; this is a defect of authkit-sync, please report it"
                            );
                            let rest = rest_after_panic;
                            rest_after_panic = (rest * 2).min(LONGEST_REST);
                            rest
                        }
                    };
                    keeping(&driver, tokio::time::sleep(rest)).await;
                }
            };
            stop.run_until_cancelled(rounds).await;
        });
    }

    /// Waits until every job has ended. Cancel the stop token first.
    pub(crate) async fn ended(mut self) {
        while self.loops.join_next().await.is_some() {}
    }
}

impl Job for KeyCache {
    const NAME: &'static str = "signing_keys";

    async fn tick(&self) -> Duration {
        self.refresh_when_due().await
    }
}
