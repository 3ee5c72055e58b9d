//! The write path. Webhooks, catch-up, backfill, reconcile and read-through all end in [`apply`]; there is no other.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::domain::decide::{Decision, Seen, Stored, decide};
use crate::domain::event::{Content, Observation, Origin, Outcome};
use crate::store::events::Receipt;
use crate::store::{Store, StoreError, Work, events, users};

/// What became of one observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it did.
    pub outcome: Outcome,
    /// Why it did nothing, or could not; holds nothing of the payload.
    pub reason: Option<String>,
    /// The inbox held this event already (always false for a snapshot).
    pub duplicate: bool,
}

/// Applies a slice of observations in one durable transaction, in the slice's order, and says what became of each.
///
/// It costs a fixed number of statements whatever the slice's length, converges whatever the order and the duplication,
/// and may run beside any other. Where PostgreSQL refuses an observation's data, that one is quarantined and the rest of
/// the slice applied, still in one transaction.
///
/// # Errors
/// [`StoreError::Unavailable`] or [`StoreError::Conflict`]: nothing of the slice was written.
pub async fn apply(store: &Store, origin: Origin, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let slice = |one_by_one| Slice { origin, observations, one_by_one };
    match store.transaction("apply", &slice(false)).await {
        Err(StoreError::Refused { .. }) => store.transaction("apply one by one", &slice(true)).await,
        outcome => outcome,
    }
}

/// Applies a slice inside a transaction the caller holds open and commits; see [`apply`], which begins one itself.
///
/// # Errors
/// As [`apply`], and [`StoreError::Refused`] where that would quarantine; the caller must roll back.
pub async fn apply_within(
    connection: &mut PgConnection,
    origin: Origin,
    observations: &[Observation],
) -> Result<Vec<Applied>, StoreError> {
    Slice { origin, observations, one_by_one: false }.run(connection).await
}

/// A slice and how to go about it.
struct Slice<'a> {
    origin: Origin,
    observations: &'a [Observation],
    /// Each observation behind a savepoint of its own: slow, and only to find out whose data PostgreSQL refuses.
    one_by_one: bool,
}

/// The users a slice names, as the database holds them, or will once the slice is written.
type Users = BTreeMap<String, Stored>;

impl Work for Slice<'_> {
    type Output = Vec<Applied>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Applied>, StoreError> {
        let named: BTreeSet<&str> = self.observations.iter().filter_map(Observation::user_id).collect();
        let named: Vec<String> = named.into_iter().map(str::to_owned).collect();
        let mut stored = Users::new();
        if !named.is_empty() {
            users::hold_places(connection, &named).await?;
            stored = users::lock(connection, &named).await?;
        }
        let applied = if self.one_by_one {
            let mut applied = Vec::with_capacity(self.observations.len());
            for observation in self.observations {
                applied.push(self.settle_alone(connection, observation, &mut stored).await?);
            }
            applied
        } else {
            self.settle(connection, self.observations, &mut stored, None).await?
        };
        let unknown: Vec<String> =
            stored.into_iter().filter(|(_, user)| matches!(user, Stored::Absent)).map(|(id, _)| id).collect();
        if !unknown.is_empty() {
            users::release_places(connection, &unknown).await?;
        }
        Ok(applied)
    }
}

