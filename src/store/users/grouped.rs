//! Reads single users. Concurrent reads share a statement.
//!
//! A read starts at once while a reader is free. Reads that arrive while all readers are busy wait, and form the next statement.
//! So a lone read waits for nobody, and a burst shares round trips and planning. A statement answers only reads that arrived
//! before it began, so no answer is older than its request.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::{Row, rows_by_ids};
use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::pool::Checkout;
use crate::store::{Store, StoreError};

/// Number of concurrent statements.
const READERS: usize = 2;

/// Number of users that one statement reads.
const BATCH: usize = 128;

/// Number of reads that can wait. The service has fewer connections; an embedding application can have more.
const WAITING: usize = 16_384;

/// Number of statements on one connection before it is returned to the pool. Other users of the pool wait for no longer than
/// that, and the pool closes connections to a server that must no longer be used.
const STATEMENTS: usize = 32;

/// The longest ID that shares a statement, in bytes.
const ID_BYTES: usize = 64;

/// Reads users from one store. Cloning is cheap; clones share their statements.
#[derive(Clone, Debug)]
pub struct GroupedReads {
    store: Store,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Number of running readers.
    readers: usize,
}

#[derive(Debug)]
struct Waiting {
    id: String,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<Stored<User>, StoreError>>;

impl GroupedReads {
    /// Reads from `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, queue: Arc::default() }
    }

    /// Returns the user with this ID, dead or alive, as [`Store::user`] does.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn read(&self, id: String) -> Result<Stored<User>, StoreError> {
        // WorkOS's IDs are like this. PostgreSQL might refuse other text, and then the statement would fail for every caller.
        if id.len() > ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return self.store.user(&id).await;
        }
        let deadline = Instant::now() + self.store.timeout;
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiting { id, answer })?;
        let outcome = timeout_at(deadline, answered).await.map_err(StoreError::late)?;
        outcome.unwrap_or_else(|_| Err(StoreError::Unavailable("the read was interrupted".into())))
    }

    fn enqueue(&self, read: Waiting) -> Result<(), StoreError> {
        let mut queue = lock(&self.queue);
        if queue.waiting.len() >= WAITING {
            return Err(StoreError::TimedOut("too many reads are waiting".into()));
        }
        queue.waiting.push_back(read);
        if queue.readers < READERS {
            queue.readers += 1;
            let reader = Reader { store: self.store.clone(), queue: self.queue.clone(), is_counted: true };
            // The reader has its own task, so a caller that gives up does not interrupt the other callers' read.
            tokio::spawn(reader.run());
        }
        Ok(())
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until no read waits.
struct Reader {
    store: Store,
    queue: Arc<Mutex<Queue>>,
    /// Counted among the queue's readers.
    is_counted: bool,
}

/// A connection that a reader holds, and the number of statements that it has run.
struct Held {
    connection: Checkout,
    statements: usize,
}

impl Reader {
    async fn run(mut self) {
        let mut held = None;
        while let Some(batch) = self.next_batch() {
            let (ids, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|read| (read.id, read.answer)).unzip();
            match self.rows(&mut held, &ids).await {
                Ok(rows) => answer(&ids, answers, rows),
                // One row that cannot be decoded must not fail the others.
                Err(StoreError::Refused { .. } | StoreError::Unavailable(_)) if ids.len() > 1 => {
                    self.read_alone(&ids, answers).await;
                }
                Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
            }
        }
        if let Some(Held { mut connection, .. }) = held {
            connection.ended(&Ok(()));
        }
    }

    /// Takes the reads of the next statement. `None`: no read waits, and this reader no longer counts.
    fn next_batch(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = lock(&self.queue);
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match queue.waiting.pop_front() {
                // The caller has given up.
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

    /// Reads rows on the held connection, or on a new one that is then held.
    async fn rows(&self, held: &mut Option<Held>, ids: &[String]) -> Result<Vec<Row>, StoreError> {
        self.store.check().await?;
        let deadline = Instant::now() + self.store.timeout;
        let Held { mut connection, statements } = match held.take() {
            Some(held) => held,
            None => {
                let connection = self.store.lookups.acquire(deadline, self.store.timeout).await;
                Held { connection: connection.map_err(|error| self.noting(error))?, statements: 0 }
            }
        };
        let query = async |connection: &mut _| rows_by_ids(connection, ids).await;
        // After a timeout the server may still be busy. So the use of the connection has not ended.
        let outcome = self.store.ask_on(&mut connection, deadline, query).await.map_err(|error| self.noting(error))?;
        if outcome.is_ok() && statements + 1 < STATEMENTS {
            *held = Some(Held { connection, statements: statements + 1 });
        } else {
            connection.ended(&outcome);
        }
        outcome.map_err(|error| self.noting(error))
    }

    /// Logs a failure and names its place.
    fn noting(&self, error: StoreError) -> StoreError {
        let error = error.at(&self.store.lookups.place());
        self.store.log_failure(&Err::<(), _>(error.clone()));
        error
    }

    async fn read_alone(&self, ids: &[String], answers: Vec<Answer>) {
        for (id, answer) in ids.iter().zip(answers) {
            if !answer.is_closed() {
                let _ = answer.send(self.store.user(id).await);
            }
        }
    }
}

impl Drop for Reader {
    /// The reader panicked, or its runtime is shutting down. The next read starts another one.
    fn drop(&mut self) {
        if self.is_counted {
            lock(&self.queue).readers -= 1;
        }
    }
}

fn answer(ids: &[String], answers: Vec<Answer>, rows: Vec<Row>) {
    let mut users: HashMap<String, Stored<User>> =
        rows.into_iter().map(|row| (row.id.clone(), row.into_stored())).collect();
    for (at, answer) in answers.into_iter().enumerate() {
        let id = &ids[at];
        let is_read_again = ids[at + 1..].contains(id);
        let stored = if is_read_again { users.get(id).cloned() } else { users.remove(id) };
        // The caller may have given up.
        let _ = answer.send(Ok(stored.unwrap_or(Stored::Absent)));
    }
}
