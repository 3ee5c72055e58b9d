//! The write path. Webhooks, catch-up, backfill, reconcile and read-through all end in [`apply`]; there is no other.
//!
//! Below it, a file per driver: each is a `tick` that does one step and says how long to rest.

pub mod backfill;
pub mod catch_up;
pub mod drift;
pub mod driver;
pub mod feed;
mod guard;
pub mod handlers;
pub mod housekeeping;
pub mod inbox;
pub mod progress;
pub mod read_through;
pub mod reconcile;
mod verdict;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::domain::change::Difference;
use crate::domain::decide::Stored;
use crate::domain::event::{Observation, Origin, Outcome};
use crate::store::events::Receipt;
use crate::store::{Store, StoreError, Work, changes, events, handlers as backlog, sign_ins as sessions, users};
use verdict::{Life, Verdict, inbox_event, judge, news, sign_in};

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
/// the slice applied, still in one transaction.
///
/// # Errors
/// [`StoreError`]: nothing of the slice was written.
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
    let slice =
        Slice { inbox: Inbox::Record(origin), observations, one_by_one: false, sign_ins: false, then: &Nothing };
    slice.run(connection).await
}

/// Applies a slice as [`apply`] does, and does `then` in the same transaction: a driver moves its position there.
///
/// # Errors
/// [`StoreError`], also that of `then`: nothing of the slice was written.
pub(crate) async fn apply_then<T: Then>(
    store: &Store,
    origin: Origin,
    observations: &[Observation],
    then: &T,
) -> Result<Vec<Applied>, StoreError> {
    let (inbox, sign_ins) = (Inbox::Record(origin), store.counts_sessions());
    run(store, |one_by_one| Slice { inbox, observations, one_by_one, sign_ins, then }).await
}

/// Applies what the inbox holds once more. Rows converge as ever; of the inbox only a quarantined row changes, when it can
/// be applied now.
///
/// # Errors
/// [`StoreError`]: nothing of the slice was written.
pub(crate) async fn apply_again(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let (inbox, sign_ins) = (Inbox::Settle, store.counts_sessions());
    run(store, |one_by_one| Slice { inbox, observations, one_by_one, sign_ins, then: &Nothing }).await
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
    let slice = Slice { inbox: Inbox::Record(origin), observations, one_by_one: false, sign_ins: false, then };
    let condemned = Condemned { slice, reason };
    store.transaction("quarantine", &condemned).await
}

async fn run<'a, T: Then + 'a>(
    store: &Store,
    slice: impl Fn(bool) -> Slice<'a, T>,
) -> Result<Vec<Applied>, StoreError> {
    match store.transaction("apply", &slice(false)).await {
        Err(StoreError::Refused { .. }) => store.transaction("apply one by one", &slice(true)).await,
        outcome => outcome,
    }
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

/// What a slice does to the inbox.
#[derive(Clone, Copy)]
enum Inbox {
    /// Enters its events.
    Record(Origin),
    /// Settles those of its observations that are in quarantine.
    Settle,
}

/// A slice and how to go about it.
struct Slice<'a, T> {
    inbox: Inbox,
    observations: &'a [Observation],
    /// Each observation behind a savepoint of its own: slow, and only to find out whose data PostgreSQL refuses.
    one_by_one: bool,
    /// Sessions move `last_sign_in_at`.
    sign_ins: bool,
    then: &'a T,
}

/// A slice that is not even tried.
struct Condemned<'a, T> {
    slice: Slice<'a, T>,
    reason: &'a str,
}

impl<T: Then> Work for Condemned<'_, T> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let mut stored = self.slice.lock(connection).await?;
        let slice = &self.slice;
        let applied = slice.settle(connection, slice.observations, &mut stored, Some(self.reason)).await?;
        slice.finish(connection, stored, &applied).await
    }
}

/// The users a slice names, as the database holds them, or will once the slice is written.
type Users = BTreeMap<String, Stored>;

impl<T: Then> Work for Slice<'_, T> {
    type Output = Vec<Applied>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Applied>, StoreError> {
        let mut stored = self.lock(connection).await?;
        let applied = if self.one_by_one {
            let mut applied = Vec::with_capacity(self.observations.len());
            for observation in self.observations {
                applied.push(self.settle_alone(connection, observation, &mut stored).await?);
            }
            applied
        } else {
            self.settle(connection, self.observations, &mut stored, None).await?
        };
        self.finish(connection, stored, &applied).await?;
        Ok(applied)
    }
}

