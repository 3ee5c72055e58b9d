//! The heartbeat of a process: every 30 seconds it records a sample, and its row in `workos.replicas`.
//!
//! The samples of the last hour are in memory, for the charts of the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::job::JobContext;
use super::progress::SyncProgress;
use super::runner::BackgroundLoop;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Counted;

/// Interval of the check whether a heartbeat is due.
const TICK: Duration = Duration::from_secs(3);

/// Seconds between two samples.
pub const SAMPLE_SECONDS: i64 = 30;

/// Number of samples that are kept: those of one hour, and the one before them.
pub const SAMPLES: usize = 121;

/// The release of this process.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The state of this process at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was recorded.
    pub at: Timestamp,
    /// The delay of the table behind WorkOS beyond the delay by design, in seconds. `None` while it is unknown.
    pub lag_seconds: Option<i64>,
    /// The counters of this process since its start.
    pub counted: Counted,
}

/// The samples of the last hour.
#[derive(Debug, Default)]
pub struct Samples(Mutex<VecDeque<Sample>>);

impl Samples {
    /// Records a sample, unless there is one of the same half minute. Returns whether it was recorded.
    pub fn record(&self, sample: Sample) -> bool {
        let slot = |at: Timestamp| at.unix_seconds().div_euclid(SAMPLE_SECONDS);
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.back().is_some_and(|last| slot(last.at) == slot(sample.at)) {
            return false;
        }
        // The clock was set back.
        samples.retain(|earlier| earlier.at < sample.at);
        samples.push_back(sample);
        while samples.len() > SAMPLES {
            samples.pop_front();
        }
        true
    }

    /// Returns the samples, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Sample> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Runs the heartbeat.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    context: JobContext,
    watch: SyncProgress,
    samples: Arc<Samples>,
    started_at: Timestamp,
    /// Whether the row of this process was written since the last sample.
    is_noted: Mutex<bool>,
}

impl Heartbeat {
    pub(crate) fn new(context: JobContext, watch: SyncProgress, samples: Arc<Samples>) -> Self {
        let started_at = context.clock.now();
        Self { context, watch, samples, started_at, is_noted: Mutex::new(false) }
    }

    fn is_noted(&self) -> std::sync::MutexGuard<'_, bool> {
        self.is_noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackgroundLoop for Heartbeat {
    const NAME: &'static str = "heartbeat";

    async fn tick(&self) -> Duration {
        let at = self.context.clock.now();
        let (lag_seconds, counted) = (self.watch.lag_seconds(at), self.context.metrics.counted());
        if self.samples.record(Sample { at, lag_seconds, counted }) {
            *self.is_noted() = false;
        }
        if !*self.is_noted() {
            let noted = self.context.store.note_replica(&self.context.holder, VERSION, self.started_at).await;
            *self.is_noted() = noted.is_ok();
            if let Err(error) = noted {
                tracing::debug!(error = %error, "the row of this process in workos.replicas could not be written; it is retried");
            }
        }
        TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_per_half_minute_is_kept_for_an_hour_and_a_clock_set_back_starts_again() {
        let (samples, start) = (Samples::default(), Timestamp::from_unix_micros(1_800_000_000_000_000));
        let record = |second| {
            let (at, counted) = (start.plus_seconds(second), Counted::default());
            samples.record(Sample { at, lag_seconds: None, counted })
        };
        assert!(record(0) && !record(3) && !record(29) && record(30));
        for minute in 1..300 {
            record(60 * minute);
            record(60 * minute + 30);
        }
        let all = samples.all();
        assert_eq!(all.len(), SAMPLES);
        assert_eq!(all[SAMPLES - 1].at.unix_seconds() - all[0].at.unix_seconds(), 3_600);
        assert!(record(60));
        assert_eq!(samples.all().last().unwrap().at, start.plus_seconds(60));
        assert!(samples.all().is_sorted_by_key(|sample| sample.at));
    }
}
