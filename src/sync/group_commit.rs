//! Group commit: concurrent events share a transaction.
//!
//! Events that arrive while a batch is being committed form the next batch. So a single event waits for no other event, and the
//! events of a burst share round trips and the flush to disk. Each caller gets its answer after the commit of its own event, or an
//! error at its deadline.
//!
//! An object whose row another session has locked would delay the whole batch. So a batch omits the events of such objects. They
//! wait for the lock on separate connections.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::batch::{Attempt, Batch};
use super::commit_queue::{BATCH, CommitQueue, Group, Waiting};
use super::records::Inbox;
use super::rows::Named;
use super::{Applied, NoFollowUp, ONLY, in_parts, one_statement};
use crate::domain::event::{Observation, Origin};
use crate::domain::object::ObjectKey;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// Maximum number of batches that are committed at the same time. A second one begins only when a full batch waits, because one
/// larger batch costs less than two.
const COMMITTERS: usize = 2;

/// A batch that takes longer is stuck: it waits for an event or a user that another transaction is inserting, or its connection was
/// lost. The next batch then begins before the stuck one ends.
const STUCK_AFTER: Duration = Duration::from_millis(50);

/// Maximum number of stuck batches.
const STUCK: usize = 2;

/// Maximum number of locked objects that tasks wait for at the same time. The batches always have at least one connection.
const LOCK_WAITERS: usize = 2;

/// Default limit of waiting events. More are refused, because the last of them would wait too long.
pub(crate) const QUEUE: usize = 4_096;

/// Applies events of one origin in groups. Cloning is cheap; clones share the queue.
#[derive(Clone)]
pub(crate) struct GroupCommit(Arc<Inner>);

struct Inner {
    store: Store,
    origin: Origin,
    /// Maximum number of locked objects that tasks wait for at the same time.
    lock_waiters: usize,
    /// Maximum number of stuck batches.
    stuck: usize,
    metrics: Arc<Metrics>,
    queue: CommitQueue,
}

impl std::fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit").field("waiting", &self.0.queue.len()).finish_non_exhaustive()
    }
}

impl GroupCommit {
    /// Creates a group commit that applies events of this origin to `store`. At most `limit` events wait.
    pub(crate) fn new(store: Store, origin: Origin, limit: usize, metrics: Arc<Metrics>) -> Self {
        let connections = store.write_connections();
        let lock_waiters = connections.saturating_sub(1).clamp(1, LOCK_WAITERS);
        let stuck = connections.saturating_sub(COMMITTERS + lock_waiters).min(STUCK);
        let queue = CommitQueue::new(limit, metrics.webhook_queue().clone());
        Self(Arc::new(Inner { store, origin, lock_waiters, stuck, metrics, queue }))
    }

    /// Applies an observation together with those that arrive at the same time, and returns its result. See
    /// [`apply`](super::apply). A caller that stops waiting does not cancel it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if too many wait; [`StoreError::TimedOut`] after the store's timeout, and then the observation may
    /// still be applied; any other as `apply`.
    pub(crate) async fn apply(&self, observation: Observation) -> Result<Applied, StoreError> {
        let deadline = Instant::now() + self.0.store.timeout();
        let answered = self.0.queue.push(observation, deadline)?;
        self.0.start_tasks();
        let outcome = timeout_at(deadline, answered).await.map_err(StoreError::late)?;
        outcome.unwrap_or_else(|_| Err(StoreError::Unavailable("the batch was cancelled".into())))
    }
}

/// What a task does.
enum Role {
    /// Commits batches.
    Committer,
    /// Waits for the end of a stuck batch.
    Stuck,
    /// Waits for locked objects, now for this one.
    LockWaiter(Option<ObjectKey>),
}

/// A task that applies events. It is counted until it ends, also if it panics or if its runtime ends.
struct Task {
    commits: Arc<Inner>,
    role: Role,
    /// Whether the task has begun. A runtime that ends also drops tasks that have not begun.
    has_begun: bool,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut waiting = self.commits.queue.lock();
        match &mut self.role {
            Role::Committer => waiting.committers -= 1,
            Role::Stuck => waiting.stuck -= 1,
            Role::LockWaiter(object) => {
                waiting.lock_waiters -= 1;
                object.take().into_iter().for_each(|object| waiting.leave_locked(object));
            }
        }
        drop(waiting);
        // Events may have arrived since the task last checked the queue, and a panic leaves events in the queue.
        if self.has_begun {
            self.commits.start_tasks();
        }
    }
}

impl Task {
    async fn run(mut self) {
        self.has_begun = true;
        if matches!(self.role, Role::LockWaiter(_)) {
            self.wait_for_locks().await;
        } else {
            self.commit_arrived().await;
        }
    }

    /// Commits batches until nothing waits.
    async fn commit_arrived(&mut self) {
        let commits = self.commits.clone();
        loop {
            // Requests that are ready to be read join this batch. A single event does not wait.
            tokio::task::yield_now().await;
            let group = commits.queue.next_batch();
            if group.is_empty() {
                return;
            }
            let group = in_time(group);
            if group.is_empty() {
                continue;
            }
            commits.metrics.webhook_batch(group.len());
            let mut commit = Box::pin(commits.commit(group));
            if timeout(STUCK_AFTER, &mut commit).await.is_ok() {
                continue;
            }
            let is_passed = self.let_others_pass();
            commit.await;
            if is_passed {
                return;
            }
        }
    }

