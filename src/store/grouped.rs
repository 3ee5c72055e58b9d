//! Concurrent reads share a statement.
//!
//! A read starts at once while a reader is free. Reads that arrive while all readers are busy wait, and form the next statement.
//! So a single read does not wait, and the reads of a burst share round trips and planning. A statement answers only reads that
//! arrived before it began, so no answer is older than its request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::DbConnection;
use super::pool::Checkout;
use super::{Store, StoreError};

/// Number of concurrent statements.
const READERS: usize = 2;

/// Number of keys that one statement reads.
const BATCH: usize = 128;

/// Maximum number of waiting reads. The service has fewer connections; an embedding application can have more.
const WAITING: usize = 16_384;

/// Number of statements on one connection before it is returned to the pool. So other users of the pool get the connection soon,
/// and the pool can close a connection to a server that must no longer be used.
const STATEMENTS: usize = 32;

/// Maximum length of an ID that shares a statement, in bytes.
const ID_BYTES: usize = 64;

/// A statement that answers many keys.
pub(super) trait GroupedQuery: 'static {
    /// The key of a read, for example a user ID.
    type Key: Send + Sync;

    /// The answer for one key.
    type Answer: Send;

    /// Returns the texts of a key that come from a caller.
    fn texts(key: &Self::Key) -> impl Iterator<Item = &str>;

    /// Returns the answers, in the order of the keys.
    fn read(
        connection: &mut DbConnection<'_>,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;
}

/// Reads from one store. Cloning is cheap; clones share their statements.
pub(super) struct Grouped<Q: GroupedQuery> {
    store: Store,
    queue: Arc<Mutex<Queue<Q>>>,
}

impl<Q: GroupedQuery> Clone for Grouped<Q> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), queue: self.queue.clone() }
    }
}

impl<Q: GroupedQuery> std::fmt::Debug for Grouped<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grouped").field("waiting", &lock(&self.queue).waiting.len()).finish_non_exhaustive()
    }
}

struct Queue<Q: GroupedQuery> {
    waiting: VecDeque<Waiting<Q>>,
    /// Number of running readers.
    readers: usize,
}

struct Waiting<Q: GroupedQuery> {
    key: Q::Key,
    answer: Sender<Q>,
}

type Sender<Q> = oneshot::Sender<Result<<Q as GroupedQuery>::Answer, StoreError>>;

impl<Q: GroupedQuery> Grouped<Q> {
    pub(super) fn new(store: Store) -> Self {
        Self { store, queue: Arc::new(Mutex::new(Queue { waiting: VecDeque::new(), readers: 0 })) }
    }

    /// Returns the answer for this key.
    pub(super) async fn read(&self, key: Q::Key) -> Result<Q::Answer, StoreError> {
        // WorkOS's IDs have this form. PostgreSQL might refuse other text, and then the statement would fail for every caller.
        let is_plain = |text: &str| text.len() <= ID_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !Q::texts(&key).all(is_plain) {
            return read_alone::<Q>(&self.store, &key).await;
        }
        let deadline = Instant::now() + self.store.timeout;
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiting { key, answer })?;
        let outcome = timeout_at(deadline, answered).await.map_err(StoreError::late)?;
        outcome.unwrap_or_else(|_| Err(StoreError::Unavailable("the read was interrupted".into())))
    }

    fn enqueue(&self, read: Waiting<Q>) -> Result<(), StoreError> {
        let reader = {
            let mut queue = lock(&self.queue);
            if queue.waiting.len() >= WAITING {
                return Err(StoreError::TimedOut("too many reads are waiting".into()));
            }
            queue.waiting.push_back(read);
            if queue.readers >= READERS {
                return Ok(());
            }
            queue.readers += 1;
            Reader { store: self.store.clone(), queue: self.queue.clone(), is_counted: true }
        };
        // The reader has its own task, so a caller that stops waiting does not interrupt the other callers' read. It starts after
        // the queue is unlocked: a runtime that ends drops it at once, and the drop locks the queue.
        tokio::spawn(reader.run());
        Ok(())
    }
}

