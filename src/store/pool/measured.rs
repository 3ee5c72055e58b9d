//! Measures the connections of a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Pool;
use crate::metrics::Metrics;

impl Pool {
    /// Returns the pool with measurements under this name: its connections, and the wait for one.
    pub(crate) fn measured(self, name: &'static str, metrics: &Metrics) -> Self {
        let hosts = self.hosts.clone();
        metrics.before_encoding(move |metrics| {
            let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            let open: i64 = hosts.iter().map(|pool| i64::from(pool.connections.size())).sum();
            let idle = count(hosts.iter().map(|pool| pool.connections.num_idle()).sum());
            let max = hosts.first().map_or(0, |pool| i64::from(pool.connections.options().get_max_connections()));
            metrics.connections_of_pool(name, idle, open.saturating_sub(idle).max(0), max);
        });
        Self { waits: Some(metrics.waits_of_pool(name)), ..self }
    }

    /// Returns the pool with a measurement of its hosts: which one new connections use.
    pub(crate) fn measuring_hosts(self, metrics: &Metrics) -> Self {
        let (hosts, resolver) = (self.hosts.clone(), self.resolver.clone());
        metrics.before_encoding(move |metrics| {
            for (index, pool) in hosts.iter().enumerate() {
                metrics.database_host(pool.host.place().address(), index == resolver.latest());
            }
        });
        self
    }
}

/// A connection that a caller uses.
#[derive(Debug)]
pub(super) struct InUse(Arc<AtomicU32>);

impl InUse {
    pub(super) fn one_of(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
