//! The metrics of handlers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Metrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandlerLabels {
    handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandledLabels {
    handler: String,
    outcome: &'static str,
}

/// The metrics of handlers.
pub(super) struct Handlers {
    runs: Family<HandledLabels, Counter>,
    lag: Family<HandlerLabels, Gauge>,
    waiting: Family<HandlerLabels, Gauge>,
    dead_lettered: Family<HandlerLabels, Gauge>,
    blocked: Family<HandlerLabels, Gauge>,
    paused: Family<HandlerLabels, Gauge>,
    running: Family<HandlerLabels, Gauge>,
}

impl Handlers {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let runs = Family::default();
        registry.register("handler_runs", "Changes given to handlers, by handler and outcome", runs.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Family::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            runs,
            lag: gauge(
                "handler_lag_seconds",
                "Age of the oldest change that the handler has not completed, also while it fails; dead-lettered \
                 changes do not count",
            ),
            waiting: gauge(
                "handler_waiting",
                "Changes of the handler that wait for a retry, including later changes of the same user",
            ),
            dead_lettered: gauge("handler_dead_lettered", "Dead-lettered changes of the handler"),
            blocked: gauge(
                "handler_blocked",
                "Whether the handler cannot run at all, for example because its function does not exist (1 or 0)",
            ),
            paused: gauge("handler_paused", "Whether an operator paused the handler (1 or 0)"),
            running: gauge("handler_running", "Whether a live process runs the handler, unless it is paused (1 or 0)"),
        }
    }
}

/// The values of a handler.
#[derive(Clone, Copy, Debug)]
pub struct HandlerValues {
    /// Age of the oldest change that it has not completed, in seconds.
    pub lag: i64,
    /// Changes that wait for a retry.
    pub waiting: i64,
    /// Changes whose last attempt failed.
    pub dead_lettered: i64,
    /// Whether it cannot run at all.
    pub is_blocked: bool,
    /// Whether an operator paused it.
    pub is_paused: bool,
    /// Whether a live process runs it.
    pub has_process: bool,
}

impl Metrics {
    /// Counts a change given to a handler. Handler names are configuration, so their number is limited.
    pub fn handled(&self, handler: &str, well: bool) {
        let outcome = if well { "done" } else { "failed" };
        self.handlers.runs.get_or_create(&HandledLabels { handler: handler.to_owned(), outcome }).inc();
    }

    /// Records the values of a handler.
    pub fn handler(&self, handler: &str, values: HandlerValues) {
        let labels = HandlerLabels { handler: handler.to_owned() };
        let handlers = &self.handlers;
        for (gauge, value) in [
            (&handlers.lag, values.lag),
            (&handlers.waiting, values.waiting),
            (&handlers.dead_lettered, values.dead_lettered),
            (&handlers.blocked, i64::from(values.is_blocked)),
            (&handlers.paused, i64::from(values.is_paused)),
            (&handlers.running, i64::from(values.has_process && !values.is_paused)),
        ] {
            gauge.get_or_create(&labels).set(value);
        }
    }

    /// Removes the metrics of a handler that was removed.
    pub fn remove_handler(&self, handler: &str) {
        let labels = HandlerLabels { handler: handler.to_owned() };
        let Handlers { lag, waiting, dead_lettered, blocked, paused, running, .. } = &self.handlers;
        for gauge in [lag, waiting, dead_lettered, blocked, paused, running] {
            gauge.remove(&labels);
        }
    }
}
