//! The metrics. No label contains a value that a caller can choose freely.

mod build;
mod database;
mod handlers;
mod jobs;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod process;
mod progress;
mod requests;
mod secrets;
mod totals;
mod workos;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use database::Database;
pub use handlers::HandlerValues;
use handlers::Handlers;
use jobs::Jobs;
use progress::{Erasures, Progress};
use requests::Requests;
use secrets::Secrets;
pub use totals::Counted;
use totals::Totals;
use workos::Workos;

/// Maximum number of event types as label values. WorkOS has about a hundred. Further types are counted as `other`.
const TYPE_LIMIT: usize = 200;

/// The reasons of rejected signatures that an alert compares.
const SIGNATURE_REASONS: [&str; 2] = ["signature_mismatch", "signature_stale"];

/// Histogram buckets of webhooks in a batch.
const BATCHES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The metrics of this process, in their own registry.
pub struct Metrics {
    registry: Registry,
    types: Mutex<HashSet<String>>,
    events: Family<EventLabels, Counter>,
    rejected_requests: Family<RejectionLabels, Counter>,
    actions: Family<ActionLabels, Counter>,
    endpoint_failures: Family<FailureLabels, Counter>,
    requests: Requests,
    background: Jobs,
    database: Database,
    workos: Workos,
    missed: Family<FeedLabels, Gauge>,
    handlers: Handlers,
    progress: Progress,
    erasures: Erasures,
    secrets: Secrets,
    webhook_queue: Gauge,
    webhook_batch: Histogram,
    connections: Gauge,
    closed_connections: Family<ReasonLabels, Counter>,
    totals: Totals,
    readings: Mutex<Vec<Reading>>,
}

/// A function that updates values which change without an event, for example ages.
type Reading = Box<dyn Fn(&Metrics) + Send + Sync>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    r#type: String,
    origin: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    route: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    kind: &'static str,
    verdict: &'static str,
    decided_by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    failure: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    // Not `job`, which is a label that Prometheus adds.
    background_job: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabels {
    feed: &'static str,
}

/// Labels of a gauge that can be absent.
type NoLabels = [(&'static str, &'static str); 0];

