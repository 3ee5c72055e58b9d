//! The queue of group commit: the events that wait or are being applied, their callers, and the number of tasks that apply them.
//!
//! An event holds its [`Place`] until it is answered, also if the task that applies it panics. So the counts are always correct.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::Applied;
use crate::domain::event::Observation;
use crate::domain::object::{Kind, ObjectKey};
use crate::store::StoreError;

/// Maximum number of events in one batch.
pub(super) const BATCH: usize = 128;

/// Maximum size of the payloads in one batch, in bytes. A batch has at least one event.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Events that wait, in order of arrival, and tasks. Cloning is cheap; clones share the queue.
#[derive(Clone)]
pub(super) struct CommitQueue {
    state: Arc<Mutex<Waiting>>,
    places: Arc<Semaphore>,
    /// Number of events that hold a place.
    in_queue: Gauge,
}

/// The waiting events, and the number of tasks. Each task commits one batch at a time and ends when no event waits.
pub(super) struct Waiting {
    pub(super) arrived: VecDeque<Pending>,
    pub(super) committers: usize,
    pub(super) stuck: usize,
    /// Events of objects whose rows were found locked, by object.
    locked: BTreeMap<ObjectKey, VecDeque<Pending>>,
    /// Objects of `locked` without a task that waits for the lock.
    pub(super) unattended: VecDeque<ObjectKey>,
    pub(super) lock_waiters: usize,
    /// Maximum number of events in the next batch. It is halved when a batch takes too long, and doubled when a batch is committed.
    batch: usize,
}

/// An event that waits.
pub(super) struct Pending {
    observation: Observation,
    caller: Caller,
    /// Whether the event must be applied alone, because a task panicked when it applied this event with others.
    is_alone: bool,
}

/// The caller that waits for an event. Dropping it frees the place of the event.
struct Caller {
    deadline: Instant,
    answer: oneshot::Sender<Result<Applied, StoreError>>,
    place: Place,
}

/// A place in the queue.
struct Place {
    _permit: OwnedSemaphorePermit,
    in_queue: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_queue.dec();
    }
}

/// The answer to an event.
pub(super) type Answer = oneshot::Receiver<Result<Applied, StoreError>>;

impl CommitQueue {
    /// Creates a queue for at most `limit` events, which are counted in `in_queue`.
    pub(super) fn new(limit: usize, in_queue: Gauge) -> Self {
        let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { state: Arc::default(), places, in_queue }
    }

    /// Returns the number of events that wait or are being applied.
    pub(super) fn len(&self) -> i64 {
        self.in_queue.get()
    }

    /// Locks the waiting events.
    pub(super) fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, whose caller waits until `deadline`. Events of an object that is known to be locked join those that wait for
    /// the lock.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the queue is full.
    pub(super) fn push(&self, observation: Observation, deadline: Instant) -> Result<Answer, StoreError> {
        let permit = self.places.clone().try_acquire_owned().map_err(|_| StoreError::Busy)?;
        self.in_queue.inc();
        let place = Place { _permit: permit, in_queue: self.in_queue.clone() };
        let (answer, answered) = oneshot::channel();
        let caller = Caller { deadline, answer, place };
        self.lock().push(Pending { observation, caller, is_alone: false });
        Ok(answered)
    }

    /// Takes the next batch.
    pub(super) fn next_batch(&self) -> Group {
        let mut waiting = self.lock();
        let limit = waiting.batch;
        let taken = take_batch(&mut waiting.arrived, limit);
        self.group(taken)
    }

    /// Takes the next events of a locked object. If there are none, removes the object from the locked ones.
    pub(super) fn next_locked(&self, object: &ObjectKey) -> Group {
        let mut waiting = self.lock();
        let taken = waiting.locked.get_mut(object).map(|events| take_batch(events, BATCH)).unwrap_or_default();
        if taken.is_empty() {
            waiting.locked.remove(object);
        }
        self.group(taken)
    }

    /// Moves the events of these locked objects to the events that wait for a lock.
    pub(super) fn push_locked(&self, mut group: Group, objects: &BTreeSet<ObjectKey>) {
        let mut waiting = self.lock();
        for event in group.take() {
            let Some(object) = keys(&event.observation).find(|object| objects.contains(object)) else { continue };
            if !waiting.locked.contains_key(&object) {
                waiting.unattended.push_back(object.clone());
            }
            waiting.locked.entry(object).or_default().push_back(event);
        }
    }

