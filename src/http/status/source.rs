//! What the status page needs in addition to the state of the routes.

use std::sync::Arc;

use super::snapshot::Cache;
use crate::sync::health::Expected;
use crate::sync::heartbeat::Samples;
use crate::sync::job::JobContext;

/// What the status page shows in addition to the state of the routes.
#[derive(Debug)]
pub(crate) struct StatusPage {
    pub(super) context: JobContext,
    pub(super) expected: Expected,
    pub(super) samples: Arc<Samples>,
    pub(super) cache: Cache,
}

impl StatusPage {
    /// The page reads with the store of the background jobs, so that it takes no connection from lookups.
    pub(crate) fn new(context: JobContext, expected: Expected, samples: Arc<Samples>) -> Self {
        Self { context, expected, samples, cache: Cache::default() }
    }

    /// Returns the samples of the last hour.
    pub(crate) fn samples(&self) -> &Arc<Samples> {
        &self.samples
    }
}
