//! The drain delay: at shutdown, readiness fails first. The listeners close only after the proxies had time to notice it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Default delay between failing readiness and closing the listeners.
pub const DRAIN_DELAY: Duration = Duration::from_secs(5);

/// If the last request to `/readyz` is older than this, nothing polls it.
const POLLED_WITHIN: Duration = Duration::from_secs(60);

/// Whether this process drains.
#[derive(Debug)]
pub(crate) struct Drain {
    delay: Duration,
    last_poll: Mutex<Option<Instant>>,
    begun: CancellationToken,
    skipped: CancellationToken,
}

impl Drain {
    pub(crate) fn new(delay: Duration) -> Self {
        let (begun, skipped) = (CancellationToken::new(), CancellationToken::new());
        Self { delay, last_poll: Mutex::new(None), begun, skipped }
    }

    /// Records a request to `/readyz`.
    pub(super) fn note_poll(&self) {
        *self.last_poll.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns true if the drain delay has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Ends the delay. If it has not begun yet, there will be none.
    pub(crate) fn skip(&self) {
        self.skipped.cancel();
    }

    /// Makes readiness fail, and waits for the delay. Without a recent poll nothing would notice it, so there is no delay.
    pub(crate) async fn pass(&self) {
        self.begun.cancel();
        let last_poll = *self.last_poll.lock().unwrap_or_else(PoisonError::into_inner);
        let is_polled = last_poll.is_some_and(|poll| poll.elapsed() < POLLED_WITHIN);
        if self.delay.is_zero() || self.skipped.is_cancelled() || !is_polled {
            return;
        }
        tracing::info!(
            delay_ms = u64::try_from(self.delay.as_millis()).unwrap_or(u64::MAX),
            "/readyz answers 503 now, and requests are still answered until the drain delay has passed; a second \
             signal skips the delay"
        );
        let passed = self.skipped.run_until_cancelled(tokio::time::sleep(self.delay)).await;
        if passed.is_none() {
            tracing::info!("the drain delay is skipped");
        }
    }
}