    fn group(&self, events: Vec<Pending>) -> Group {
        let is_alone = events.iter().any(|event| event.is_alone);
        let (observations, callers) = events.into_iter().map(|event| (event.observation, event.caller)).unzip();
        Group { observations, callers, is_alone, queue: self.clone() }
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            arrived: VecDeque::new(),
            committers: 0,
            stuck: 0,
            locked: BTreeMap::new(),
            unattended: VecDeque::new(),
            lock_waiters: 0,
            batch: BATCH,
        }
    }
}

impl Waiting {
    fn push(&mut self, event: Pending) {
        if !self.locked.is_empty() {
            let locked = keys(&event.observation).find(|object| self.locked.contains_key(object));
            if let Some(object) = locked {
                return self.locked.entry(object).or_default().push_back(event);
            }
        }
        self.arrived.push_back(event);
    }

    /// Adapts the size of the next batch to the result of a batch of this length, so that a batch that takes too long is not
    /// retried at the same size.
    pub(super) fn adapt(&mut self, length: usize, is_committed: bool) {
        self.batch = if is_committed { self.batch.saturating_mul(2).min(BATCH) } else { (length / 2).max(1) };
    }

    /// Records that the task no longer waits for the lock of this object. If events of the object are left, another task must wait
    /// for it.
    pub(super) fn leave_locked(&mut self, object: ObjectKey) {
        match self.locked.get(&object).map(VecDeque::is_empty) {
            Some(true) => drop(self.locked.remove(&object)),
            Some(false) => self.unattended.push_back(object),
            None => {}
        }
    }
}

/// Takes the first events within the limits. An event that must be applied alone is a batch.
fn take_batch(events: &mut VecDeque<Pending>, limit: usize) -> Vec<Pending> {
    let mut bytes = 0;
    let mut batch: Vec<Pending> = Vec::new();
    while batch.len() < limit
        && !batch.first().is_some_and(|first| first.is_alone)
        && let Some(next) = events.pop_front_if(|next| {
            bytes += payload_bytes(&next.observation);
            batch.is_empty() || (bytes <= BATCH_BYTES && !next.is_alone)
        })
    {
        batch.push(next);
    }
    batch
}

/// The objects whose rows must be locked to apply an observation.
fn keys(observation: &Observation) -> impl Iterator<Item = ObjectKey> {
    observation.locked().map(|(kind, id)| ObjectKey::new(kind, id))
}

