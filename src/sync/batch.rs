//! A batch of observations, and the two ways to apply it: one statement without locks, or a transaction.
//!
//! Both read the users that the batch names, [decide](super::decisions) in memory, and write with [`batch::write`]. The one
//! statement checks that nothing has changed since the batch was decided. The transaction locks the rows first, and it can do
//! more: erase, quarantine one observation of many, move a job's position.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::decisions::{self, Decisions, Users, decide_all, is_between_equals, needs_placeholder};
use super::records::{Inbox, inbox_event, new_changes};
use super::{Applied, FollowUp};
use crate::domain::decide::Stored;
use crate::domain::event::{Observation, Origin};
use crate::store::batch::{self, DecidedFrom, NewEvent, Writes};
use crate::store::scans::ScanStart;
use crate::store::users::FoundUser;
use crate::store::{StoreError, Work, erasure, events, scans, sign_ins, users};

/// Observations that one transaction applies, and how.
pub(super) struct Batch<'a, T> {
    pub(super) inbox: Inbox,
    pub(super) observations: &'a [Observation],
    /// The outcomes of earlier parts, where a batch had to be split.
    before: &'a [Applied],
    /// No part follows: `then` is done in this transaction.
    pub(super) is_last: bool,
    /// Each observation has its own savepoint. That is slow, and only serves to find the observation that PostgreSQL rejects.
    one_by_one: bool,
    /// Rows of each table that deletions erase in this transaction at most; see [`erasure::erase`].
    pub(super) erase_limit: i64,
    /// The scan, if these snapshots are a page of one.
    scan: Option<&'a ScanStart>,
    /// What else the transaction does.
    then: Option<&'a T>,
    /// One statement is known not to be enough.
    in_transaction: bool,
}

impl<T> Clone for Batch<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Batch<'_, T> {}

/// A batch whose observations are quarantined without an attempt.
pub(super) struct QuarantineBatch<'a, T> {
    pub(super) batch: Batch<'a, T>,
    pub(super) reason: &'a str,
}

impl<T: FollowUp> Work for QuarantineBatch<'_, T> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let batch = &self.batch;
        let mut users = batch.lock(connection).await?;
        let placeholders = insert_placeholders(connection, &mut users).await?;
        let applied = batch.apply(connection, batch.observations, &mut users, Some(self.reason)).await?;
        batch.finish(connection, &users, &placeholders, applied).await.map(drop)
    }
}

impl<T: FollowUp> Work for Batch<'_, T> {
    type Output = Vec<Applied>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<Applied>, StoreError> {
        let mut users = self.lock(connection).await?;
        let mut placeholders = Vec::new();
        let applied = if self.one_by_one {
            placeholders = insert_placeholders(connection, &mut users).await?;
            let mut applied = Vec::with_capacity(self.observations.len());
            for observation in self.observations {
                applied.push(self.apply_one(connection, observation, &mut users).await?);
            }
            applied
        } else {
            let decisions = decide_all(self.observations, &mut users, self.scan, None);
            if users.values().any(needs_placeholder) {
                placeholders = insert_placeholders(connection, &mut users).await?;
            }
            self.write(connection, self.observations, &users, decisions).await?
        };
        self.finish(connection, &users, &placeholders, applied).await
    }
}

/// What became of a batch that was attempted in one statement.
pub(super) enum Attempt {
    /// It is committed.
    Done(Vec<Applied>),
    /// It needs a transaction, because of these users. None of them: because of something else.
    NeedsTransaction(BTreeSet<String>),
}

/// A batch in one statement, which is durable without a transaction around it.
pub(super) struct OneStatement<'a, T> {
    pub(super) batch: Batch<'a, T>,
    pub(super) client_id: &'a str,
}

impl<T: FollowUp> Work for OneStatement<'_, T> {
    type Output = Attempt;

    async fn run(&self, connection: &mut PgConnection) -> Result<Attempt, StoreError> {
        let (batch, observations) = (&self.batch, self.batch.observations);
        let named = decisions::named(observations);
        let mut users = if named.is_empty() { Users::new() } else { users::find(connection, &named).await? };
        let equals = observations.iter().filter(|observation| is_between_equals(observation, &users));
        let mut apart: BTreeSet<String> = equals.filter_map(Observation::user_id).map(str::to_owned).collect();
        let decided_from = decisions::decided_from(&users, self.client_id);
        let decisions = decide_all(observations, &mut users, batch.scan, None);
        apart.append(&mut decisions.need_transaction(&users));
        if !apart.is_empty() {
            return Ok(Attempt::NeedsTransaction(apart));
        }
        batch.write_with(connection, observations, &users, decisions, decided_from).await.map(Attempt::Done)
    }
}

