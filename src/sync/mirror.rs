//! Reads for the routes of WorkOS's API: from the standby, if there is one that is recent enough, else from the primary.
//!
//! Lookups by token and the change feed do not use it: for them, a deletion or revocation holds from its commit.

use std::sync::Arc;

use tokio::time::timeout;

use super::feed::Feed;
use super::progress::SyncProgress;
use super::standby::Standby;
use crate::domain::change::Position;
use crate::domain::decide::Stored;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
use crate::metrics::Metrics;
use crate::store::standby::Shown;
use crate::store::{Store, StoreError};

/// The servers that these reads can use.
#[derive(Debug)]
pub(crate) struct Mirror {
    primary: Arc<Store>,
    feed: Feed,
    progress: SyncProgress,
    pub(crate) standby: Option<Arc<Standby>>,
    metrics: Arc<Metrics>,
}

impl Mirror {
    pub(crate) fn new(
        primary: Store,
        standby: Option<Arc<Standby>>,
        progress: SyncProgress,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (feed, primary) = (Feed::new(primary.clone()), Arc::new(primary));
        Self { primary, feed, progress, standby, metrics }
    }
}

/// The reads of one request. They use the standby or the primary, as decided at the start of the request. If a read from the standby
/// fails, it is repeated on the primary.
#[derive(Clone, Debug)]
pub(crate) struct Reads {
    mirror: Arc<Mirror>,
    standby: Option<(Arc<Standby>, Arc<Shown>)>,
    synced_through: Option<Timestamp>,
}

impl Reads {
    /// Decides which server to read.
    pub(crate) fn begin(mirror: &Arc<Mirror>) -> Self {
        let standby = mirror.standby.as_ref().and_then(|standby| Some((standby.clone(), standby.usable()?)));
        let synced_through = match &standby {
            Some((_, shown)) => shown.mark.synced_through,
            None => mirror.progress.progress().synced_through,
        };
        Self { mirror: mirror.clone(), standby, synced_through }
    }

    /// Returns the time up to which the users table is complete, in what is read.
    pub(crate) fn synced_through(&self) -> Option<Timestamp> {
        self.synced_through
    }

    /// Reads one object. If the standby does not have it, asks the primary, because the object may be new.
    pub(crate) async fn one<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<Option<T>, StoreError>>,
    {
        match self.on_standby(&read).await {
            Some(Some(found)) => Ok(Some(found)),
            _ => self.on_primary(&read).await,
        }
    }

    /// Reads a list, and returns the position of the change feed with it. The list contains every change up to the position.
    pub(crate) async fn list<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Result<(T, Position), StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        if let (Some((_, shown)), Some(list)) = (&self.standby, self.on_standby(&read).await) {
            return Ok((list, shown.mark.position.clone()));
        }
        // Read before the list.
        let position = self.mirror.feed.now().await?;
        Ok((self.on_primary(&read).await?, position))
    }

    /// Returns a live user, if it is read from the standby. `None`: the primary, or WorkOS, must be asked.
    pub(crate) async fn live_user(&self, id: &str) -> Option<User> {
        if let Some((standby, _)) = &self.standby
            && let Some(Stored::Live { object, .. }) = self.on_standby(|_| standby.users.read(id.to_owned())).await
        {
            return Some(*object);
        }
        self.mirror.metrics.mirror_read("primary");
        None
    }

    async fn on_standby<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (standby, _) = self.standby.as_ref()?;
        let outcome = timeout(standby.reads.timeout(), read(standby.reads.clone())).await;
        match outcome.unwrap_or_else(|late| Err(StoreError::late(late))) {
            Ok(value) => {
                self.mirror.metrics.mirror_read("standby");
                Some(value)
            }
            Err(error) => {
                tracing::debug!(error = %error, "a read from the standby failed; it is repeated on the primary");
                standby.note_failure();
                None
            }
        }
    }

    async fn on_primary<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.mirror.metrics.mirror_read("primary");
        read(self.mirror.primary.clone()).await
    }
}