pub(super) fn is_among(objects: &BTreeSet<ObjectKey>, (kind, id): (Kind, &str)) -> bool {
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

/// Events that are applied together, and their callers, in the same order.
///
/// If the task that applies them panics, each of them returns to the queue and is applied alone. So only the event that makes us
/// panic fails.
pub(super) struct Group {
    observations: Vec<Observation>,
    callers: Vec<Caller>,
    is_alone: bool,
    queue: CommitQueue,
}

impl Group {
    pub(super) fn observations(&self) -> &[Observation] {
        &self.observations
    }

    pub(super) fn len(&self) -> usize {
        self.callers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    /// Splits off the events that name one of these objects.
    pub(super) fn split_objects(self, objects: &BTreeSet<ObjectKey>) -> (Self, Self) {
        if objects.is_empty() {
            return (self.queue.group(Vec::new()), self);
        }
        self.split(|observation| observation.locked().any(|object| is_among(objects, object)))
    }

    /// Splits off the events whose callers' deadline has passed.
    pub(super) fn split_late(self) -> (Self, Self) {
        let now = Instant::now();
        if self.callers.iter().all(|caller| caller.deadline > now) {
            return (self.queue.group(Vec::new()), self);
        }
        self.split_events(|event| event.caller.deadline <= now)
    }

    /// Splits it into the events for which `is_apart` holds, and the others.
    pub(super) fn split(self, is_apart: impl Fn(&Observation) -> bool) -> (Self, Self) {
        self.split_events(|event| is_apart(&event.observation))
    }

    fn split_events(mut self, is_apart: impl Fn(&Pending) -> bool) -> (Self, Self) {
        let (apart, rest) = self.take().partition(is_apart);
        (self.queue.group(apart), self.queue.group(rest))
    }

    /// Takes its events out.
    fn take(&mut self) -> impl Iterator<Item = Pending> + use<> {
        let (observations, callers) = (std::mem::take(&mut self.observations), std::mem::take(&mut self.callers));
        let is_alone = self.is_alone;
        observations.into_iter().zip(callers).map(move |(observation, caller)| Pending {
            observation,
            caller,
            is_alone,
        })
    }

    /// Answers the callers.
    pub(super) fn answer(mut self, outcome: Result<Vec<Applied>, StoreError>) {
        let outcomes: Box<dyn Iterator<Item = _>> = match outcome {
            Ok(applied) => Box::new(applied.into_iter().map(Ok)),
            Err(error) => Box::new(std::iter::repeat(error).map(Err)),
        };
        for (Caller { answer, place, .. }, outcome) in std::mem::take(&mut self.callers).into_iter().zip(outcomes) {
            // The place is free before the caller gets the answer.
            drop(place);
            let _ = answer.send(outcome);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.is_empty() {
            return;
        }
        let queue = self.queue.clone();
        if self.len() == 1 {
            return queue.group(self.take().collect()).answer(Err(StoreError::Panicked));
        }
        let mut waiting = queue.lock();
        for event in self.take() {
            waiting.arrived.push_front(Pending { is_alone: true, ..event });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use super::*;
    use crate::domain::decide::Effect;
    use crate::domain::event::Deletion;
    use crate::domain::timestamp::Timestamp;

    fn gone(id: &str) -> Observation {
        let object = Deletion { kind: Kind::User, id: id.to_owned(), of: None };
        Observation::Gone { object, confirmed_at: Timestamp::from_unix_micros(0) }
    }

    fn queue_of(users: &[&str]) -> (CommitQueue, Vec<Answer>) {
        let queue = CommitQueue::new(users.len(), Gauge::default());
        let deadline = Instant::now() + Duration::from_secs(60);
        let answers = users.iter().map(|id| queue.push(gone(id), deadline).unwrap()).collect();
        (queue, answers)
    }

    /// Applies the next batch as a task does.
    fn commit(queue: &CommitQueue, apply: impl Fn(&Observation) -> Applied) {
        let group = queue.next_batch();
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let applied = group.observations().iter().map(apply).collect();
            group.answer(Ok(applied));
        }));
    }

    #[test]
    fn after_a_panic_every_event_is_applied_alone_and_only_the_one_that_panics_fails() {
        let (queue, mut answers) = queue_of(&["user_1", "user_2", "user_3"]);
        let apply = |observation: &Observation| {
            assert_ne!(observation.user_id(), Some("user_2"), "a defect");
            Applied { effect: Effect::Stale, is_duplicate: false, is_user_deleted: false }
        };
        commit(&queue, apply);
        assert_eq!(queue.len(), 3, "no place is free while its event waits");
        assert!(matches!(queue.push(gone("user_4"), Instant::now()), Err(StoreError::Busy)));
        for _ in 0..3 {
            assert_eq!(queue.lock().arrived.len() as i64, queue.len());
            commit(&queue, apply);
        }
        let outcomes: Vec<_> = answers.iter_mut().map(|answer| answer.try_recv().unwrap()).collect();
        assert!(matches!(outcomes[..], [Ok(_), Err(StoreError::Panicked), Ok(_)]), "{outcomes:?}");
        assert_eq!((queue.len(), queue.places.available_permits()), (0, 3));
    }

    #[test]
    fn after_a_panic_the_events_of_a_locked_object_are_left_to_another_task() {
        let (queue, _answers) = queue_of(&["user_1", "user_1"]);
        queue.push_locked(queue.next_batch(), &BTreeSet::from([ObjectKey::new(Kind::User, "user_1")]));
        let user = queue.lock().unattended.pop_front().unwrap();
        assert_eq!(queue.next_locked(&user).len(), 2);
        // The events of the panicked task are lost with their callers. Events that arrive meanwhile are not.
        queue.push(gone("user_1"), Instant::now()).unwrap();
        queue.lock().leave_locked(user.clone());
        assert!(queue.lock().unattended.contains(&user));
        assert_eq!((queue.next_locked(&user).len(), queue.next_locked(&user).len()), (1, 0));
        queue.lock().leave_locked(user.clone());
        assert!(queue.lock().locked.is_empty(), "the object counts as free again");
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_batch_that_takes_too_long_is_not_attempted_at_the_same_size_again() {
        let (queue, _answers) = queue_of(&["user_1"; 300]);
        queue.lock().adapt(BATCH, false);
        assert_eq!(queue.next_batch().len(), BATCH / 2);
        queue.lock().adapt(1, false);
        assert_eq!(queue.next_batch().len(), 1);
        queue.lock().adapt(1, true);
        assert_eq!(queue.next_batch().len(), 2);
        (0..20).for_each(|_| queue.lock().adapt(1, true));
        assert_eq!(queue.next_batch().len(), BATCH);
    }
}
