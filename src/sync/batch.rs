//! A batch of observations, and the two ways to apply it: one statement without locks, or a transaction.
//!
//! Both read the objects that the batch names, [decide](super::decisions) in memory, and write with [`batch::write`]. The one
//! statement checks that nothing has changed since the batch was decided. The transaction locks the rows first, and it can do
//! more: erase, quarantine one observation of many, move a job's position.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::decisions::{self, Decisions, decide_all, is_between_equals, needs_placeholder};
use super::records::{Inbox, ended_changes, inbox_event, new_changes};
use super::rows::{BatchRows, Named};
use super::{Applied, FollowUp};
use crate::domain::decide::Stored;
use crate::domain::event::{Observation, Origin};
use crate::domain::object::{Kind, ObjectKey};
use crate::store::DbConnection;
use crate::store::batch::{self, DecidedFrom, NewEvent, Writes};
use crate::store::memberships::{self, Ended};
use crate::store::objects;
use crate::store::rows::Found;
use crate::store::scans::ScanStart;
use crate::store::{StoreError, Work, erasure, events, refreshes, scans, sessions, sign_ins};

/// Observations that one transaction applies, and how.
pub(super) struct Batch<'a, T> {
    pub(super) inbox: Inbox,
    pub(super) observations: &'a [Observation],
    /// The results of earlier parts, if the batch was split.
    before: &'a [Applied],
    /// Whether this is the last part. Its transaction runs `then`.
    pub(super) is_last: bool,
    /// Whether each observation has its own savepoint. This is slow. It is used only to find the observation that PostgreSQL
    /// rejects.
    one_by_one: bool,
    /// Maximum number of rows of each table that this transaction erases; see [`erasure::erase`].
    pub(super) erase_limit: i64,
    /// The scan, if these snapshots are a page of a scan.
    scan: Option<&'a ScanStart>,
    /// The follow-up, which runs in the same transaction.
    then: Option<&'a T>,
    /// Whether the batch skips the attempt in one statement.
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

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let batch = &self.batch;
        let mut rows = batch.lock(connection).await?;
        let placeholders = rows.insert_placeholders(connection).await?;
        let applied = batch.apply(connection, batch.observations, &mut rows, Some(self.reason)).await?;
        batch.finish(connection, &rows, &placeholders, applied).await.map(drop)
    }
}

impl<T: FollowUp> Work for Batch<'_, T> {
    type Output = Vec<Applied>;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Vec<Applied>, StoreError> {
        let mut rows = self.lock(connection).await?;
        let mut placeholders = Vec::new();
        let applied = if self.one_by_one {
            placeholders = rows.insert_placeholders(connection).await?;
            let mut applied = Vec::with_capacity(self.observations.len());
            for observation in self.observations {
                applied.push(self.apply_one(connection, observation, &mut rows).await?);
            }
            applied
        } else {
            let decisions = decide_all(self.observations, &mut rows, self.scan, None);
            // New users are inserted directly. Every other absent object needs a row to lock and to write.
            if rows
                .iter()
                .any(|(kind, _, row)| needs_placeholder(row) || (kind != Kind::User && row.revision.is_none()))
            {
                placeholders = rows.insert_placeholders(connection).await?;
            }
            self.write(connection, self.observations, &mut rows, decisions).await?
        };
        self.finish(connection, &rows, &placeholders, applied).await
    }
}

/// The result of an attempt to apply a batch in one statement.
pub(super) enum Attempt {
    /// The batch is committed.
    Done(Vec<Applied>),
    /// The batch needs a transaction, because of these objects. Empty: for another reason.
    NeedsTransaction(BTreeSet<ObjectKey>),
}

/// A batch in one statement, which is durable without a transaction around it.
pub(super) struct OneStatement<'a, T> {
    pub(super) batch: Batch<'a, T>,
    pub(super) client_id: &'a str,
}

impl<T: FollowUp> Work for OneStatement<'_, T> {
    type Output = Attempt;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Attempt, StoreError> {
        let (batch, observations) = (&self.batch, self.batch.observations);
        let mut rows = BatchRows::find(connection, &Named::by(observations)).await?;
        let equals = observations.iter().filter(|observation| is_between_equals(observation, &rows));
        let mut apart: BTreeSet<ObjectKey> =
            equals.filter_map(Observation::object).map(|(kind, id)| ObjectKey::new(kind, id)).collect();
        let decided_from = decisions::decided_from(&rows, self.client_id);
        let decisions = decide_all(observations, &mut rows, batch.scan, None);
        let absent = rows.iter().filter(|(_, _, row)| needs_placeholder(row));
        apart.extend(absent.map(|(kind, id, _)| ObjectKey::new(kind, id)));
        if !apart.is_empty() {
            return Ok(Attempt::NeedsTransaction(apart));
        }
        batch.write_with(connection, observations, &rows, decisions, decided_from, &[]).await.map(Attempt::Done)
    }
}