impl<'a, T: FollowUp> Batch<'a, T> {
    /// A whole batch; `then` is done in its transaction.
    pub(super) fn new(inbox: Inbox, observations: &'a [Observation], then: Option<&'a T>) -> Self {
        Self {
            inbox,
            observations,
            before: &[],
            is_last: true,
            one_by_one: false,
            erase_limit: erasure::BATCH,
            scan: None,
            then,
            in_transaction: false,
        }
    }

    /// The same, in a transaction from the first attempt on.
    pub(super) fn in_transaction(self) -> Self {
        Self { in_transaction: true, ..self }
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

    /// The same, each observation with its own savepoint.
    pub(super) fn one_by_one(&self) -> Self {
        Self { one_by_one: true, ..*self }
    }

    /// One statement can be enough.
    pub(super) fn may_be_one_statement(&self) -> bool {
        !self.in_transaction && self.then.is_none() && matches!(self.inbox, Inbox::Record(_))
    }

    /// Locks and reads every user the batch names.
    async fn lock(&self, connection: &mut PgConnection) -> Result<Users, StoreError> {
        let named = decisions::named(self.observations);
        if named.is_empty() {
            return Ok(Users::new());
        }
        let mut users = users::lock(connection, &named).await?;
        // Rarely: two observations of the same `updated_at`. The row may be confirmed as of later than its version says.
        if self.observations.iter().any(|observation| is_between_equals(observation, &users))
            && let Some(confirmation) = scans::confirmation(connection).await?
        {
            for user in users.values_mut() {
                let FoundUser { stored: Stored::Live { version, .. }, version_at, .. } = user else { continue };
                if version_at.is_none_or(|at| at < confirmation.before) {
                    version.confirm(confirmation.at);
                }
            }
        }
        Ok(users)
    }

    /// Deletes the placeholders of users who are still absent, and runs the follow-up of the batch.
    async fn finish(
        &self,
        connection: &mut PgConnection,
        users: &Users,
        placeholders: &[String],
        applied: Vec<Applied>,
    ) -> Result<Vec<Applied>, StoreError> {
        let is_unknown = |id: &&String| users.get(*id).is_some_and(|user| matches!(user.stored, Stored::Absent));
        let unknown: Vec<String> = placeholders.iter().filter(is_unknown).cloned().collect();
        if !unknown.is_empty() {
            users::delete_placeholders(connection, &unknown).await?;
        }
        if let Some(then) = self.then.filter(|_| self.is_last) {
            then.after(connection, &[self.before, &applied].concat()).await?;
        }
        Ok(applied)
    }

    async fn apply_one(
        &self,
        connection: &mut PgConnection,
        observation: &Observation,
        users: &mut Users,
    ) -> Result<Applied, StoreError> {
        let alone = std::slice::from_ref(observation);
        let before = users.clone();
        let mut savepoint = connection.begin().await?;
        let applied = match self.apply(&mut savepoint, alone, users, None).await {
            Ok(applied) => {
                savepoint.commit().await?;
                applied
            }
            Err(StoreError::Refused { sqlstate }) => {
                savepoint.rollback().await?;
                *users = before;
                let reason = format!("PostgreSQL refuses the data: SQLSTATE {sqlstate}");
                self.apply(connection, alone, users, Some(&reason)).await?
            }
            Err(error) => return Err(error),
        };
        applied.into_iter().next().ok_or(StoreError::Unavailable("an observation was lost".into()))
    }

    /// Decides and writes; `refused` quarantines the observations for that reason instead.
    async fn apply(
        &self,
        connection: &mut PgConnection,
        observations: &[Observation],
        users: &mut Users,
        refused: Option<&str>,
    ) -> Result<Vec<Applied>, StoreError> {
        let decisions = decide_all(observations, users, self.scan, refused);
        self.write(connection, observations, users, decisions).await
    }

    /// Writes what was decided from locked rows.
    async fn write(
        &self,
        connection: &mut PgConnection,
        observations: &[Observation],
        users: &Users,
        mut decisions: Decisions<'_>,
    ) -> Result<Vec<Applied>, StoreError> {
        if !decisions.sign_ins.is_empty() {
            sign_ins::record(connection, &decisions.sign_ins).await?;
        }
        let tombstones = decisions.tombstones(users);
        if !tombstones.is_empty() {
            users::write_tombstones(connection, &tombstones).await?;
        }
        let erased = std::mem::take(&mut decisions.erased);
        let applied = self.write_with(connection, observations, users, decisions, DecidedFrom::default()).await?;
        if !erased.is_empty() {
            erasure::erase(connection, &erased, self.erase_limit).await?;
        }
        Ok(applied)
    }

    /// Writes live users, events and changes, after the check of client ID and revisions.
    async fn write_with(
        &self,
        connection: &mut PgConnection,
        observations: &[Observation],
        users: &Users,
        decisions: Decisions<'_>,
        decided_from: DecidedFrom<'_>,
    ) -> Result<Vec<Applied>, StoreError> {
        let users_to_write = decisions.live(users);
        let mut applied = decisions.applied;
        let (events, firsts) = self.inbox_events(observations, &applied, users);
        let (origin, events, retried) = match self.inbox {
            Inbox::Record(origin) => (origin, events, None),
            Inbox::Retry => {
                let retried = events::record_retry(connection, &events).await?;
                (Origin::CatchUp, Vec::new(), Some(retried))
            }
        };
        mark_duplicates(observations, &mut applied, &firsts, retried.as_ref());
        let changes = new_changes(self.inbox, observations, &applied);
        let writes =
            Writes { decided_from, users: users_to_write, restamp: self.scan.is_some(), origin, events, changes };
        let new = if writes.is_empty() { HashSet::new() } else { batch::write(connection, &writes).await? };
        drop(writes);
        if retried.is_none() {
            mark_duplicates(observations, &mut applied, &firsts, Some(&new));
        }
        Ok(applied)
    }

    /// Returns the events for the inbox, in ID order, and the positions of their observations. If an event ID occurs twice, the first
    /// one counts. An event whose user is deleted has no payload. The order prevents deadlocks between batches with the same events.
    fn inbox_events<'o>(
        &self,
        observations: &'o [Observation],
        applied: &[Applied],
        users: &Users,
    ) -> (Vec<NewEvent<'o>>, BTreeSet<usize>) {
        let mut events = BTreeMap::new();
        for (at, (observation, Applied { effect, .. })) in observations.iter().zip(applied).enumerate() {
            let Some(event) = inbox_event(observation, effect, self.inbox) else { continue };
            let user = event.user_id.as_deref().and_then(|id| users.get(id));
            let erased = user.is_some_and(|user| matches!(user.stored, Stored::Tombstone { .. }));
            let new = NewEvent { event, outcome: effect.outcome(), reason: effect.reason().map(str::to_owned), erased };
            events.entry(new.event.id.clone()).or_insert((at, new));
        }
        let firsts = events.values().map(|(at, _)| *at).collect();
        (events.into_values().map(|(_, new)| new).collect(), firsts)
    }
}

/// Inserts a placeholder for each absent user, so that there is something to lock, and returns their IDs.
async fn insert_placeholders(connection: &mut PgConnection, users: &mut Users) -> Result<Vec<String>, StoreError> {
    let absent: Vec<String> =
        users.iter().filter(|(_, user)| user.revision.is_none()).map(|(id, _)| id.clone()).collect();
    if !absent.is_empty() {
        users::insert_placeholders(connection, &absent).await?;
        for user in users.values_mut() {
            user.revision.get_or_insert_default();
        }
    }
    Ok(absent)
}

/// Marks the events that the inbox already held: those that are not the first of their ID in the batch, and those that are not
/// among the `new` ones, once these are known.
fn mark_duplicates(
    observations: &[Observation],
    applied: &mut [Applied],
    firsts: &BTreeSet<usize>,
    new: Option<&HashSet<String>>,
) {
    for (at, (observation, applied)) in observations.iter().zip(applied).enumerate() {
        if let Observation::Event(event) = observation {
            applied.is_duplicate = !firsts.contains(&at) || new.is_some_and(|new| !new.contains(&event.id));
        }
    }
}
