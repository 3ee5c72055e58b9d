//! Group commit: concurrent events share a transaction.
//!
//! Events that arrive while a batch is being committed form the next batch. So an event that comes alone waits for no other, and
//! a burst shares round trips and the flush to disk. Each caller gets its answer after the commit of its own event.
//!
//! An object whose row another session has locked would delay the whole batch. So a batch leaves the events of such objects out;
//! they wait for the lock on connections of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::{Attempt, Batch};
use super::records::Inbox;
use super::rows::Named;
use super::{Applied, NoFollowUp, ONLY, in_parts, one_statement};
use crate::domain::event::{Observation, Origin};
use crate::domain::object::{Kind, ObjectKey};
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// Batches that are committed at the same time. A second one begins only when a full batch waits: until then, one larger batch
/// costs less than two.
const COMMITTERS: usize = 2;

/// A batch that takes longer is stuck: it waits for an event or a user that another transaction is inserting, or its connection is
/// dead. The next batch then begins beside it.
const STUCK_AFTER: Duration = Duration::from_millis(50);

/// Stuck batches that others pass.
const STUCK: usize = 2;

/// Locked objects that are waited for at the same time. One connection is always left to the batches.
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
    /// Locked objects that may be waited for at the same time.
    lock_waiters: usize,
    /// Stuck batches that others may pass.
    stuck: usize,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
}

/// What waits. A task exists for each batch that is being committed, and none while nothing waits.
#[derive(Default)]
struct Queue {
    arrived: VecDeque<Waiting>,
    committers: usize,
    stuck: usize,
    /// Events of objects whose rows were found locked, by object.
    locked: BTreeMap<ObjectKey, Vec<Waiting>>,
    /// Users of `locked` that no task waits for yet.
    unattended: VecDeque<ObjectKey>,
    lock_waiters: usize,
    /// All events that wait, or are being applied.
    len: usize,
}

struct Waiting {
    observation: Observation,
    caller: Caller,
}

struct Caller {
    since: Instant,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
}

/// Events that are applied together, and their callers, in the same order.
#[derive(Default)]
struct Group {
    observations: Vec<Observation>,
    callers: Vec<Caller>,
}

impl Group {
    /// Splits it into the events for which `is_apart` holds, and the others.
    fn split(self, is_apart: impl Fn(&Observation, &Caller) -> bool) -> (Self, Self) {
        let waiting = self.observations.into_iter().zip(self.callers);
        let (apart, rest): (Vec<_>, Vec<_>) = waiting.partition(|(observation, caller)| is_apart(observation, caller));
        (apart.into_iter().collect(), rest.into_iter().collect())
    }

    /// Splits off the events that name one of these objects.
    fn split_objects(self, objects: &BTreeSet<ObjectKey>) -> (Self, Self) {
        self.split(|observation, _| observation.locked().any(|object| is_among(objects, object)))
    }

    fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

impl FromIterator<(Observation, Caller)> for Group {
    fn from_iter<I: IntoIterator<Item = (Observation, Caller)>>(waiting: I) -> Self {
        let (observations, callers) = waiting.into_iter().unzip();
        Self { observations, callers }
    }
}

impl From<Vec<Waiting>> for Group {
    fn from(waiting: Vec<Waiting>) -> Self {
        waiting.into_iter().map(|waiting| (waiting.observation, waiting.caller)).collect()
    }
}

impl std::fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit").field("waiting", &self.0.queue().len).finish_non_exhaustive()
    }
}

impl GroupCommit {
    /// Applies to `store` what arrives with this origin. At most `limit` events wait.
    pub(crate) fn new(store: Store, origin: Origin, limit: usize, metrics: Arc<Metrics>) -> Self {
        let connections = store.write_connections();
        let lock_waiters = connections.saturating_sub(1).clamp(1, LOCK_WAITERS);
        let stuck = connections.saturating_sub(COMMITTERS + lock_waiters).min(STUCK);
        Self(Arc::new(Inner { store, origin, limit, lock_waiters, stuck, metrics, queue: Mutex::default() }))
    }