impl<'a, T: FollowUp> Batch<'a, T> {
    /// Creates a whole batch. Its transaction runs `then`.
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

    /// Returns the batch so that it skips the attempt in one statement.
    pub(super) fn in_transaction(self) -> Self {
        Self { in_transaction: true, ..self }
    }

    /// Returns the next part of at most `length` observations. `before` contains the results of the earlier parts.
    pub(super) fn part<'b>(&self, before: &'b [Applied], length: usize) -> Batch<'b, T>
    where
        'a: 'b,
    {
        let rest = self.observations.get(before.len()..).unwrap_or_default();
        let observations = rest.get(..length).unwrap_or(rest);
        Batch { observations, before, is_last: observations.len() == rest.len(), ..*self }
    }

    /// Returns the batch as a page of this scan.
    pub(super) fn of_scan(self, scan: &'a ScanStart) -> Self {
        Self { scan: Some(scan), ..self }
    }

    /// Returns the batch with a savepoint for each observation.
    pub(super) fn one_by_one(&self) -> Self {
        Self { one_by_one: true, ..*self }
    }

    /// Returns whether one statement may be enough.
    pub(super) fn may_be_one_statement(&self) -> bool {
        !self.in_transaction
            && self.then.is_none()
            && matches!(self.inbox, Inbox::Record(_))
            && !self.observations.iter().any(Observation::needs_transaction)
    }

    /// Locks and reads every object that the batch names.
    async fn lock(&self, connection: &mut DbConnection<'_>) -> Result<BatchRows, StoreError> {
        let mut rows = BatchRows::lock(connection, &Named::by(self.observations)).await?;
        // Two observations have the same `updated_at`, which is rare. A scan may have confirmed the row at a later time than its
        // version.
        if self.observations.iter().any(|observation| is_between_equals(observation, &rows))
            && let Some(confirmation) = scans::confirmation(connection).await?
        {
            for user in rows.values_mut_of(Kind::User) {
                let Found { stored: Stored::Live { version, .. }, version_at, .. } = user else { continue };
                if version_at.is_none_or(|at| at < confirmation.before) {
                    version.confirm(confirmation.at);
                }
            }
        }
        Ok(rows)
    }

    /// Deletes the placeholders of objects that are still absent, and runs the follow-up of the batch.
    async fn finish(
        &self,
        connection: &mut DbConnection<'_>,
        rows: &BatchRows,
        placeholders: &[ObjectKey],
        applied: Vec<Applied>,
    ) -> Result<Vec<Applied>, StoreError> {
        rows.delete_unused(connection, placeholders).await?;
        if let Some(then) = self.then.filter(|_| self.is_last) {
            then.after(connection, &[self.before, &applied].concat()).await?;
        }
        Ok(applied)
    }

    async fn apply_one(
        &self,
        connection: &mut DbConnection<'_>,
        observation: &Observation,
        rows: &mut BatchRows,
    ) -> Result<Applied, StoreError> {
        let alone = std::slice::from_ref(observation);
        let before = rows.clone();
        let mut savepoint = connection.savepoint().await?;
        let applied = match self.apply(&mut savepoint.connection(), alone, rows, None).await {
            Ok(applied) => {
                savepoint.commit().await?;
                applied
            }
            Err(StoreError::Refused { sqlstate }) => {
                savepoint.rollback().await?;
                *rows = before;
                let reason = format!("PostgreSQL refuses the data: SQLSTATE {sqlstate}");
                self.apply(connection, alone, rows, Some(&reason)).await?
            }
            Err(error) => return Err(error),
        };
        applied.into_iter().next().ok_or(StoreError::Unavailable("an observation was lost".into()))
    }

    /// Decides and writes. With `refused`, it quarantines the observations for that reason instead.
    async fn apply(
        &self,
        connection: &mut DbConnection<'_>,
        observations: &[Observation],
        rows: &mut BatchRows,
        refused: Option<&str>,
    ) -> Result<Vec<Applied>, StoreError> {
        let decisions = decide_all(observations, rows, self.scan, refused);
        self.write(connection, observations, rows, decisions).await
    }

    /// Writes what was decided from locked rows. Afterwards `rows` contains the memberships that ended with their users as
    /// tombstones.
    async fn write(
        &self,
        connection: &mut DbConnection<'_>,
        observations: &[Observation],
        rows: &mut BatchRows,
        mut decisions: Decisions<'_>,
    ) -> Result<Vec<Applied>, StoreError> {
        if !decisions.sign_ins.is_empty() {
            sign_ins::record(connection, &decisions.sign_ins).await?;
        }
        if !decisions.revoked.is_empty() {
            sessions::revoke(connection, &decisions.revoked).await?;
        }
        if !decisions.refreshes.is_empty() {
            refreshes::request(connection, &decisions.refreshes).await?;
        }
        for kind in Kind::ALL {
            let tombstones = decisions.tombstones(kind, rows);
            if !tombstones.is_empty() {
                objects::write_tombstones(connection, kind, &tombstones).await?;
            }
            let live = decisions.live(kind, rows);
            if !live.is_empty() {
                objects::write(connection, kind, &live).await?;
            }
        }
        if !decisions.organizations.is_empty() {
            refreshes::request_absent_organizations(connection, &decisions.organizations).await?;
        }
        let erased = std::mem::take(&mut decisions.erased);
        let ended = if erased.is_empty() {
            Vec::new()
        } else {
            memberships::end_of_users(connection, &erased, self.erase_limit).await?
        };
        let decided_from = DecidedFrom::default();
        let applied = self.write_with(connection, observations, rows, decisions, decided_from, &ended).await?;
        if !erased.is_empty() {
            erasure::erase(connection, &erased, ended.len(), self.erase_limit).await?;
        }
        rows.end(&ended);
        Ok(applied)
    }

    /// Writes live users, events and changes, after the check of client ID and revisions. `ended`: memberships that the deletion of
    /// their user has ended.
    async fn write_with(
        &self,
        connection: &mut DbConnection<'_>,
        observations: &[Observation],
        rows: &BatchRows,
        decisions: Decisions<'_>,
        decided_from: DecidedFrom<'_>,
        ended: &[Ended],
    ) -> Result<Vec<Applied>, StoreError> {
        let users = decisions.live_users(rows);
        let mut applied = decisions.applied;
        let (events, firsts) = self.inbox_events(observations, &applied, rows);
        let (origin, events, retried) = match self.inbox {
            Inbox::Record(origin) => (origin, events, None),
            Inbox::Retry => {
                let retried = events::record_retry(connection, &events).await?;
                (Origin::CatchUp, Vec::new(), Some(retried))
            }
        };
        mark_duplicates(observations, &mut applied, &firsts, retried.as_ref());
        let mut changes = new_changes(self.inbox, observations, &applied);
        changes.extend(ended_changes(ended, origin));
        let writes = Writes { decided_from, users, restamp: self.scan.is_some(), origin, events, changes };
        let new = if writes.is_empty() { HashSet::new() } else { batch::write(connection, &writes).await? };
        drop(writes);
        if retried.is_none() {
            mark_duplicates(observations, &mut applied, &firsts, Some(&new));
        }
        Ok(applied)
    }

    /// Returns the events for the inbox, in ID order, and the positions of their observations. If an event ID occurs twice, the
    /// first one counts. An event whose user is deleted has no payload. The order prevents deadlocks between batches with the same
    /// events.
    fn inbox_events<'o>(
        &self,
        observations: &'o [Observation],
        applied: &[Applied],
        rows: &BatchRows,
    ) -> (Vec<NewEvent<'o>>, BTreeSet<usize>) {
        let mut events = BTreeMap::new();
        for (at, (observation, Applied { effect, .. })) in observations.iter().zip(applied).enumerate() {
            let Some(event) = inbox_event(observation, effect, self.inbox) else { continue };
            let erased = rows.is_deleted_user(event.user_id.as_deref());
            let new = NewEvent { event, outcome: effect.outcome(), reason: effect.reason().map(str::to_owned), erased };
            events.entry(new.event.id.clone()).or_insert((at, new));
        }
        let firsts = events.values().map(|(at, _)| *at).collect();
        (events.into_values().map(|(_, new)| new).collect(), firsts)
    }
}

/// Marks the duplicate events: those that are not the first of their ID in the batch, and, if `new` is known, those that are not in
/// it.
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
