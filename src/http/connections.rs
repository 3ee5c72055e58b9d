//! The open connections of one listener, limited in number.
//!
//! At the limit no new connection is refused. Instead the connection that has gone longest without completing a request is closed.
//! So idle, slow and silent connections cannot block an active client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    room: Arc<Semaphore>,
    queue: Mutex<Queue>,
}

/// The connections in the order of their last completed request, or of their acceptance.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Queue {
    fn push(&mut self, closing: CancellationToken) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, closing);
        self.next
    }
}

impl Connections {
    /// Creates the limit for `limit` connections.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { room: Arc::new(Semaphore::new(limit)), queue: Mutex::default() })
    }

    /// Waits for a free place for one more connection. Returns true if another connection was closed to free it.
    ///
    /// # Errors
    /// None: the semaphore is never closed.
    pub(super) async fn admit(self: &Arc<Self>) -> Result<(Connection, bool), AcquireError> {
        let (permit, has_evicted) = match self.room.clone().try_acquire_owned() {
            Ok(permit) => (permit, false),
            Err(_) => {
                let oldest = self.queue().waiting.pop_first();
                if let Some((_, closing)) = &oldest {
                    closing.cancel();
                }
                (self.room.clone().acquire_owned().await?, oldest.is_some())
            }
        };
        let closing = CancellationToken::new();
        let place = Mutex::new(self.queue().push(closing.clone()));
        Ok((Connection { connections: self.clone(), place, closing, _permit: permit }, has_evicted))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection. It is freed on drop.
#[derive(Debug)]
pub(super) struct Connection {
    connections: Arc<Connections>,
    place: Mutex<u64>,
    closing: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Records a completed request: this connection becomes the last to be closed.
    pub(super) fn completed(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queue = self.connections.queue();
        // If it is missing, the connection is being closed.
        if let Some(closing) = queue.waiting.remove(&place) {
            *place = queue.push(closing);
        }
    }

    /// Resolves when this connection must close.
    pub(super) fn evicted(&self) -> impl Future<Output = ()> + Send + use<> {
        self.closing.clone().cancelled_owned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let place = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.queue().waiting.remove(&place);
    }
}
