//! Reads for the routes in WorkOS's format (`/user_management`, `/organizations`, `/authorization`): from the standby if it is
//! usable, otherwise from the primary.
//!
//! Lookups by token and the change feed never use the standby, so a deletion or revocation takes effect there at its commit.

use std::sync::Arc;

use tokio::time::timeout;

use super::feed::Feed;
use super::progress::SyncProgress;
use super::standby::{Standby, TimedMark};
use crate::domain::change::Position;
use crate::domain::decide::Stored;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
use crate::metrics::Metrics;
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
    standby: Option<OfStandby>,
    synced_through: Option<Timestamp>,
}

/// The standby of one request, with the mark that each of its reads requires.
#[derive(Clone, Debug)]
struct OfStandby {
    standby: Arc<Standby>,
    replayed: Arc<TimedMark>,
    store: Arc<Store>,
}

/// The state that an answer must contain.
#[derive(Debug)]
pub(crate) enum AtLeast {
    /// Any state that is recent enough.
    Recent,
    /// Every change up to this position.
    Position(Position),
    /// The state of the primary.
    Current,
}

impl AtLeast {
    fn is_in(&self, position: &Position) -> bool {
        match self {
            Self::Recent => true,
            Self::Position(wanted) => wanted.epoch == position.epoch && wanted.number <= position.number,
            Self::Current => false,
        }
    }
}

impl Reads {
    /// Decides which server to read. The standby is read only if its data contains `at_least`.
    pub(crate) fn begin(mirror: &Arc<Mirror>, at_least: &AtLeast) -> Self {
        let standby = mirror.standby.as_ref().and_then(|standby| {
            let replayed = standby.usable().filter(|replayed| at_least.is_in(&replayed.mark.position))?;
            let store = Arc::new(standby.requiring(&replayed));
            Some(OfStandby { standby: standby.clone(), replayed, store })
        });
        let synced_through = match &standby {
            Some(of) => of.replayed.mark.synced_through,
            None => mirror.progress.progress().synced_through,
        };
        Self { mirror: mirror.clone(), standby, synced_through }
    }

    /// Returns the time up to which the users table is complete on the server that this request reads.
    pub(crate) fn synced_through(&self) -> Option<Timestamp> {
        self.synced_through
    }

    /// Reads one object. If the standby does not have it, reads the primary, because the object may be new.
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
        if let (Some(of), Some(list)) = (&self.standby, self.on_standby(&read).await) {
            return Ok((list, of.replayed.mark.position.clone()));
        }
        // The position is read before the list, so that the list contains every change up to it.
        let position = self.mirror.feed.now().await?;
        Ok((self.on_primary(&read).await?, position))
    }

    /// Returns a live user from the standby. `None`: the caller must look the user up on the primary.
    pub(crate) async fn live_user(&self, id: &str) -> Option<User> {
        let stored = self.on_standby(|store| async move { store.user(id).await }).await;
        let live = stored.and_then(Stored::into_live);
        if live.is_none() {
            self.mirror.metrics.read("primary");
        }
        live
    }

    async fn on_standby<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let OfStandby { standby, store, .. } = self.standby.as_ref()?;
        let outcome = timeout(store.timeout(), read(store.clone())).await;
        match outcome.unwrap_or_else(|late| Err(StoreError::late(late))) {
            Ok(value) => {
                self.mirror.metrics.read("standby");
                Some(value)
            }
            Err(error) => {
                tracing::debug!(error = %error, "a read from the standby failed; it is repeated on the primary");
                standby.note_failure(error);
                None
            }
        }
    }

    async fn on_primary<T, F>(&self, read: impl Fn(Arc<Store>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.mirror.metrics.read("primary");
        read(self.mirror.primary.clone()).await
    }
}
