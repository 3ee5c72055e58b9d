//! Runs background loops: restarts a loop after a panic, and stops all loops at shutdown.
//!
//! A `tick` of a loop does one piece of work and returns the pause before the next one. A tick that panics is counted, shown as a
//! failure of the loop, and retried later. It never affects lookups or webhooks.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::sync::job::JobContext;
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
    context: JobContext,
}

impl Supervisor {
    pub(crate) fn new(context: JobContext, stop: CancellationToken) -> Self {
        Self { loops: JoinSet::new(), stop, context }
    }

    /// Starts a loop. Its `tick` is dropped at an await point at shutdown.
    pub(crate) fn start<L: BackgroundLoop>(&mut self, background_loop: L) {
        let (stop, context) = (self.stop.clone(), self.context.clone());
        context.metrics.started(L::NAME);
        self.loops.spawn(async move {
            let mut panics = 0;
            let rounds = async {
                loop {
                    let pause =
                        match renewing(&background_loop, AssertUnwindSafe(background_loop.tick()).catch_unwind()).await
                        {
                            Ok(pause) => {
                                if panics > 0 {
                                    context.note_end_of_panics(L::NAME);
                                }
                                panics = 0;
                                pause
                            }
                            Err(_panic) => {
                                let pause = FIRST_PAUSE.saturating_mul(1 << panics.min(10)).min(LONGEST_PAUSE);
                                panics += 1;
                                context.note_panic(L::NAME, pause);
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