    /// Applies an observation together with those that arrive at the same time, and returns what it did. See
    /// [`apply`](super::apply). A caller that goes away cancels nothing.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if too many wait; any other as `apply`.
    pub(crate) async fn apply(&self, observation: Observation) -> Result<Applied, StoreError> {
        let (answer, answered) = oneshot::channel();
        let caller = Caller { since: Instant::now(), answer };
        self.0.enqueue(Waiting { observation, caller })?;
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
        if !queue.locked.is_empty() {
            let locked = keys(&waiting.observation).find(|object| queue.locked.contains_key(object));
            if let Some(object) = locked {
                queue.locked.entry(object).or_default().push(waiting);
                return Ok(());
            }
        }
        queue.arrived.push_back(waiting);
        self.start_committer(&mut queue);
        Ok(())
    }

    /// Starts a task that commits what has arrived, unless the running ones are enough.
    fn start_committer(self: &Arc<Self>, queue: &mut Queue) {
        let is_needed = match queue.committers {
            0 => !queue.arrived.is_empty(),
            committers => committers < COMMITTERS && queue.arrived.len() >= BATCH,
        };
        if is_needed {
            queue.committers += 1;
            tokio::spawn(self.clone().commit_arrived());
        }
    }

    /// Commits batches until nothing waits.
    async fn commit_arrived(self: Arc<Self>) {
        loop {
            // Requests that are ready to be read join this batch. A lone event waits for nothing.
            tokio::task::yield_now().await;
            let group = {
                let mut queue = self.queue();
                let batch = queue.next_batch();
                if batch.is_empty() {
                    queue.committers -= 1;
                    return;
                }
                Group::from(batch)
            };
            let group = self.in_time(group);
            if !group.is_empty() {
                self.metrics.webhook_batch(group.callers.len());
                let mut commit = Box::pin(self.commit(group));
                if tokio::time::timeout(STUCK_AFTER, &mut commit).await.is_ok() {
                    continue;
                }
                let is_passed = self.let_others_pass();
                commit.await;
                if is_passed {
                    self.queue().stuck -= 1;
                    return;
                }
            }
        }
    }

    /// Lets other batches pass a stuck one, whose task then no longer counts as a committer. False: too many are stuck already.
    fn let_others_pass(self: &Arc<Self>) -> bool {
        let mut queue = self.queue();
        if queue.stuck >= self.stuck {
            return false;
        }
        queue.stuck += 1;
        queue.committers -= 1;
        self.start_committer(&mut queue);
        true
    }

    /// Commits a group in one statement. Where some objects need a transaction, only their events go into one.
    async fn commit(self: &Arc<Self>, group: Group) {
        let apart = match self.one_statement(&group).await {
            Ok(Attempt::Done(applied)) => return self.answer(group, Ok(applied)),
            Ok(Attempt::NeedsTransaction(objects)) => objects,
            Err(error) => return self.answer(group, Err(error)),
        };
        let (mut in_transaction, rest) = group.split(|observation, _| {
            observation.is_note() || observation.locked().any(|object| is_among(&apart, object))
        });
        if in_transaction.is_empty() {
            in_transaction = rest;
        } else if !rest.is_empty() {
            match self.one_statement(&rest).await {
                Ok(Attempt::Done(applied)) => self.answer(rest, Ok(applied)),
                Ok(Attempt::NeedsTransaction(_)) => self.commit_in_transaction(rest).await,
                Err(error) => self.answer(rest, Err(error)),
            }
        }
        self.commit_in_transaction(in_transaction).await;
    }

    async fn one_statement(&self, group: &Group) -> Result<Attempt, StoreError> {
        match caught(one_statement(&self.store, &self.batch(&group.observations))).await {
            // Whose event it is shows when each is applied alone.
            Err(StoreError::Panicked) => Ok(Attempt::NeedsTransaction(BTreeSet::new())),
            outcome => outcome,
        }
    }

