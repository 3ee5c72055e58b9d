//! The metrics of the database: its connections and the number of its rows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Metrics, NoLabels, set_or_remove};

/// Histogram buckets of the wait for a connection, in seconds. The default timeout is 5 seconds.
const WAITS: [f64; 9] = [0.0005, 0.002, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 6.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabels {
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    pool: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RowLabels {
    table: String,
    state: &'static str,
}

/// The metrics of the database.
pub(super) struct Database {
    up: Gauge,
    hosts: Family<HostLabels, Gauge>,
    connections: Family<ConnectionLabels, Gauge>,
    max_connections: Family<PoolLabels, Gauge>,
    waits: Family<PoolLabels, Histogram>,
    rows: Family<RowLabels, Gauge>,
    reads: Family<ServerLabels, Counter>,
    standby_used: Family<NoLabels, Gauge>,
    standby_age: Family<NoLabels, Gauge>,
}

impl Database {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let up = super::gauge(
            registry,
            "database_up",
            "Whether this process could read from the database at the last attempt, which it makes every 2 seconds (1 or 0)",
        );
        let hosts = Family::default();
        registry.register(
            "database_host",
            "Which host of DATABASE_URL new connections of this process use (1, 0 for the others)",
            hosts.clone(),
        );
        let connections = Family::default();
        registry.register(
            "database_connections",
            "Open connections to the database by pool and state (idle or in_use)",
            connections.clone(),
        );
        let max_connections = Family::default();
        registry.register(
            "database_max_connections",
            "Limit of connections to the database by pool",
            max_connections.clone(),
        );
        let waits = Family::new_with_constructor((|| Histogram::new(WAITS)) as fn() -> Histogram);
        registry.register(
            "database_wait_seconds",
            "How long requests and jobs waited for a connection to the database, by pool",
            waits.clone(),
        );
        let rows = Family::default();
        registry.register(
            "rows",
            "Rows by table and state (live or deleted), updated every minute; exact up to 10000, then an estimate",
            rows.clone(),
        );
        let reads = Family::default();
        registry.register(
            "reads",
            "Reads for /user_management, /organizations and /authorization by server (primary or standby); counted for both if the standby does not have the object",
            reads.clone(),
        );
        let standby_used = Family::default();
        registry.register(
            "standby_used",
            "Whether the standby answers /user_management, /organizations and /authorization (1 or 0); absent if none is configured",
            standby_used.clone(),
        );
        let standby_age = Family::default();
        registry.register(
            "standby_age_seconds",
            "Age of the standby's data at the last check, in whole seconds; absent if the standby is not used",
            standby_age.clone(),
        );
        Self { up, hosts, connections, max_connections, waits, rows, reads, standby_used, standby_age }
    }
}

impl Metrics {
    /// Records whether the database answers.
    pub fn database_up(&self, is_up: bool) {
        self.database.up.set(i64::from(is_up));
    }

    /// Records whether new connections use a host. `host` is an address of our configuration.
    pub fn database_host(&self, host: &str, is_used: bool) {
        self.database.hosts.get_or_create(&HostLabels { host: host.to_owned() }).set(i64::from(is_used));
    }

    /// Counts a read for `/user_management`, `/organizations` or `/authorization`.
    pub fn read(&self, server: &'static str) {
        self.database.reads.get_or_create(&ServerLabels { server }).inc();
    }

    /// Records the age of the standby's data. `None`: the standby is not used.
    pub fn standby(&self, age_seconds: Option<i64>) {
        set_or_remove(&self.database.standby_used, Some(i64::from(age_seconds.is_some())));
        set_or_remove(&self.database.standby_age, age_seconds);
    }

    /// Records the connections of a pool.
    pub fn connections_of_pool(&self, pool: &'static str, idle: i64, in_use: i64, max: i64) {
        for (state, count) in [("idle", idle), ("in_use", in_use)] {
            self.database.connections.get_or_create(&ConnectionLabels { pool, state }).set(count);
        }
        self.database.max_connections.get_or_create(&PoolLabels { pool }).set(max);
    }

    /// Returns the histogram of the wait for a connection of a pool.
    #[must_use]
    pub fn waits_of_pool(&self, pool: &'static str) -> Histogram {
        self.database.waits.get_or_create(&PoolLabels { pool }).clone()
    }

    /// Records the number of rows of a table. `deleted` is `None` for a table without tombstones.
    pub fn rows(&self, table: &str, live: i64, deleted: Option<i64>) {
        for (state, count) in [("live", Some(live)), ("deleted", deleted)] {
            if let Some(count) = count {
                self.database.rows.get_or_create(&RowLabels { table: table.to_owned(), state }).set(count);
            }
        }
    }
}
