//! The content of one answer of the status page.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::snapshot::{Reading, Snapshot};
use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::Progress;
use crate::store::sizes::TableSize;
use crate::sync::health::{Check, Expected, Verdict};
use crate::sync::heartbeat::Sample;
use crate::sync::job::{JobRun, JobStatus};
use crate::sync::standby::StandbyState;
use crate::tokens::KeyStatus;
use crate::workos::contact::ContactStatus;

/// What the page shows. The fields without `reading` are in memory, so they are shown while the database is down, too.
#[derive(Debug)]
pub(super) struct View {
    pub(super) now: Timestamp,
    pub(super) verdict: Verdict,
    /// The checks that are not ok, the worst first.
    pub(super) reasons: Vec<Check>,
    /// The name of this process in leases.
    pub(super) holder: Arc<str>,
    /// Host and port of WorkOS.
    pub(super) host: String,
    pub(super) has_webhooks: bool,
    pub(super) expected: Expected,
    pub(super) lag_seconds: Option<i64>,
    pub(super) progress: Progress,
    pub(super) sizes: Arc<Vec<TableSize>>,
    pub(super) jobs: BTreeMap<&'static str, JobStatus>,
    pub(super) runs: BTreeMap<&'static str, JobRun>,
    pub(super) samples: Vec<Sample>,
    pub(super) keys: KeyStatus,
    /// `None` without an API key.
    pub(super) contact: Option<ContactStatus>,
    /// `None` without a standby for reads.
    pub(super) standby: Option<StandbyState>,
    pub(super) reading: Reading,
}

impl View {
    /// Returns the last reading of the database, which can be old.
    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        self.reading.snapshot.as_deref()
    }

    /// Returns the number of live rows of a table, if it is known.
    pub(super) fn live(&self, table: &str) -> Option<i64> {
        self.sizes.iter().find(|size| size.name == table).map(|size| size.live)
    }
}
