//! The counts of this process since its start, as plain numbers for the samples of the status page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Metrics;

/// The counters. They only grow.
#[derive(Debug, Default)]
pub(super) struct Totals {
    webhooks: AtomicU64,
    polled: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
}

/// The numbers at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Verified webhooks, with duplicates.
    pub webhooks: u64,
    /// Events read by polling, with duplicates.
    pub polled: u64,
    /// Answered requests, without probes.
    pub requests: u64,
    /// Requests answered 5xx.
    pub failures: u64,
}

impl Totals {
    pub(super) fn event(&self, origin: &str) {
        match origin {
            "webhook" => self.webhooks.fetch_add(1, Ordering::Relaxed),
            "catch_up" => self.polled.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    pub(super) fn request(&self, route: &str, status: u16) {
        if matches!(route, "/healthz" | "/readyz") {
            return;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        if status >= 500 {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Metrics {
    /// Returns the counts of this process since its start.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let totals = &self.totals;
        Counted {
            webhooks: read(&totals.webhooks),
            polled: read(&totals.polled),
            requests: read(&totals.requests),
            failures: read(&totals.failures),
        }
    }
}