impl<T: Then> Slice<'_, T> {
    /// Locks and reads every user the slice names.
    async fn lock(&self, connection: &mut PgConnection) -> Result<Users, StoreError> {
        let named: BTreeSet<&str> = self.observations.iter().filter_map(Observation::user_id).collect();
        let named: Vec<String> = named.into_iter().map(str::to_owned).collect();
        if named.is_empty() {
            return Ok(Users::new());
        }
        users::hold_places(connection, &named).await?;
        users::lock(connection, &named).await
    }

    /// Takes back the places of users who are still unknown, and does what comes with the slice.
    async fn finish(
        &self,
        connection: &mut PgConnection,
        stored: Users,
        applied: &[Applied],
    ) -> Result<(), StoreError> {
        if self.sign_ins {
            self.count_sessions(connection, &stored).await?;
        }
        let unknown: Vec<String> =
            stored.into_iter().filter(|(_, user)| matches!(user, Stored::Absent)).map(|(id, _)| id).collect();
        if !unknown.is_empty() {
            users::release_places(connection, &unknown).await?;
        }
        self.then.after(connection, applied).await
    }

    /// Keeps what sessions tell of sign-ins, and shows it in the rows the slice names, also those that have just come.
    async fn count_sessions(&self, connection: &mut PgConnection, stored: &Users) -> Result<(), StoreError> {
        let deleted = |user: &str| matches!(stored.get(user), Some(Stored::Tombstone { .. }));
        let seen = self.observations.iter().filter_map(sign_in).filter(|(user, _)| !deleted(user));
        let seen: Vec<_> = seen.collect();
        if !seen.is_empty() {
            sessions::keep(connection, &seen).await?;
        }
        let live = stored.iter().filter(|(_, user)| matches!(user, Stored::Live { .. })).map(|(id, _)| id.clone());
        let live: Vec<String> = live.collect();
        if live.is_empty() { Ok(()) } else { sessions::show(connection, &live).await }
    }

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
        let mut written = BTreeSet::new();
        let mut erase = Vec::new();
        let mut applied = Vec::with_capacity(observations.len());
        for observation in observations {
            let id = observation.user_id();
            let before = id.and_then(|id| stored.get(id)).map(Life::of);
            let Verdict { outcome, reason, news } = match refused {
                Some(reason) => Verdict::not_applied(Outcome::Quarantined, Some(reason)),
                None => judge(observation, id.and_then(|id| stored.get_mut(id))),
            };
            let after = id.and_then(|id| stored.get(id)).map(Life::of);
            let difference = news.as_ref().and_then(|_| Life::difference(before, after));
            if let Some(id) = id.filter(|_| outcome == Outcome::Applied) {
                written.insert(id);
                if difference == Some(Difference::Deleted) {
                    erase.push(id.to_owned());
                }
            }
            applied.push(Applied {
                outcome,
                reason: reason.map(str::to_owned),
                duplicate: false,
                difference,
                changed: news.unwrap_or_default(),
                deleted: after == Some(Life::Deleted),
            });
        }
        write(connection, stored, &written).await?;
        self.record(connection, observations, stored, &mut applied).await?;
        changes::record(connection, &news(self.inbox, observations, &applied)).await?;
        if !erase.is_empty() {
            events::erase(connection, &erase).await?;
            backlog::erase(connection, &erase).await?;
            sessions::forget(connection, &erase).await?;
        }
        Ok(applied)
    }

    /// Enters what belongs there into the inbox, without payload where its user is by now deleted.
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
            let Some(Applied { outcome, reason, .. }) = applied.get(at) else { continue };
            let Some(event) = inbox_event(observation, *outcome, self.inbox) else { continue };
            let erased =
                matches!(event.user_id.as_deref().and_then(|id| stored.get(id)), Some(Stored::Tombstone { .. }));
            let receipt = Receipt { event, outcome: *outcome, reason: reason.clone(), erased };
            receipts.entry(receipt.event.id.clone()).or_insert((at, receipt));
        }
        if receipts.is_empty() {
            return Ok(());
        }
        let firsts: BTreeSet<usize> = receipts.values().map(|(at, _)| *at).collect();
        let receipts: Vec<Receipt<'_>> = receipts.into_values().map(|(_, receipt)| receipt).collect();
        let new = match self.inbox {
            Inbox::Record(origin) => events::record(connection, origin, &receipts).await?,
            Inbox::Settle => events::settle(connection, &receipts).await?,
        };
        for (at, (observation, applied)) in observations.iter().zip(applied).enumerate() {
            if let Observation::Event(event) = observation {
                applied.duplicate = !(firsts.contains(&at) && new.contains(&event.id));
            }
        }
        Ok(())
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
