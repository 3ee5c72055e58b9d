//! The write path. Webhooks, catch-up, backfill, reconcile and read-through all end in [`apply`]; there is no other.
//!
//! Below it, a file per driver: each is a `tick` that does one step and says how long to rest.

pub mod backfill;
mod batch;
pub mod catch_up;
mod decisions;
pub mod drift;
pub mod erasure;
pub mod feed;
pub(crate) mod group_commit;
pub mod handlers;
pub mod housekeeping;
pub mod inbox;
pub mod job;
mod key_check;
mod list_scan;
pub mod progress;
pub mod read_through;
pub mod reconcile;
mod records;
pub mod runner;
mod scan_page;

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use crate::domain::decide::Effect;
use crate::domain::event::{Content, Event, Observation, Origin};
use crate::store::{Store, StoreError, Work};
use batch::{Attempt, Batch, OneStatement, QuarantineBatch};
use records::Inbox;
pub use scan_page::apply_scan_page;

/// What one observation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it did to its user.
    pub effect: Effect,
    /// The inbox already contained this event (always false for anything but an event).
    pub is_duplicate: bool,
    /// Its user is deleted, by this observation or an earlier one.
    pub is_user_deleted: bool,
}

impl Applied {
    /// The outcome for metrics, logs and answers: `duplicate`, or the outcome that the inbox stores.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        if self.is_duplicate { "duplicate" } else { self.effect.outcome().as_str() }
    }
}

/// Applies a batch of observations in one durable transaction, in the batch's order, and says what became of each.
///
/// It costs a fixed number of statements whatever the batch's length, converges whatever the order and the duplication,
/// and may run beside any other. Where PostgreSQL refuses an observation's data, that one is quarantined and the rest of
/// the batch applied, still in one transaction. A batch that exceeds the store's timeout is split: see `apply_with`.
///
/// # Errors
/// [`StoreError`]: nothing of the batch was written, or the first parts of one that was split. Applying it again is safe.
pub async fn apply(store: &Store, origin: Origin, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Record(origin), observations, ONLY)).await
}

/// Applies a batch inside a transaction the caller holds open and commits; see [`apply`], which begins one itself. Until it
/// ends, nobody is told of later changes either: keep it short.
///
/// # Errors
/// As [`apply`], and [`StoreError::Refused`] where that would quarantine; the caller must roll back.
pub async fn apply_within(
    connection: &mut PgConnection,
    origin: Origin,
    observations: &[Observation],
) -> Result<Vec<Applied>, StoreError> {
    Batch::new(Inbox::Record(origin), observations, ONLY).run(connection).await
}

/// Applies a batch as [`apply`] does, and does `then` in the same transaction: a driver moves its position there.
///
/// When the transaction times out, the batch is applied in parts of half its length, and of half that again, each in a
/// transaction of its own and in order; `then` runs in the last one, with the outcome of every observation. What a deletion
/// has to erase is then left to the to-do list of erasures.
///
/// # Errors
/// [`StoreError`], also that of `then`, as [`apply`].
pub(crate) async fn apply_with<T: FollowUp>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    then: &T,
) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Record(origin), observations, Some(then))).await
}

/// Applies what the inbox holds once more. Rows converge as ever; of the inbox only a quarantined row changes, when it can
/// be applied now.
///
/// # Errors
/// As [`apply`].
pub(crate) async fn reapply(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Retry, observations, ONLY)).await
}

/// Enters observations into the quarantine without trying them.
///
/// # Errors
/// [`StoreError`]
pub(crate) async fn quarantine<T: FollowUp>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    reason: &str,
    then: &T,
) -> Result<(), StoreError> {
    let batch = Batch::new(Inbox::Record(origin), observations, Some(then));
    store.transaction("quarantine", &QuarantineBatch { batch, reason }).await
}

/// Applies a batch, in as few parts as the store's timeout allows. Each timeout halves the parts, so their number is bounded:
/// a batch whose single observations time out fails after a logarithmic number of attempts.
async fn in_parts<T: FollowUp>(store: &Store, batch: &Batch<'_, T>) -> Result<Vec<Applied>, StoreError> {
    let mut batch = *batch;
    let mut length = batch.observations.len();
    let mut applied = Vec::with_capacity(length);
    loop {
        let part = batch.part(&applied, length);
        let (is_last, deletes) = (part.is_last, part.observations.iter().any(deletes));
        let attempted = part.observations.len();
        match attempt(store, &part).await {
            Ok(outcomes) => {
                applied.extend(outcomes);
                if is_last {
                    return Ok(applied);
                }
            }
            Err(error @ StoreError::TimedOut(_)) => {
                let can_defer = deletes && batch.erase_limit > 0;
                if attempted < 2 && !can_defer {
                    return Err(error);
                }
                (batch.erase_limit, length) = (0, attempted.div_ceil(2));
                tracing::warn!(observations = attempted, "a transaction timed out; it is retried in smaller parts");
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attempt<T: FollowUp>(store: &Store, part: &Batch<'_, T>) -> Result<Vec<Applied>, StoreError> {
    if let Attempt::Done(applied) = one_statement(store, part).await? {
        return Ok(applied);
    }
    match store.transaction("apply", part).await {
        Err(StoreError::Refused { .. }) => store.transaction("apply one by one", &part.one_by_one()).await,
        outcome => outcome,
    }
}

/// Applies a batch in one statement, if that is enough. A transaction can do more: it waits for locks, retries, and finds out
/// whose data PostgreSQL refuses.
async fn one_statement<T: FollowUp>(store: &Store, batch: &Batch<'_, T>) -> Result<Attempt, StoreError> {
    if !batch.may_be_one_statement() {
        return Ok(Attempt::NeedsTransaction(BTreeSet::new()));
    }
    let attempted = store
        .one_statement(async |connection, client_id| OneStatement { batch: *batch, client_id }.run(connection).await);
    match attempted.await {
        Err(StoreError::Conflict { .. } | StoreError::Refused { .. } | StoreError::TimedOut(_)) => {
            Ok(Attempt::NeedsTransaction(BTreeSet::new()))
        }
        outcome => outcome,
    }
}

/// The observation may erase data of its user.
fn deletes(observation: &Observation) -> bool {
    matches!(observation, Observation::Gone { .. } | Observation::Event(Event { content: Content::Deleted, .. }))
}

/// What a driver does in the transaction of its batch: it moves its position.
pub(crate) trait FollowUp: Sync {
    /// Runs last, with what became of the batch. An error rolls everything back.
    fn after(
        &self,
        connection: &mut PgConnection,
        applied: &[Applied],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<W: Work<Output = ()>> FollowUp for W {
    async fn after(&self, connection: &mut PgConnection, _: &[Applied]) -> Result<(), StoreError> {
        Work::run(self, connection).await
    }
}

/// A batch comes with nothing else.
const ONLY: Option<&NoFollowUp> = None;

/// Work that does nothing.
pub(crate) struct NoFollowUp;

impl Work for NoFollowUp {
    type Output = ();

    async fn run(&self, _: &mut PgConnection) -> Result<(), StoreError> {
        Ok(())
    }
}
