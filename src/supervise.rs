//! Runs background loops: restarts a loop after a panic, and stops all loops at shutdown.
//!
//! A `tick` of a loop does one piece of work and returns the pause before the next one. A tick that panics is counted and retried
//! later. It never affects lookups or webhooks.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::sync::runner::{BackgroundLoop, renewing};
use crate::tokens::KeyCache;

/// Pause after a panic. It doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs loops until shutdown.
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

    /// Starts a loop. Its `tick` is dropped at an await point at shutdown.
    pub(crate) fn start<L: BackgroundLoop>(&mut self, background_loop: L) {
        let (stop, metrics) = (self.stop.clone(), self.metrics.clone());
        metrics.started(L::NAME);
        self.loops.spawn(async move {
            let mut pause_after_panic = FIRST_PAUSE;
            let rounds = async {
                loop {
                    let pause = match renewing(&background_loop, AssertUnwindSafe(background_loop.tick()).catch_unwind())
                        .await
                    {
                        Ok(pause) => {
                            pause_after_panic = FIRST_PAUSE;
                            pause
                        }
                        Err(_panic) => {
                            metrics.restart(L::NAME);
                            tracing::error!(
                                job = L::NAME,
                                "a background job panicked and is restarted; this is a defect of authkit-sync, please report it"
                            );
                            let pause = pause_after_panic;
                            pause_after_panic = (pause * 2).min(LONGEST_PAUSE);
                            pause
                        }
                    };
                    renewing(&background_loop, tokio::time::sleep(pause)).await;
                }
            };
            stop.run_until_cancelled(rounds).await;
        });
    }

    /// Waits until every loop has ended. Loops end when shutdown begins.
    pub(crate) async fn ended(mut self) {
        while self.loops.join_next().await.is_some() {}
    }
}

impl BackgroundLoop for KeyCache {
    const NAME: &'static str = "signing_keys";

    async fn tick(&self) -> Duration {
        self.refresh_when_due().await
    }
}