    /// Lets the next batch begin while this one is stuck: this task no longer counts as a committer. Returns false if too many
    /// batches are stuck.
    fn let_others_pass(&mut self) -> bool {
        let mut waiting = self.commits.queue.lock();
        if waiting.stuck >= self.commits.stuck {
            return false;
        }
        waiting.stuck += 1;
        waiting.committers -= 1;
        self.role = Role::Stuck;
        drop(waiting);
        self.commits.start_tasks();
        true
    }

    /// Applies the events of one locked object after the other, until there is none.
    async fn wait_for_locks(&mut self) {
        let commits = self.commits.clone();
        loop {
            let next = commits.queue.lock().unattended.pop_front();
            let Some(object) = next else { return };
            self.role = Role::LockWaiter(Some(object.clone()));
            loop {
                let events = commits.queue.next_locked(&object);
                if events.is_empty() {
                    break;
                }
                commits.apply(in_time(events)).await;
            }
            self.role = Role::LockWaiter(None);
        }
    }
}

/// Drops the events whose deadline has passed, because their callers have received an error and will retry.
fn in_time(group: Group) -> Group {
    let (late, in_time) = group.split_late();
    if !late.is_empty() {
        late.answer(Err(StoreError::TimedOut("the request timed out".into())));
    }
    in_time
}

impl Inner {
    /// Starts the tasks that the waiting events need, unless the running tasks are enough.
    fn start_tasks(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let roles = self.needed(&mut self.queue.lock());
        // The queue must not be locked here: a runtime that ends drops the new task at once, and the drop locks the queue.
        for role in roles.into_iter().flatten() {
            runtime.spawn(Task { commits: self.clone(), role, has_begun: false }.run());
        }
    }

    /// Returns the tasks that must be started, and counts them.
    fn needed(&self, waiting: &mut Waiting) -> [Option<Role>; 2] {
        let needs_committer = match waiting.committers {
            0 => !waiting.arrived.is_empty(),
            committers => committers < COMMITTERS && waiting.arrived.len() >= BATCH,
        };
        let needs_lock_waiter = waiting.lock_waiters < self.lock_waiters && !waiting.unattended.is_empty();
        waiting.committers += usize::from(needs_committer);
        waiting.lock_waiters += usize::from(needs_lock_waiter);
        [needs_committer.then_some(Role::Committer), needs_lock_waiter.then_some(Role::LockWaiter(None))]
    }

    /// Commits a group in one statement. If some objects need a transaction, only their events are committed in a transaction.
    async fn commit(self: &Arc<Self>, group: Group) {
        let (in_transaction, rest) = group.split(Observation::needs_transaction);
        if let Some((rest, apart)) = self.try_one_statement(rest).await {
            let (apart, rest) = rest.split_objects(&apart);
            if apart.is_empty() {
                self.commit_in_transaction(rest).await;
            } else {
                if let Some((rest, _)) = self.try_one_statement(rest).await {
                    self.commit_in_transaction(rest).await;
                }
                self.commit_in_transaction(in_time(apart)).await;
            }
        }
        self.commit_in_transaction(in_time(in_transaction)).await;
    }

    /// Commits a group in one statement. Returns the events that need a transaction, and the objects that are the reason. No
    /// objects: another reason. After a timeout, it drops the events whose callers have stopped waiting.
    async fn try_one_statement(&self, group: Group) -> Option<(Group, BTreeSet<ObjectKey>)> {
        if group.is_empty() {
            return None;
        }
        let objects = match one_statement(&self.store, &self.batch(group.observations())).await {
            Ok(Attempt::NeedsTransaction(objects)) => objects,
            Ok(Attempt::Done(applied)) => {
                self.answer(group, Ok(applied));
                return None;
            }
            Err(error) => {
                self.answer(group, Err(error));
                return None;
            }
        };
        let attempted = group.len();
        let group = in_time(group);
        if group.len() < attempted {
            self.queue.lock().adapt(attempted, false);
        }
        (!group.is_empty()).then_some((group, objects))
    }

    fn batch<'a>(&self, observations: &'a [Observation]) -> Batch<'a, NoFollowUp> {
        Batch::new(Inbox::Record(self.origin), observations, ONLY)
    }

    /// Applies the events of a group whose objects are not locked, and lets the others wait for the locks.
    async fn commit_in_transaction(self: &Arc<Self>, group: Group) {
        if group.is_empty() {
            return;
        }
        match self.locked(&Named::by(group.observations())).await {
            Ok(objects) => {
                let (locked, free) = group.split_objects(&objects);
                self.queue.push_locked(locked, &objects);
                self.start_tasks();
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

    /// Applies events in a transaction, which waits for locks. If it times out, it is retried in smaller parts, although the
    /// callers have received an error by then. Otherwise their next attempt would take as long.
    async fn apply(&self, group: Group) {
        if group.is_empty() {
            return;
        }
        let applied = in_parts(&self.store, &self.batch(group.observations()).in_transaction()).await;
        self.answer(group, applied);
    }

    fn answer(&self, group: Group, outcome: Result<Vec<Applied>, StoreError>) {
        if outcome.is_ok() {
            self.queue.lock().adapt(group.len(), true);
        }
        group.answer(outcome);
    }
}
