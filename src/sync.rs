//! The write path. Webhooks, catch-up, backfill, reconcile and read-through all call [`apply`]. Nothing else writes objects.
//!
//! The folder has one file per background job. A job does one step at a time and returns the pause before the next step ([`job`]).

pub mod backfill;
mod batch;
pub mod catch_up;
mod commit_queue;
mod decisions;
pub mod drift;
pub mod erasure;
pub mod feed;
pub(crate) mod group_commit;
pub mod handlers;
pub(crate) mod health;
pub mod heartbeat;
pub mod housekeeping;
pub mod inbox;
pub mod job;
mod job_error;
mod job_status;
pub(crate) mod key_check;
mod list_scan;
pub(crate) mod mirror;
pub mod progress;
pub mod read_through;
pub mod reconcile;
mod records;
mod redaction;
pub mod refresh;
mod role_lists;
mod rows;
pub mod runner;
mod scan_page;
pub mod standby;
mod standby_report;

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use crate::domain::decide::Effect;
use crate::domain::event::{Content, Event, Observation, Origin};
use crate::store::DbConnection;
use crate::store::{Store, StoreError, Work};
use batch::{Attempt, Batch, OneStatement, QuarantineBatch};
use records::Inbox;
pub use scan_page::apply_scan_page;

/// The result of one observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The effect on the object.
    pub effect: Effect,
    /// Whether the inbox already contained this event. Always false for a snapshot.
    pub is_duplicate: bool,
    /// Whether the user of the observation is deleted, by this observation or an earlier one.
    pub is_user_deleted: bool,
}

impl Applied {
    /// Returns the outcome for metrics, logs and responses: `duplicate`, or the outcome that the inbox stores.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        if self.is_duplicate { "duplicate" } else { self.effect.outcome().as_str() }
    }
}

/// Applies a batch of observations in one durable transaction, in the order of the batch, and returns the result of each one.
///
/// The number of statements does not depend on the length of the batch. The result does not depend on the order or on duplicates,
/// and any number of batches can run concurrently. If PostgreSQL rejects the data of an observation, that observation is
/// quarantined, and the same transaction applies the rest of the batch. A batch that exceeds the store's timeout is split: see
/// `apply_with`.
///
/// # Errors
/// [`StoreError`]: nothing was written, or, if the batch was split, only its first parts. Applying the batch again is safe.
pub async fn apply(store: &Store, origin: Origin, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Record(origin), observations, ONLY)).await
}

/// Applies a batch as [`apply`] does, inside a transaction that the caller has begun and commits. Keep the transaction short: until
/// it ends, readers of the feed get no later changes.
///
/// # Errors
/// As [`apply`], and [`StoreError::Refused`] where [`apply`] would quarantine. The caller must roll back.
pub async fn apply_within(
    connection: &mut PgConnection,
    origin: Origin,
    observations: &[Observation],
) -> Result<Vec<Applied>, StoreError> {
    let mut connection = DbConnection::in_transaction(connection);
    Batch::new(Inbox::Record(origin), observations, ONLY).run(&mut connection).await
}

/// Applies a batch as [`apply`] does, and runs `follow_up` in the same transaction: a job moves its cursor there.
///
/// If the transaction times out, the batch is split into parts of half its length, then into quarters, and so on. Each part has
/// its own transaction, in order. `follow_up` runs in the last one, with the result of every observation. Payloads that a deletion
/// must erase are then added to the list of pending erasures.
///
/// # Errors
/// As [`apply`], and the error of `follow_up`.
pub(crate) async fn apply_with<T: FollowUp>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    follow_up: &T,
) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Record(origin), observations, Some(follow_up))).await
}

/// Applies observations from the inbox again. Objects converge as in [`apply`]. In the inbox, only quarantined rows that can be
/// applied now change.
///
/// # Errors
/// As [`apply`].
pub(crate) async fn reapply(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Batch::new(Inbox::Retry, observations, ONLY)).await
}

/// Quarantines observations without an attempt to apply them. Runs `follow_up` in the same transaction.
///
/// # Errors
/// [`StoreError`]
pub(crate) async fn quarantine<T: FollowUp>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    reason: &str,
    follow_up: &T,
) -> Result<(), StoreError> {
    let batch = Batch::new(Inbox::Record(origin), observations, Some(follow_up));
    store.transaction("quarantine", &QuarantineBatch { batch, reason }).await
}

/// Applies a batch, in parts if it exceeds the store's timeout. Each timeout halves the length of the parts, so the number of
/// attempts is bounded: a batch of n observations fails after about log2(n) timeouts.
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

/// Applies a batch in one statement, if possible. Otherwise a transaction is needed: it waits for locks, retries, and finds the
/// observation whose data PostgreSQL rejects.
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

/// Returns whether the observation may erase data of its user.
fn deletes(observation: &Observation) -> bool {
    matches!(observation, Observation::Gone { .. } | Observation::Event(Event { content: Content::Deleted(_), .. }))
}

/// What a job does in the transaction of its batch: it moves its cursor.
pub(crate) trait FollowUp: Sync {
    /// Runs last, with the results of the batch. An error rolls the transaction back.
    fn after(
        &self,
        connection: &mut DbConnection<'_>,
        applied: &[Applied],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<W: Work<Output = ()>> FollowUp for W {
    async fn after(&self, connection: &mut DbConnection<'_>, _: &[Applied]) -> Result<(), StoreError> {
        Work::run(self, connection).await
    }
}

/// The argument for a batch without a follow-up.
const ONLY: Option<&NoFollowUp> = None;

/// A follow-up that does nothing.
pub(crate) struct NoFollowUp;

impl Work for NoFollowUp {
    type Output = ();

    async fn run(&self, _: &mut DbConnection<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}
