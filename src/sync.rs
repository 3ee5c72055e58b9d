//! The write path. Webhooks, catch-up, backfill, reconcile and read-through all end in [`apply`]; there is no other.
//!
//! Below it, a file per driver: each is a `tick` that does one step and says how long to rest.

pub mod backfill;
pub mod catch_up;
pub mod drift;
pub mod driver;
pub mod erasure;
pub mod feed;
mod guard;
pub mod handlers;
pub mod housekeeping;
pub mod inbox;
pub mod progress;
pub mod read_through;
pub mod reconcile;
mod scan;
mod slice;
mod verdict;
mod walk;

use sqlx::postgres::PgConnection;

use crate::domain::change::Difference;
use crate::domain::event::{Content, Event, Observation, Origin, Outcome};
use crate::store::{Store, StoreError, Work};
pub use scan::apply_scan;
use slice::{Condemned, Inbox, Slice};

/// What became of one observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it did.
    pub outcome: Outcome,
    /// Why it did nothing, or could not; holds nothing of the payload.
    pub reason: Option<String>,
    /// The inbox held this event already, and as well (always false for what is no event).
    pub duplicate: bool,
    /// What it did to its user; `None` when it did nothing.
    pub difference: Option<Difference>,
    /// The names of the fields that an update changed.
    pub changed: Vec<String>,
    /// Its user is deleted, by this observation or an earlier one.
    pub deleted: bool,
}

/// Applies a slice of observations in one durable transaction, in the slice's order, and says what became of each.
///
/// It costs a fixed number of statements whatever the slice's length, converges whatever the order and the duplication,
/// and may run beside any other. Where PostgreSQL refuses an observation's data, that one is quarantined and the rest of
/// the slice applied, still in one transaction. A slice that exceeds the store's timeout is split: see `apply_then`.
///
/// # Errors
/// [`StoreError`]: nothing of the slice was written, or the first parts of one that was split. Applying it again is safe.
pub async fn apply(store: &Store, origin: Origin, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    apply_then(store, origin, observations, &Nothing).await
}

/// Applies a slice inside a transaction the caller holds open and commits; see [`apply`], which begins one itself. Until it
/// ends, nobody is told of later changes either: keep it short.
///
/// # Errors
/// As [`apply`], and [`StoreError::Refused`] where that would quarantine; the caller must roll back.
pub async fn apply_within(
    connection: &mut PgConnection,
    origin: Origin,
    observations: &[Observation],
) -> Result<Vec<Applied>, StoreError> {
    Slice::new(Inbox::Record(origin), observations, &Nothing).run(connection).await
}

/// Applies a slice as [`apply`] does, and does `then` in the same transaction: a driver moves its position there.
///
/// When the transaction times out, the slice is applied in parts of half its length, and of half that again, each in a
/// transaction of its own and in order; `then` runs in the last one, with the outcome of every observation. What a deletion
/// has to erase is then left to the to-do list of erasures.
///
/// # Errors
/// [`StoreError`], also that of `then`, as [`apply`].
pub(crate) async fn apply_then<T: Then>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    then: &T,
) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Slice::new(Inbox::Record(origin), observations, then)).await
}

/// Applies what the inbox holds once more. Rows converge as ever; of the inbox only a quarantined row changes, when it can
/// be applied now.
///
/// # Errors
/// As [`apply`].
pub(crate) async fn apply_again(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    in_parts(store, &Slice::new(Inbox::Settle, observations, &Nothing)).await
}

/// Enters observations into the quarantine without trying them.
///
/// # Errors
/// [`StoreError`]
pub(crate) async fn quarantine<T: Then>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    reason: &str,
    then: &T,
) -> Result<(), StoreError> {
    let slice = Slice::new(Inbox::Record(origin), observations, then);
    store.transaction("quarantine", &Condemned { slice, reason }).await
}

/// Applies a slice, in as few parts as the store's timeout allows. Each timeout halves the parts, so their number is bounded:
/// a slice whose single observations time out fails after a logarithmic number of attempts.
async fn in_parts<T: Then>(store: &Store, slice: &Slice<'_, T>) -> Result<Vec<Applied>, StoreError> {
    let mut slice = *slice;
    let mut length = slice.observations.len();
    let mut applied = Vec::with_capacity(length);
    loop {
        let part = slice.part(&applied, length);
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
                let can_defer = deletes && slice.erase_limit > 0;
                if attempted < 2 && !can_defer {
                    return Err(error);
                }
                (slice.erase_limit, length) = (0, attempted.div_ceil(2));
                tracing::warn!(observations = attempted, "a transaction timed out; it is retried in smaller parts");
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attempt<T: Then>(store: &Store, part: &Slice<'_, T>) -> Result<Vec<Applied>, StoreError> {
    match store.transaction("apply", part).await {
        Err(StoreError::Refused { .. }) => store.transaction("apply one by one", &part.one_by_one()).await,
        outcome => outcome,
    }
}

/// The observation may erase data of its user.
fn deletes(observation: &Observation) -> bool {
    matches!(observation, Observation::Gone { .. } | Observation::Event(Event { content: Content::Deleted, .. }))
}

/// What a driver does in the transaction of its slice: it moves its position.
pub(crate) trait Then: Sync {
    /// Runs last, with what became of the slice. An error rolls everything back.
    fn after(
        &self,
        connection: &mut PgConnection,
        applied: &[Applied],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<W: Work<Output = ()>> Then for W {
    async fn after(&self, connection: &mut PgConnection, _: &[Applied]) -> Result<(), StoreError> {
        Work::run(self, connection).await
    }
}

/// Work that does nothing.
pub(crate) struct Nothing;

impl Work for Nothing {
    type Output = ();

    async fn run(&self, _: &mut PgConnection) -> Result<(), StoreError> {
        Ok(())
    }
}