    fn batch<'a>(&self, observations: &'a [Observation]) -> Batch<'a, NoFollowUp> {
        Batch::new(Inbox::Record(self.origin), observations, ONLY)
    }

    /// Applies the events of a group whose objects are not locked, and lets the others wait for the locks.
    async fn commit_in_transaction(self: &Arc<Self>, group: Group) {
        match caught(self.locked(&Named::by(&group.observations))).await {
            Ok(objects) => {
                let (locked, free) = group.split_objects(&objects);
                self.await_locks(locked, &objects);
                self.apply(free).await;
            }
            Err(error) => self.answer(group, Err(error)),
        }
    }

    /// Returns those of these objects whose row another session has locked.
    async fn locked(&self, named: &Named) -> Result<BTreeSet<ObjectKey>, StoreError> {
        let mut locked = BTreeSet::new();
        for (kind, ids) in named.by_kind() {
            locked.extend(self.store.locked(kind, ids).await?.into_iter().map(|id| ObjectKey { kind, id }));
        }
        Ok(locked)
    }

    /// Applies events in a transaction, which waits for locks.
    async fn apply(&self, group: Group) {
        if group.is_empty() {
            return;
        }
        let applied = caught(in_parts(&self.store, &self.batch(&group.observations).in_transaction())).await;
        if group.callers.len() > 1 && matches!(applied, Err(StoreError::Panicked)) {
            // One of them makes us panic: the others must not fail with it.
            for alone in group.observations.into_iter().zip(group.callers) {
                Box::pin(self.apply([alone].into_iter().collect())).await;
            }
            return;
        }
        self.answer(group, applied);
    }

    /// Answers the callers.
    fn answer(&self, group: Group, outcome: Result<Vec<Applied>, StoreError>) {
        let answered = isize::try_from(group.callers.len()).unwrap_or(isize::MAX);
        self.set_len(&mut self.queue(), -answered);
        let outcomes: Box<dyn Iterator<Item = _>> = match outcome {
            Ok(applied) => Box::new(applied.into_iter().map(Ok)),
            Err(error) => Box::new(std::iter::repeat(error).map(Err)),
        };
        for (caller, outcome) in group.callers.into_iter().zip(outcomes) {
            let _ = caller.answer.send(outcome);
        }
    }

    /// Answers the events that have waited too long already: their callers have given up and will retry.
    fn in_time(&self, group: Group) -> Group {
        let (late, in_time) = group.split(|_, caller| caller.since.elapsed() > self.store.timeout());
        if !late.is_empty() {
            self.answer(late, Err(StoreError::Busy));
        }
        in_time
    }

    /// Lets the events of locked objects wait for the locks.
    fn await_locks(self: &Arc<Self>, group: Group, locked: &BTreeSet<ObjectKey>) {
        let mut queue = self.queue();
        for (observation, caller) in group.observations.into_iter().zip(group.callers) {
            let Some(object) = keys(&observation).find(|object| locked.contains(object)) else { continue };
            if !queue.locked.contains_key(&object) {
                queue.unattended.push_back(object.clone());
            }
            queue.locked.entry(object).or_default().push(Waiting { observation, caller });
        }
        if queue.lock_waiters < self.lock_waiters && !queue.unattended.is_empty() {
            queue.lock_waiters += 1;
            tokio::spawn(self.clone().wait_for_locks());
        }
    }

    /// Applies the events of one locked object after the other, until there is none.
    async fn wait_for_locks(self: Arc<Self>) {
        loop {
            let object = {
                let mut queue = self.queue();
                let Some(object) = queue.unattended.pop_front() else {
                    queue.lock_waiters -= 1;
                    return;
                };
                object
            };
            loop {
                let events = self.queue().take_locked(&object);
                let Some(events) = events else { break };
                self.apply(self.in_time(events.into())).await;
            }
        }
    }
}

impl Queue {
    /// Takes the events of a locked object that have arrived. `None`: there are none, and the object counts as free again.
    fn take_locked(&mut self, object: &ObjectKey) -> Option<Vec<Waiting>> {
        let events = self.locked.get_mut(object).map(std::mem::take).filter(|events| !events.is_empty());
        if events.is_none() {
            self.locked.remove(object);
        }
        events
    }

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

/// The objects whose rows must be locked to apply an observation.
fn keys(observation: &Observation) -> impl Iterator<Item = ObjectKey> {
    observation.locked().map(|(kind, id)| ObjectKey::new(kind, id))
}

fn is_among(objects: &BTreeSet<ObjectKey>, (kind, id): (Kind, &str)) -> bool {
    // The sets are small, and most are empty.
    objects.iter().any(|object| object.kind == kind && object.id == id)
}

fn payload_bytes(observation: &Observation) -> usize {
    match observation {
        Observation::Event(event) => event.payload.len(),
        Observation::Snapshot(snapshot) => snapshot.payload.len(),
        Observation::Gone { .. } => 0,
    }
}

/// Turns a panic into an error. The task must not end, because other events wait for it.
async fn caught<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or(Err(StoreError::Panicked))
}
