//! The metrics of WorkOS: requests to it, its signing keys, its clock, and the delay of its events.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Metrics, NoLabels, set_or_remove};

/// Histogram buckets of requests to WorkOS, in seconds. A request times out after 30 seconds.
const DURATIONS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Histogram buckets of the delay of events, in seconds. Webhooks take about a second, catch-up up to half a minute.
const DELAYS: [f64; 11] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 1_800.0, 21_600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClockLabels {
    clock: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OriginLabels {
    origin: &'static str,
}

/// The metrics of WorkOS.
pub(super) struct Workos {
    requests: Family<RequestLabels, Histogram>,
    key_refused: Gauge,
    keys: Gauge,
    key_age: Family<NoLabels, Gauge>,
    key_failures: Counter,
    clock_ahead: Family<ClockLabels, Gauge>,
    webhook_received: Family<NoLabels, Gauge>,
    delays: Family<OriginLabels, Histogram>,
}

impl Workos {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Family::new_with_constructor((|| Histogram::new(DURATIONS)) as fn() -> Histogram);
        registry.register(
            "workos_request_duration_seconds",
            "Duration of requests to the WorkOS API by endpoint and status (a number, timed_out, or failed without an answer)",
            requests.clone(),
        );
        let key_refused = super::gauge(
            registry,
            "api_key_refused",
            "Whether WorkOS refused the API key at the last request (1 or 0)",
        );
        let keys = super::gauge(registry, "signing_keys", "Signing keys of WorkOS that can verify tokens now");
        let key_age = Family::default();
        registry.register(
            "signing_keys_age_seconds",
            "Time since the signing keys were last fetched; absent until the first success",
            key_age.clone(),
        );
        let key_failures = Counter::default();
        registry.register("signing_key_failures", "Failed attempts to fetch the signing keys", key_failures.clone());
        let clock_ahead = Family::default();
        registry.register(
            "clock_ahead_seconds",
            "Seconds by which the clock of this machine is ahead of another clock (workos or database); negative if it is behind",
            clock_ahead.clone(),
        );
        let webhook_received = Family::default();
        registry.register(
            "webhook_received_timestamp_seconds",
            "When this process last committed a webhook (Unix time); absent until the first",
            webhook_received.clone(),
        );
        let delays = Family::new_with_constructor((|| Histogram::new(DELAYS)) as fn() -> Histogram);
        registry.register(
            "event_delay_seconds",
            "Time from an event at WorkOS to its commit, by the origin that delivered it first (webhook or catch_up)",
            delays.clone(),
        );
        Self { requests, key_refused, keys, key_age, key_failures, clock_ahead, webhook_received, delays }
    }
}

impl Metrics {
    /// Records a request to WorkOS. `endpoint` contains no ID; `status` is a number, or why there is no answer.
    pub fn workos_request(&self, endpoint: &str, status: &str, took: Duration) {
        let labels = RequestLabels { endpoint: endpoint.to_owned(), status: status.to_owned() };
        self.workos.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Records whether WorkOS refused the API key.
    pub fn api_key_refused(&self, is_refused: bool) {
        self.workos.key_refused.set(i64::from(is_refused));
    }

    /// Records the state of the signing keys: their number, their age in seconds, and how often a fetch has failed.
    pub fn signing_keys(&self, keys: usize, age_seconds: Option<i64>, failures: u64) {
        self.workos.keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
        set_or_remove(&self.workos.key_age, age_seconds);
        let counted = self.workos.key_failures.get();
        self.workos.key_failures.inc_by(failures.saturating_sub(counted));
    }

    /// Records how far the clock of this machine is ahead of another one.
    pub fn clock_ahead(&self, clock: &'static str, seconds: i64) {
        self.workos.clock_ahead.get_or_create(&ClockLabels { clock }).set(seconds);
    }

    /// Records when a webhook was last committed (seconds since 1970).
    pub fn webhook_received(&self, at: i64) {
        self.workos.webhook_received.get_or_create(&[]).set(at);
    }

    /// Records the time from an event at WorkOS to its commit. A clock that is behind WorkOS's counts as no delay.
    pub fn event_delay(&self, origin: &'static str, micros: i64) {
        let delay = Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        self.workos.delays.get_or_create(&OriginLabels { origin }).observe(delay.as_secs_f64());
    }
}
