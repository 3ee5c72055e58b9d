//! Group commit: concurrent events share a transaction.
//!
//! Events that arrive while a batch is being committed form the next batch. So an event that comes alone waits for no other, and
//! a burst shares round trips and the flush to disk. Each caller gets its answer after the commit of its own event.
//!
//! A user whose row another session has locked would delay the whole batch. So a batch leaves the events of such users out;
//! they wait for the lock on connections of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decisions::named;
use super::{Applied, Batch, Inbox, ONLY, in_parts, one_statement};
use crate::domain::event::{Observation, Origin};
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// Batches that are committed at the same time. With two, one is decided while the other is being flushed to disk.
const COMMITTERS: usize = 2;

/// Locked users whose events are waited for at the same time.
const LOCK_WAITERS: usize = 2;

/// Events in one batch.
const BATCH: usize = 128;

/// Bytes of payload in one batch; a batch has at least one event.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Default of the events that wait. More are refused, because the last of them would wait too long.
pub(crate) const QUEUE: usize = 4_096;

/// Applies events of one origin in groups. Cloning is cheap; clones share the queue.
#[derive(Clone)]
pub(crate) struct GroupCommit(Arc<Inner>);

struct Inner {
    store: Store,
    origin: Origin,
    /// Events that may wait.
    limit: usize,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
}

/// What waits. A task exists for each batch that is being committed, and none while nothing waits.
#[derive(Default)]
struct Queue {
    arrived: VecDeque<Waiting>,
    committers: usize,
    /// Events of users whose rows were found locked, by user.
    locked: BTreeMap<String, Vec<Waiting>>,
    /// Users of `locked` that no task waits for yet.
    unattended: VecDeque<String>,
    lock_waiters: usize,
    /// All events that wait, or are being applied.
    len: usize,
}

struct Waiting {
    observation: Observation,
    since: Instant,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
}

impl std::fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit").field("waiting", &self.0.queue().len).finish_non_exhaustive()
    }
}

