//! Metrics of how complete the tables are: progress of the sync, quarantine and erasures.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Metrics, NoLabels, gauge, set_or_remove};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// The metrics of the sync.
pub(super) struct Progress {
    quarantined: Gauge,
    synced_through: Family<NoLabels, Gauge>,
    lag: Family<NoLabels, Gauge>,
    backfills_completed: Family<KindLabels, Gauge>,
    backfilled: Family<KindLabels, Gauge>,
}

impl Progress {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let quarantined = gauge(registry, "quarantined_events", "Events in quarantine, counted up to 10000");
        let backfills_completed = Family::default();
        registry.register(
            "backfill_completed",
            "Whether a backfill of this kind of objects has completed (1 or 0)",
            backfills_completed.clone(),
        );
        let backfilled = Family::default();
        registry.register(
            "backfill_objects",
            "Objects of this kind that the current backfill has read, or else the last one",
            backfilled.clone(),
        );
        // Families without labels, because a plain gauge cannot be absent.
        let mut gauge = |name: &str, help: &str| {
            let gauge = Family::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            quarantined,
            backfills_completed,
            backfilled,
            synced_through: gauge(
                "synced_through_timestamp_seconds",
                "The users table contains everything that happened at WorkOS until this time; absent until a \
                 backfill or reconcile has completed",
            ),
            lag: gauge(
                "lag_seconds",
                "Delay of the users table behind WorkOS beyond the delay by design; absent until a backfill or \
                 reconcile has completed",
            ),
        }
    }
}

/// The metrics of erasures.
pub(super) struct Erasures {
    pending: Gauge,
    oldest_age: Gauge,
}

impl Erasures {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            pending: gauge(
                registry,
                "erasures_pending",
                "Deleted users whose personal data is not completely erased; 0 when every erasure is complete",
            ),
            oldest_age: gauge(
                registry,
                "erasure_oldest_age_seconds",
                "How long the oldest incomplete erasure has waited",
            ),
        }
    }
}

impl Metrics {
    /// Records the number of events in quarantine, and the time up to which the users table is complete (seconds since 1970).
    pub fn progress(&self, quarantined: i64, synced_through: Option<i64>) {
        self.progress.quarantined.set(quarantined);
        set_or_remove(&self.progress.synced_through, synced_through);
    }

    /// Records whether a backfill of this kind has completed, and how many objects it has read, if that is known.
    pub fn backfill(&self, kind: &'static str, is_complete: bool, read: Option<i64>) {
        let labels = KindLabels { kind };
        self.progress.backfills_completed.get_or_create(&labels).set(i64::from(is_complete));
        if let Some(read) = read {
            self.progress.backfilled.get_or_create(&labels).set(read);
        }
    }

    /// Sets the delay of the users table behind WorkOS in seconds, beyond the delay by design.
    pub fn lag(&self, seconds: Option<i64>) {
        set_or_remove(&self.progress.lag, seconds);
    }

    /// Sets the number of users whose erasure is not complete, and the age of the oldest erasure among them in seconds.
    pub fn erasures(&self, users: i64, oldest_seconds: i64) {
        self.erasures.pending.set(users);
        self.erasures.oldest_age.set(oldest_seconds);
    }
}