impl Slice<'_> {
    async fn settle_alone(
        &self,
        connection: &mut PgConnection,
        observation: &Observation,
        stored: &mut Users,
    ) -> Result<Applied, StoreError> {
        let alone = std::slice::from_ref(observation);
        let before = stored.clone();
        let mut savepoint = connection.begin().await?;
        let applied = match self.settle(&mut savepoint, alone, stored, None).await {
            Ok(applied) => {
                savepoint.commit().await?;
                applied
            }
            Err(StoreError::Refused { sqlstate }) => {
                savepoint.rollback().await?;
                *stored = before;
                let reason = format!("PostgreSQL refuses the data: SQLSTATE {sqlstate}");
                self.settle(connection, alone, stored, Some(&reason)).await?
            }
            Err(error) => return Err(error),
        };
        applied.into_iter().next().ok_or(StoreError::Unavailable("an observation was lost".into()))
    }

    /// Decides and writes; `refused` quarantines the observations for that reason instead.
    async fn settle(
        &self,
        connection: &mut PgConnection,
        observations: &[Observation],
        stored: &mut Users,
        refused: Option<&str>,
    ) -> Result<Vec<Applied>, StoreError> {
        let mut changed = BTreeSet::new();
        let mut erase = Vec::new();
        let mut applied = Vec::with_capacity(observations.len());
        for observation in observations {
            let user = observation.user_id().and_then(|id| stored.get_mut(id));
            let was_deleted = matches!(user, Some(Stored::Tombstone { .. }));
            let (outcome, reason) = match refused {
                Some(reason) => (Outcome::Quarantined, Some(reason)),
                None => judge(observation, user),
            };
            if let Some(id) = observation.user_id().filter(|_| outcome == Outcome::Applied) {
                changed.insert(id);
                if !was_deleted && matches!(stored.get(id), Some(Stored::Tombstone { .. })) {
                    erase.push(id.to_owned());
                }
            }
            applied.push(Applied { outcome, reason: reason.map(str::to_owned), duplicate: false });
        }
        write(connection, stored, &changed).await?;
        self.record(connection, observations, stored, &mut applied).await?;
        if !erase.is_empty() {
            events::erase(connection, &erase).await?;
        }
        Ok(applied)
    }

    /// Enters the slice's events into the inbox, without payload where their user is by now deleted.
    async fn record(
        &self,
        connection: &mut PgConnection,
        observations: &[Observation],
        stored: &Users,
        applied: &mut [Applied],
    ) -> Result<(), StoreError> {
        // By id, so that concurrent slices with the same events meet them in one order; the first of an id counts.
        let mut receipts = BTreeMap::new();
        for (at, observation) in observations.iter().enumerate() {
            let Observation::Event(event) = observation else { continue };
            let Some(Applied { outcome, reason, .. }) = applied.get(at) else { continue };
            let erased =
                matches!(event.user_id.as_deref().and_then(|id| stored.get(id)), Some(Stored::Tombstone { .. }));
            let receipt = Receipt { event, outcome: *outcome, reason: reason.clone(), erased };
            receipts.entry(event.id.as_str()).or_insert((at, receipt));
        }
        if receipts.is_empty() {
            return Ok(());
        }
        let firsts: BTreeSet<usize> = receipts.values().map(|(at, _)| *at).collect();
        let receipts: Vec<Receipt<'_>> = receipts.into_values().map(|(_, receipt)| receipt).collect();
        let new = events::record(connection, self.origin, &receipts).await?;
        for (at, (observation, applied)) in observations.iter().zip(applied).enumerate() {
            if let Observation::Event(event) = observation {
                applied.duplicate = !(firsts.contains(&at) && new.contains(&event.id));
            }
        }
        Ok(())
    }
}

/// What the observation does to its user, in the inbox's words.
fn judge(observation: &Observation, user: Option<&mut Stored>) -> (Outcome, Option<&'static str>) {
    let seen = match observation {
        Observation::Snapshot(snapshot) => Seen::Live(&snapshot.user, &snapshot.version),
        Observation::Event(event) => match &event.content {
            Content::Live { user, version } => Seen::Live(user, version),
            Content::Deleted => Seen::Deleted(event.created_at),
            Content::Other => return (Outcome::Ignored, None),
            Content::Unusable(reason) => return (Outcome::Quarantined, Some(reason)),
        },
    };
    match user.map(|stored| decide(stored, seen)) {
        Some(Decision::Applied) => (Outcome::Applied, None),
        Some(Decision::Older) => (Outcome::Stale, Some("the row stands on this observation or a later one")),
        Some(Decision::Deleted) => (Outcome::Stale, Some("the user is deleted")),
        None => (Outcome::Quarantined, Some("it names no user")),
    }
}

/// Writes the users that changed, as they now stand.
async fn write(connection: &mut PgConnection, stored: &Users, changed: &BTreeSet<&str>) -> Result<(), StoreError> {
    let (mut live, mut deleted) = (Vec::new(), Vec::new());
    for id in changed {
        match stored.get(*id) {
            Some(Stored::Live { user, version }) => live.push((&**user, version)),
            Some(Stored::Tombstone { deleted_at }) => deleted.push((*id, *deleted_at)),
            Some(Stored::Absent) | None => {}
        }
    }
    if !live.is_empty() {
        users::write_live(connection, &live).await?;
    }
    if !deleted.is_empty() {
        users::write_tombstones(connection, &deleted).await?;
    }
    Ok(())
}
