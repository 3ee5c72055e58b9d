//! The input of the rules: the settings of `serve`, and the progress of the sync in the database.

use std::time::Duration;

use crate::domain::kinds::Kinds;
use crate::domain::timestamp::Timestamp;
use crate::store::inspection::{InboxFacts, LeaseFacts};
use crate::store::scans::{ScanKind, ScanState};
use crate::store::{Store, StoreError};
use crate::sync::progress::{expected_age, lag_seconds};

/// The settings of `serve` that the rules compare the progress with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Whether the Events API is polled. Without an API key it is not.
    pub(crate) polls: bool,
    /// Pause between two polls.
    pub(crate) poll_interval: Duration,
    /// Interval between two reconciles. `None` if none is scheduled.
    pub(crate) reconcile_interval: Option<Duration>,
    /// The retention period of events in the inbox.
    pub(crate) retention: Duration,
    /// What is synced.
    pub(crate) kinds: Kinds,
}

/// The progress of the sync in the database, read once for all checks.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The current time of the database's clock.
    pub(crate) now: Timestamp,
    pub(crate) synced_through: Option<Timestamp>,
    pub(crate) lag_seconds: Option<i64>,
    pub(crate) is_backfilled: bool,
    pub(crate) quarantined: i64,
    pub(crate) leases: Vec<LeaseFacts>,
    pub(crate) inbox: InboxFacts,
    /// When a backfill or a reconcile of users last completed.
    pub(crate) scanned_at: Option<Timestamp>,
    /// Every scan that has begun once, by the name of its kind.
    pub(crate) scans: Vec<(String, ScanState)>,
    pub(super) users_so_far: i64,
    pub(super) needs_reconcile: bool,
    pub(super) pending_erasures: i64,
    pub(super) oldest_erasure_seconds: i64,
}

impl Facts {
    /// Reads the facts with a fixed number of statements.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn read(expected: &Expected, store: &Store) -> Result<Self, StoreError> {
        let now = store.now().await?;
        let progress = store.progress().await?;
        let scans = store.scans().await?;
        let (backfill, reconcile) = (scan(&scans, ScanKind::Backfill), scan(&scans, ScanKind::Reconcile));
        let erasures = store.pending_erasures().await?;
        let expected_age = expected_age(expected.poll_interval);
        Ok(Self {
            now,
            synced_through: progress.synced_through,
            lag_seconds: progress.synced_through.map(|at| lag_seconds(now, at, expected_age)),
            is_backfilled: progress.backfilled,
            quarantined: progress.quarantined,
            leases: store.lease_facts().await?,
            inbox: store.inbox_facts().await?,
            scanned_at: backfill.completed_at.max(reconcile.completed_at),
            users_so_far: backfill.counts.total(),
            needs_reconcile: store.catch_up_state().await?.is_some_and(|state| state.needs_reconcile),
            pending_erasures: erasures.users,
            oldest_erasure_seconds: erasures.oldest_seconds,
            scans,
        })
    }

    /// Returns the progress of a scan; empty if there was none.
    pub(crate) fn scan(&self, kind: ScanKind) -> ScanState {
        scan(&self.scans, kind)
    }

    /// Returns whether a process holds the lease of the job.
    pub(crate) fn runs(&self, job: &str) -> bool {
        self.leases.iter().any(|lease| lease.job == job && lease.is_held)
    }

    pub(super) fn age(&self, at: Timestamp) -> i64 {
        self.now.unix_seconds() - at.unix_seconds()
    }
}

fn scan(scans: &[(String, ScanState)], kind: ScanKind) -> ScanState {
    scans.iter().find(|(name, _)| name == kind.as_str()).map(|(_, state)| state.clone()).unwrap_or_default()
}
