//! The metrics of handlers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandlerLabels {
    pub(super) handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandledLabels {
    pub(super) handler: String,
    pub(super) outcome: &'static str,
}

/// The metrics of handlers.
pub(super) struct Handlers {
    pub(super) runs: Family<HandledLabels, Counter>,
    pub(super) lag: Family<HandlerLabels, Gauge>,
    pub(super) waiting: Family<HandlerLabels, Gauge>,
    pub(super) dead_lettered: Family<HandlerLabels, Gauge>,
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
            lag: gauge("handler_lag_seconds", "Age of the oldest change that the handler has not processed"),
            waiting: gauge(
                "handler_waiting",
                "Changes of the handler that wait for a retry, including later changes of the same user",
            ),
            dead_lettered: gauge("handler_dead_lettered", "Dead-lettered changes of the handler"),
        }
    }
}