/// Sets a gauge that can be absent.
fn set_or_remove(gauge: &Family<NoLabels, Gauge>, value: Option<i64>) {
    match value {
        Some(value) => drop(gauge.get_or_create(&[]).set(value)),
        None => drop(gauge.remove(&[])),
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

impl Default for Metrics {
    fn default() -> Self {
        let mut root = Registry::default();
        #[cfg(all(feature = "cli", target_os = "linux"))]
        root.register_collector(Box::new(process::ProcessCollector));
        let registry = root.sub_registry_with_prefix("authkit_sync");
        let events = Family::default();
        registry.register(
            "events",
            "Verified events by type, origin and outcome (duplicate: seen before)",
            events.clone(),
        );
        let rejected_requests = Family::default();
        registry.register("rejected_requests", "Rejected requests by route and reason", rejected_requests.clone());
        let actions = Family::default();
        registry.register("actions", "Verdicts on sign-ins and sign-ups by kind, verdict and decider", actions.clone());
        let endpoint_failures = Family::default();
        registry.register(
            "action_endpoint_failures",
            "Failed requests to the application's action endpoint, by failure",
            endpoint_failures.clone(),
        );
        let requests = Requests::register(registry);
        let background = Jobs::register(registry);
        let (missed, closed_connections) = (Family::default(), Family::default());
        registry.register(
            "events_missed",
            "Events of the last day that the other feed delivered and this feed did not",
            missed.clone(),
        );
        let handlers = Handlers::register(registry);
        build::register(registry);
        let database = Database::register(registry);
        let workos = Workos::register(registry);
        let progress = Progress::register(registry);
        let erasures = Erasures::register(registry);
        let secrets = Secrets::register(registry);
        let webhook_queue = gauge(registry, "webhook_queue_events", "Webhooks that wait for their commit");
        let webhook_batch = Histogram::new(BATCHES);
        registry.register("webhook_batch_events", "Webhooks that share a transaction", webhook_batch.clone());
        let connections = gauge(registry, "connections", "Open HTTP connections");
        registry.register(
            "connections_closed",
            "Connections that the service closed, by reason (limit: for a new connection; write_timeout: the client did not read)",
            closed_connections.clone(),
        );
        // A counter that appears with its first event shows no increase.
        for reason in ["limit", "write_timeout"] {
            drop(closed_connections.get_or_create(&ReasonLabels { reason }));
        }
        Self {
            registry: root,
            types: Mutex::default(),
            events,
            rejected_requests,
            actions,
            endpoint_failures,
            requests,
            background,
            database,
            workos,
            missed,
            handlers,
            progress,
            erasures,
            secrets,
            webhook_queue,
            webhook_batch,
            connections,
            closed_connections,
            totals: Totals::default(),
            readings: Mutex::default(),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Counts a verified event. The outcome of an event that was already received is `duplicate`.
    pub fn event(&self, event_type: &str, origin: &'static str, outcome: &'static str) {
        self.totals.event(origin);
        let r#type = self.known_type(event_type);
        self.events.get_or_create(&EventLabels { r#type, origin, outcome }).inc();
    }

    /// Adds what an alert compares about the webhook route, because a counter that begins with its first event shows no increase.
    pub fn receives_webhooks(&self, route: &str, secrets: usize) {
        for reason in SIGNATURE_REASONS {
            let labels = RejectionLabels { route: route.to_owned(), reason };
            drop(self.rejected_requests.get_or_create(&labels));
        }
        self.accepts_secrets("webhook", secrets);
    }

    /// Adds the failures of the action endpoint, for the same reason.
    pub fn asks_endpoint(&self, failures: impl IntoIterator<Item = &'static str>) {
        for failure in failures {
            drop(self.endpoint_failures.get_or_create(&FailureLabels { failure }));
        }
    }

    /// Counts a rejected request.
    pub fn rejected_request(&self, route: &str, reason: &'static str) {
        self.rejected_requests.get_or_create(&RejectionLabels { route: route.to_owned(), reason }).inc();
    }

    /// Counts a verdict. `decided_by` is a decider or the number of a rule, never the text of a rule.
    pub fn action(&self, kind: &'static str, verdict: &'static str, decided_by: &str) {
        self.actions.get_or_create(&ActionLabels { kind, verdict, decided_by: decided_by.to_owned() }).inc();
    }

    /// Counts a failed request to the action endpoint.
    pub fn endpoint_failure(&self, failure: &'static str) {
        self.endpoint_failures.get_or_create(&FailureLabels { failure }).inc();
    }

    /// Records the duration of a request.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        self.totals.request(route, status);
        self.requests.observe(route, status, took.as_secs_f64());
    }

    /// Records how many events a feed missed.
    pub fn missed(&self, feed: &'static str, events: i64) {
        self.missed.get_or_create(&FeedLabels { feed }).set(events);
    }

    /// Returns the gauge of webhooks that wait for their commit.
    #[must_use]
    pub fn webhook_queue(&self) -> &Gauge {
        &self.webhook_queue
    }

    /// Counts a batch of webhooks.
    pub fn webhook_batch(&self, events: usize) {
        self.webhook_batch.observe(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
    }

    /// Returns the gauge of open connections.
    #[must_use]
    pub fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// Counts a connection that the service closed.
    pub fn closed_connection(&self, reason: &'static str) {
        self.closed_connections.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Adds a function that updates values directly before the metrics are returned.
    pub fn before_encoding(&self, reading: impl Fn(&Self) + Send + Sync + 'static) {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(reading));
    }

    /// Returns all metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// None in practice, because it writes to memory.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        for reading in &*self.readings.lock().unwrap_or_else(PoisonError::into_inner) {
            reading(self);
        }
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// Returns the event type as a label value, or `other`.
    fn known_type(&self, event_type: &str) -> String {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_');
        if event_type.len() > 64 || !event_type.bytes().all(plain) {
            return "other".to_owned();
        }
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        if types.contains(event_type) || (types.len() < TYPE_LIMIT && types.insert(event_type.to_owned())) {
            event_type.to_owned()
        } else {
            "other".to_owned()
        }
    }
}
