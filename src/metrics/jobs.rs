//! The metrics of background jobs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{JobLabels, Metrics, NoLabels};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    task: String,
}

/// The metrics of background jobs.
pub(super) struct Jobs {
    restarts: Family<JobLabels, Counter>,
    failing: Family<JobLabels, Gauge>,
    leases: Family<JobLabels, Gauge>,
    completed: Family<TaskLabels, Gauge>,
    reconcile_interval: Family<NoLabels, Gauge>,
}

impl Jobs {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let restarts = Family::default();
        registry.register("job_restarts", "Background jobs restarted after a panic", restarts.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Family::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let failing =
            gauge("job_failing", "Whether the last step of the background job failed in this process (1 or 0)");
        let leases = gauge("job_lease_held", "Whether this process holds the lease of the background job (1 or 0)");
        let completed = Family::default();
        registry.register(
            "completed_timestamp_seconds",
            "When the task was last completed (Unix time); absent until then",
            completed.clone(),
        );
        let reconcile_interval = Family::default();
        registry.register(
            "reconcile_interval_seconds",
            "The setting AUTHKIT_SYNC_RECONCILE_INTERVAL; absent if scheduled reconciles are off",
            reconcile_interval.clone(),
        );
        Self { restarts, failing, leases, completed, reconcile_interval }
    }
}

impl Metrics {
    /// Adds the counter of a job with the value 0, because a counter that appears with its first event shows no increase.
    pub fn started(&self, name: &'static str) {
        drop(self.background.restarts.get_or_create(&JobLabels { background_job: name }));
    }

    /// Counts a restarted job.
    pub fn restart(&self, name: &'static str) {
        self.background.restarts.get_or_create(&JobLabels { background_job: name }).inc();
    }

    /// Records whether the last step of a background job succeeded.
    pub fn job(&self, name: &'static str, well: bool) {
        self.background.failing.get_or_create(&JobLabels { background_job: name }).set(i64::from(!well));
    }

    /// Records whether this process holds the lease of a job.
    pub fn lease(&self, job: &'static str, is_held: bool) {
        self.background.leases.get_or_create(&JobLabels { background_job: job }).set(i64::from(is_held));
    }

    /// Records when a task was last completed (seconds since 1970). Task names are constants.
    pub fn completed(&self, task: &str, at: i64) {
        self.background.completed.get_or_create(&TaskLabels { task: task.to_owned() }).set(at);
    }

    /// Records the interval of scheduled reconciles in seconds.
    pub fn reconcile_interval(&self, seconds: i64) {
        self.background.reconcile_interval.get_or_create(&[]).set(seconds);
    }
}