impl GroupCommit {
    /// Applies to `store` what arrives with this origin. At most `limit` events wait.
    pub(crate) fn new(store: Store, origin: Origin, limit: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { store, origin, limit, metrics, queue: Mutex::default() }))
    }

    /// Applies an observation together with those that arrive at the same time, and returns what it did. See
    /// [`apply`](super::apply). A caller that goes away cancels nothing.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if too many wait; any other as `apply`.
    pub(crate) async fn apply(&self, observation: Observation) -> Result<Applied, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.0.enqueue(Waiting { observation, since: Instant::now(), answer })?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the batch was cancelled".into())))
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_len(&self, queue: &mut Queue, change: isize) {
        queue.len = queue.len.saturating_add_signed(change);
        self.metrics.webhook_queue(queue.len);
    }

    fn enqueue(self: &Arc<Self>, waiting: Waiting) -> Result<(), StoreError> {
        let mut queue = self.queue();
        if queue.len >= self.limit {
            return Err(StoreError::Busy);
        }
        self.set_len(&mut queue, 1);
        let locked = waiting.observation.user_id().and_then(|id| queue.locked.get_mut(id));
        if let Some(events) = locked {
            events.push(waiting);
            return Ok(());
        }
        queue.arrived.push_back(waiting);
        if queue.committers < COMMITTERS {
            queue.committers += 1;
            tokio::spawn(self.clone().commit_arrived());
        }
        Ok(())
    }

    /// Commits batches until nothing waits.
    async fn commit_arrived(self: Arc<Self>) {
        loop {
            let batch = {
                let mut queue = self.queue();
                let batch = queue.next_batch();
                if batch.is_empty() {
                    queue.committers -= 1;
                    return;
                }
                batch
            };
            self.commit(batch).await;
        }
    }

    async fn commit(self: &Arc<Self>, batch: Vec<Waiting>) {
        let Some(batch) = self.in_time(batch) else { return };
        let observations: Vec<Observation> = batch.iter().map(|waiting| waiting.observation.clone()).collect();
        self.metrics.webhook_batch(batch.len());
        let whole = Batch::new(Inbox::Record(self.origin), &observations, ONLY);
        match caught(one_statement(&self.store, &whole)).await {
            Ok(Some(applied)) => return self.answer(batch, Ok(applied)),
            Ok(None) => {}
            Err(error) => return self.answer(batch, Err(error)),
        }
        match self.store.locked_users(&named(&observations)).await {
            Ok(locked) => {
                let free = self.set_locked_apart(batch, &locked);
                self.apply(free).await;
            }
            Err(error) => self.answer(batch, Err(error)),
        }
    }

    /// Applies events in a transaction, which waits for locks.
    async fn apply(&self, batch: Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let observations: Vec<Observation> = batch.iter().map(|waiting| waiting.observation.clone()).collect();
        let applied = caught(in_parts(&self.store, &Batch::new(Inbox::Record(self.origin), &observations, ONLY))).await;
        if batch.len() > 1 && matches!(applied, Err(StoreError::Panicked)) {
            // One of them makes us panic: the others must not fail with it.
            for waiting in batch {
                Box::pin(self.apply(vec![waiting])).await;
            }
            return;
        }
        self.answer(batch, applied);
    }

    /// Answers the callers.
    fn answer(&self, batch: Vec<Waiting>, outcome: Result<Vec<Applied>, StoreError>) {
        let answered = isize::try_from(batch.len()).unwrap_or(isize::MAX);
        self.set_len(&mut self.queue(), -answered);
        match outcome {
            Ok(applied) => {
                for (waiting, applied) in batch.into_iter().zip(applied) {
                    let _ = waiting.answer.send(Ok(applied));
                }
            }
            Err(error) => {
                for waiting in batch {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Answers the events that have waited too long already. WorkOS has given up on them, and retries.
    fn in_time(&self, batch: Vec<Waiting>) -> Option<Vec<Waiting>> {
        let (late, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|waiting| waiting.since.elapsed() > self.store.timeout());
        if !late.is_empty() {
            self.answer(late, Err(StoreError::Busy));
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Puts the events of locked users aside, and returns the others.
    fn set_locked_apart(self: &Arc<Self>, batch: Vec<Waiting>, locked: &BTreeSet<String>) -> Vec<Waiting> {
        if locked.is_empty() {
            return batch;
        }
        let is_locked = |waiting: &Waiting| waiting.observation.user_id().is_some_and(|id| locked.contains(id));
        let (apart, free): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_locked);
        let mut queue = self.queue();
        for waiting in apart {
            let id = waiting.observation.user_id().unwrap_or_default().to_owned();
            if !queue.locked.contains_key(&id) {
                queue.unattended.push_back(id.clone());
            }
            queue.locked.entry(id).or_default().push(waiting);
        }
        while queue.lock_waiters < LOCK_WAITERS.min(queue.lock_waiters + queue.unattended.len()) {
            queue.lock_waiters += 1;
            tokio::spawn(self.clone().wait_for_locks());
        }
        free
    }

    /// Applies the events of one locked user after the other, until there is none.
    async fn wait_for_locks(self: Arc<Self>) {
        loop {
            let id = {
                let mut queue = self.queue();
                let Some(id) = queue.unattended.pop_front() else {
                    queue.lock_waiters -= 1;
                    return;
                };
                id
            };
            loop {
                let events = {
                    let mut queue = self.queue();
                    let events = queue.locked.get_mut(&id).map(std::mem::take).unwrap_or_default();
                    if events.is_empty() {
                        queue.locked.remove(&id);
                        break;
                    }
                    events
                };
                if let Some(events) = self.in_time(events) {
                    self.apply(events).await;
                }
            }
        }
    }
}

impl Queue {
    /// Takes the next batch: in order of arrival, within the limits.
    fn next_batch(&mut self) -> Vec<Waiting> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(next) = self.arrived.pop_front_if(|next| {
                bytes += payload_bytes(&next.observation);
                batch.is_empty() || bytes <= BATCH_BYTES
            })
        {
            batch.push(next);
        }
        batch
    }
}

fn payload_bytes(observation: &Observation) -> usize {
    match observation {
        Observation::Event(event) => event.payload.len(),
        Observation::Snapshot(snapshot) => snapshot.payload.len(),
        Observation::Gone { .. } => 0,
    }
}

/// A panic is a defect of ours that must not end the task, because others wait for it.
async fn caught<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or(Err(StoreError::Panicked))
}
