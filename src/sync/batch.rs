//! A batch of observations and the transaction that applies it: lock, decide, write, record, erase.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::records::{inbox_event, new_changes, sign_in};
use super::{Applied, FollowUp};
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::{Content, Event, Observation, Origin, Outcome};
use crate::store::events::NewEvent;
use crate::store::scans::ScanStart;
use crate::store::users::Locked;
use crate::store::{StoreError, Work, changes, erasure, events, scans, sign_ins, users};

/// What a batch does to the inbox.
#[derive(Clone, Copy)]
pub(super) enum Inbox {
    /// Enters its events.
    Record(Origin),
    /// Settles those of its observations that are in quarantine.
    Retry,
}

/// Observations that one transaction applies, and how.
pub(super) struct Batch<'a, T> {
    pub(super) inbox: Inbox,
    pub(super) observations: &'a [Observation],
    /// The outcomes of earlier parts, where a batch had to be split.
    before: &'a [Applied],
    /// No part follows: `then` is done in this transaction.
    pub(super) is_last: bool,
    /// Each observation behind a savepoint of its own: slow, and only to find out whose data PostgreSQL refuses.
    one_by_one: bool,
    /// Rows of each table that deletions erase in this transaction at most; see [`erasure::erase`].
    pub(super) erase_limit: i64,
    /// The scan these snapshots are a page of.
    scan: Option<&'a ScanStart>,
    then: &'a T,
}

impl<T> Clone for Batch<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Batch<'_, T> {}

/// A batch that is not even tried.
pub(super) struct QuarantineBatch<'a, T> {
    pub(super) batch: Batch<'a, T>,
    pub(super) reason: &'a str,
}

impl<T: FollowUp> Work for QuarantineBatch<'_, T> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let mut stored = self.batch.lock(connection).await?;
        let batch = &self.batch;
        let applied = batch.apply_observations(connection, batch.observations, &mut stored, Some(self.reason)).await?;
        batch.finish(connection, stored, applied).await.map(drop)
    }
}

/// The users a batch names, as the database holds them, or will once the batch is written.
type Users = BTreeMap<String, Locked>;

impl<T: FollowUp> Work for Batch<'_, T> {
    type Output = Vec<Applied>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Applied>, StoreError> {
        let mut stored = self.lock(connection).await?;
        let applied = if self.one_by_one {
            let mut applied = Vec::with_capacity(self.observations.len());
            for observation in self.observations {
                applied.push(self.apply_one(connection, observation, &mut stored).await?);
            }
            applied
        } else {
            self.apply_observations(connection, self.observations, &mut stored, None).await?
        };
        self.finish(connection, stored, applied).await
    }
}

impl<'a, T: FollowUp> Batch<'a, T> {
    /// A whole batch; `then` is done in its transaction.
    pub(super) fn new(inbox: Inbox, observations: &'a [Observation], then: &'a T) -> Self {
        Self {
            inbox,
            observations,
            before: &[],
            is_last: true,
            one_by_one: false,
            erase_limit: erasure::BATCH,
            scan: None,
            then,
        }
    }