fn lock<Q: GroupedQuery>(queue: &Mutex<Queue<Q>>) -> MutexGuard<'_, Queue<Q>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads one key in a separate statement.
async fn read_alone<Q: GroupedQuery>(store: &Store, key: &Q::Key) -> Result<Q::Answer, StoreError> {
    let answers = store.lookup(async |connection| Q::read(connection, std::slice::from_ref(key)).await).await?;
    answers.into_iter().next().ok_or(StoreError::Unavailable("an answer was lost".into()))
}

/// Reads until no read waits.
struct Reader<Q: GroupedQuery> {
    store: Store,
    queue: Arc<Mutex<Queue<Q>>>,
    /// Whether this reader is counted in the queue's readers.
    is_counted: bool,
}

/// A connection that a reader holds, and the number of statements that it has run.
struct Held {
    connection: Checkout,
    statements: usize,
}

impl<Q: GroupedQuery> Reader<Q> {
    async fn run(mut self) {
        let mut held = None;
        while let Some(batch) = self.next_batch() {
            let (keys, senders): (Vec<_>, Vec<_>) = batch.into_iter().map(|read| (read.key, read.answer)).unzip();
            match self.answers(&mut held, &keys).await {
                Ok(answers) => {
                    for (sender, answer) in senders.into_iter().zip(answers) {
                        // The caller may have stopped waiting.
                        let _ = sender.send(Ok(answer));
                    }
                }
                // One row that cannot be decoded must not fail the others.
                Err(StoreError::Refused { .. } | StoreError::Unavailable(_)) if keys.len() > 1 => {
                    self.read_each_alone(&keys, senders).await;
                }
                Err(error) => senders.into_iter().for_each(|sender| drop(sender.send(Err(error.clone())))),
            }
        }
        if let Some(Held { mut connection, .. }) = held {
            let _ = connection.ended(Ok(()));
        }
    }

    /// Takes the reads of the next statement. `None`: no read waits, and this reader no longer counts.
    fn next_batch(&mut self) -> Option<Vec<Waiting<Q>>> {
        let mut queue = lock(&self.queue);
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match queue.waiting.pop_front() {
                // The caller has stopped waiting.
                Some(read) if read.answer.is_closed() => {}
                Some(read) => batch.push(read),
                None if batch.is_empty() => {
                    queue.readers -= 1;
                    self.is_counted = false;
                    return None;
                }
                None => break,
            }
        }
        Some(batch)
    }

    /// Reads on the held connection, or on a new one that is then held.
    async fn answers(&self, held: &mut Option<Held>, keys: &[Q::Key]) -> Result<Vec<Q::Answer>, StoreError> {
        self.store.check().await?;
        let deadline = Instant::now() + self.store.timeout;
        let Held { mut connection, statements } = match held.take() {
            Some(held) => held,
            None => Held { connection: self.store.lookups.acquire(deadline, self.store.timeout).await?, statements: 0 },
        };
        let asked = self.store.ask_on(&mut connection, deadline, async |connection| Q::read(connection, keys).await);
        // After a timeout the server may still execute the statement, so the connection does not return to the pool.
        let outcome = asked.await?;
        if outcome.is_ok() && statements + 1 < STATEMENTS {
            *held = Some(Held { connection, statements: statements + 1 });
            return outcome;
        }
        connection.ended(outcome)
    }

    async fn read_each_alone(&self, keys: &[Q::Key], senders: Vec<Sender<Q>>) {
        for (key, sender) in keys.iter().zip(senders) {
            if !sender.is_closed() {
                let _ = sender.send(read_alone::<Q>(&self.store, key).await);
            }
        }
    }
}

impl<Q: GroupedQuery> Drop for Reader<Q> {
    /// The reader panicked, or its runtime is shutting down. The next read starts another one.
    fn drop(&mut self) {
        if self.is_counted {
            lock(&self.queue).readers -= 1;
        }
    }
}
