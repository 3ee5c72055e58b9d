//! The durations of requests.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Histogram buckets, in seconds. A lookup takes less than a millisecond and a webhook a few; the other buckets show problems.
/// A request that waits for the default timeout of the database, 5 seconds, is between 5 and 6.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 6.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

/// The durations of requests.
pub(super) struct Requests {
    histograms: Family<RequestLabels, Histogram>,
    /// The same histograms, by route and status. So a request needs no new label set.
    known: RwLock<HashMap<String, Vec<(u16, Histogram)>>>,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let histograms = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register("request_duration_seconds", "Duration of requests by route and status", histograms.clone());
        Self { histograms, known: RwLock::default() }
    }

    pub(super) fn observe(&self, route: &str, status: u16, seconds: f64) {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let histogram = known.get(route).and_then(|known| known.iter().find(|(code, _)| *code == status));
            if let Some((_, histogram)) = histogram {
                histogram.observe(seconds);
                return;
            }
        }
        let labels = RequestLabels { route: route.to_owned(), status };
        let histogram = self.histograms.get_or_create(&labels).clone();
        histogram.observe(seconds);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(route.to_owned()).or_default().push((status, histogram));
    }
}