    /// The next part, of at most so many observations, after the ones whose outcomes are known.
    pub(super) fn part<'b>(&self, before: &'b [Applied], length: usize) -> Batch<'b, T>
    where
        'a: 'b,
    {
        let rest = self.observations.get(before.len()..).unwrap_or_default();
        let observations = rest.get(..length).unwrap_or(rest);
        Batch { observations, before, is_last: observations.len() == rest.len(), ..*self }
    }

    /// The same, a page of a scan.
    pub(super) fn of_scan(self, scan: &'a ScanStart) -> Self {
        Self { scan: Some(scan), ..self }
    }

    /// The same, each observation behind a savepoint.
    pub(super) fn one_by_one(&self) -> Self {
        Self { one_by_one: true, ..*self }
    }

    /// Locks and reads every user the batch names.
    async fn lock(&self, connection: &mut PgConnection) -> Result<Users, StoreError> {
        let named: BTreeSet<&str> = self.observations.iter().filter_map(Observation::user_id).collect();
        let named: Vec<String> = named.into_iter().map(str::to_owned).collect();
        if named.is_empty() {
            return Ok(Users::new());
        }
        users::insert_placeholders(connection, &named).await?;
        let mut users = users::lock(connection, &named).await?;
        // Rarely: two observations of the same `updated_at`. The row may be confirmed as of later than its version says.
        if self.observations.iter().any(|observation| is_between_equals(observation, &users))
            && let Some(confirmation) = scans::confirmation(connection).await?
        {
            for user in users.values_mut() {
                let Locked { stored: Stored::Live { version, .. }, version_at, .. } = user else { continue };
                if version_at.is_none_or(|at| at < confirmation.before) {
                    version.confirm(confirmation.at);
                }
            }
        }
        Ok(users)
    }

    /// Takes back the places of users who are still unknown, and does what comes with the batch.
    async fn finish(
        &self,
        connection: &mut PgConnection,
        stored: Users,
        applied: Vec<Applied>,
    ) -> Result<Vec<Applied>, StoreError> {
        let unknown: Vec<String> =
            stored.into_iter().filter(|(_, user)| matches!(user.stored, Stored::Absent)).map(|(id, _)| id).collect();
        if !unknown.is_empty() {
            users::delete_placeholders(connection, &unknown).await?;
        }
        if self.is_last {
            self.then.after(connection, &[self.before, &applied].concat()).await?;
        }
        Ok(applied)
    }

    async fn apply_one(
        &self,
        connection: &mut PgConnection,
        observation: &Observation,
        stored: &mut Users,
    ) -> Result<Applied, StoreError> {
        let alone = std::slice::from_ref(observation);
        let before = stored.clone();
        let mut savepoint = connection.begin().await?;
        let applied = match self.apply_observations(&mut savepoint, alone, stored, None).await {
            Ok(applied) => {
                savepoint.commit().await?;
                applied
            }
            Err(StoreError::Refused { sqlstate }) => {
                savepoint.rollback().await?;
                *stored = before;
                let reason = format!("PostgreSQL refuses the data: SQLSTATE {sqlstate}");
                self.apply_observations(connection, alone, stored, Some(&reason)).await?
            }
            Err(error) => return Err(error),
        };
        applied.into_iter().next().ok_or(StoreError::Unavailable("an observation was lost".into()))
    }

    /// Decides and writes; `refused` quarantines the observations for that reason instead.
    async fn apply_observations(
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
            let effect = match refused {
                Some(reason) => Effect::Quarantined(reason.to_owned().into()),
                None => decide(id.and_then(|id| stored.get_mut(id)).map(|user| &mut user.stored), observation),
            };
            let user = id.and_then(|id| stored.get(id));
            if let Some(id) = id.filter(|_| {
                effect.outcome() == Outcome::Applied || self.scan.is_some_and(|scan| is_of_before(scan, user))
            }) {
                written.insert(id);
                if effect == Effect::Deleted {
                    erase.push(id.to_owned());
                }
            }
            let is_user_deleted = user.is_some_and(|user| matches!(user.stored, Stored::Tombstone { .. }));
            applied.push(Applied { effect, is_duplicate: false, is_user_deleted });
        }
        if refused.is_none() {
            keep_sign_ins(connection, observations, stored, &mut written).await?;
        }
        write(connection, stored, &written, self.scan.is_some()).await?;
        self.record(connection, observations, stored, &mut applied).await?;
        changes::record(connection, &new_changes(self.inbox, observations, &applied)).await?;
        if !erase.is_empty() {
            erasure::erase(connection, &erase, self.erase_limit).await?;
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
        let mut writes = BTreeMap::new();
        for (at, observation) in observations.iter().enumerate() {
            let Some(Applied { effect, .. }) = applied.get(at) else { continue };
            let Some(event) = inbox_event(observation, effect, self.inbox) else { continue };
            let user = event.user_id.as_deref().and_then(|id| stored.get(id));
            let erased = user.is_some_and(|user| matches!(user.stored, Stored::Tombstone { .. }));
            let write =
                NewEvent { event, outcome: effect.outcome(), reason: effect.reason().map(str::to_owned), erased };
            writes.entry(write.event.id.clone()).or_insert((at, write));
        }
        if writes.is_empty() {
            return Ok(());
        }
        let firsts: BTreeSet<usize> = writes.values().map(|(at, _)| *at).collect();
        let writes: Vec<NewEvent<'_>> = writes.into_values().map(|(_, write)| write).collect();
        let new = match self.inbox {
            Inbox::Record(origin) => events::record(connection, origin, &writes).await?,
            Inbox::Retry => events::record_retry(connection, &writes).await?,
        };
        for (at, (observation, applied)) in observations.iter().zip(applied).enumerate() {
            if let Observation::Event(event) = observation {
                applied.is_duplicate = !(firsts.contains(&at) && new.contains(&event.id));
            }
        }
        Ok(())
    }
}

