//! Connections that must no longer be used: those that were opened before an instant.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

/// The instant before which connections were opened that must no longer be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutoff(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    at: AtomicU64,
    /// Increases each time that it is set.
    version: watch::Sender<u64>,
}

impl Cutoff {
    pub(super) fn set(&self) {
        self.0.at.store(uptime_millis(), Ordering::Relaxed);
        self.0.version.send_modify(|version| *version += 1);
    }

    /// Returns how often it was set.
    pub(super) fn version(&self) -> u64 {
        *self.0.version.borrow()
    }

    /// Waits until it was set after this version.
    pub(super) async fn exceeds(&self, version: u64) {
        // The sender exists as long as this value.
        let _ = self.0.version.subscribe().wait_for(|current| *current > version).await;
    }

    pub(super) fn excludes(&self, age: Duration) -> bool {
        let opened = uptime_millis().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let cutoff = self.0.at.load(Ordering::Relaxed);
        cutoff > 0 && opened <= cutoff
    }

    /// Sends a ping to the server. If there is no response in time, the network path to the server is interrupted, for example
    /// after a failover that closes no connection. Then every connection that was opened so far is unusable.
    pub(super) async fn ping(&self, connection: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
        tokio::time::timeout(limit, connection.ping()).await.unwrap_or_else(|_| {
            self.set();
            Err(sqlx::Error::Io(ErrorKind::TimedOut.into()))
        })
    }
}

/// Returns the milliseconds since the first call in this process, at least 1.
fn uptime_millis() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_opened_before_the_cutoff_are_excluded() {
        let cutoff = Cutoff::default();
        assert!(!cutoff.excludes(Duration::from_secs(5)));
        cutoff.set();
        assert!(cutoff.excludes(Duration::from_secs(5)));
    }
}