/// The observation would replace a version of the same `updated_at`.
fn is_between_equals(observation: &Observation, users: &Users) -> bool {
    let seen = match observation {
        Observation::Event(Event { content: Content::Live { version, .. }, .. }) => version,
        Observation::Snapshot(snapshot) => &snapshot.version,
        _ => return false,
    };
    let user = observation.user_id().and_then(|id| users.get(id));
    let Some(Locked { stored: Stored::Live { version, .. }, .. }) = user else { return false };
    seen.updated_at == version.updated_at && seen > version
}

/// The row's version is from before the scan, which listed the user and did not confirm it: the row is written, so that the
/// time of its version excludes it from what the scan confirms.
fn is_of_before(scan: &ScanStart, user: Option<&Locked>) -> bool {
    let Some(Locked { stored: Stored::Live { version, .. }, .. }) = user else { return false };
    version.observed_at < scan.started_at
}

/// Stores the sign-ins that sessions tell of, of users who are not deleted. Every live row shows the latest stored sign-in,
/// whoever writes the row and whichever arrived first: a row that does not is among the written ones.
async fn keep_sign_ins<'a>(
    connection: &mut PgConnection,
    observations: &'a [Observation],
    stored: &mut Users,
    written: &mut BTreeSet<&'a str>,
) -> Result<(), StoreError> {
    let mut seen = Vec::new();
    for (id, at) in observations.iter().filter_map(sign_in) {
        let Some(user) = stored.get_mut(id) else { continue };
        if !matches!(user.stored, Stored::Tombstone { .. }) {
            user.signed_in_at = user.signed_in_at.max(Some(at));
            seen.push((id, at));
        }
    }
    for id in observations.iter().filter_map(Observation::user_id) {
        let Some(Locked { stored: Stored::Live { user, .. }, signed_in_at, .. }) = stored.get_mut(id) else { continue };
        if user.last_sign_in_at < *signed_in_at {
            user.last_sign_in_at = *signed_in_at;
            written.insert(id);
        }
    }
    if seen.is_empty() { Ok(()) } else { sign_ins::record(connection, &seen).await }
}

/// Writes the users that changed, as they now stand.
async fn write(
    connection: &mut PgConnection,
    stored: &Users,
    changed: &BTreeSet<&str>,
    restamp: bool,
) -> Result<(), StoreError> {
    let (mut live, mut deleted) = (Vec::new(), Vec::new());
    for id in changed {
        match stored.get(*id).map(|user| &user.stored) {
            Some(Stored::Live { user, version }) => live.push((&**user, version)),
            Some(Stored::Tombstone { deleted_at }) => deleted.push((*id, *deleted_at)),
            Some(Stored::Absent) | None => {}
        }
    }
    if !live.is_empty() {
        users::write_live(connection, &live, restamp).await?;
    }
    if !deleted.is_empty() {
        users::write_tombstones(connection, &deleted).await?;
    }
    Ok(())
}
