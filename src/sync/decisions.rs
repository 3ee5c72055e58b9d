//! Decides a batch in memory: what each observation does, and what must be written for it.

use std::collections::BTreeSet;

use super::Applied;
use super::records::sign_in;
use super::rows::BatchRows;
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::{Content, Event, Observation};
use crate::domain::object::{Kind, Object};
use crate::domain::role::Refresh;
use crate::domain::timestamp::Timestamp;
use crate::store::batch::{DecidedFrom, LiveUser};
use crate::store::rows::{Found, LiveRow, TombstoneRow};
use crate::store::scans::ScanStart;

/// What a batch does.
pub(super) struct Decisions<'a> {
    /// For each observation, in order. `is_duplicate` is not known yet.
    pub(super) applied: Vec<Applied>,
    /// Objects to write.
    written: BTreeSet<(Kind, &'a str)>,
    /// Users whose data the batch erases.
    pub(super) erased: Vec<String>,
    /// Sign-ins to store.
    pub(super) sign_ins: Vec<(&'a str, Timestamp)>,
    /// Sessions to revoke, with their users.
    pub(super) revoked: Vec<(&'a str, Option<&'a str>)>,
    /// What must be read from WorkOS.
    pub(super) refreshes: BTreeSet<&'a Refresh>,
    /// The organizations of new memberships. One that is not stored must be read from WorkOS, because its event may be late or
    /// lost.
    pub(super) organizations: BTreeSet<&'a str>,
}

/// Decides the observations in order and changes `rows` accordingly. With `refused`, it quarantines all of them for that
/// reason instead.
pub(super) fn decide_all<'a>(
    observations: &'a [Observation],
    rows: &mut BatchRows,
    scan: Option<&ScanStart>,
    refused: Option<&str>,
) -> Decisions<'a> {
    let mut decisions = Decisions {
        applied: Vec::with_capacity(observations.len()),
        written: BTreeSet::new(),
        erased: Vec::new(),
        sign_ins: Vec::new(),
        revoked: Vec::new(),
        refreshes: BTreeSet::new(),
        organizations: BTreeSet::new(),
    };
    for observation in observations {
        let object = observation.object();
        let is_user_deleted = rows.is_deleted_user(observation.user_id());
        let effect = match refused {
            Some(reason) => Effect::Quarantined(reason.to_owned().into()),
            None => {
                let stored = object.and_then(|object| rows.get_mut(object)).map(|row| &mut row.stored);
                decide(stored, is_user_deleted, observation)
            }
        };
        if let Some((kind, id)) = object {
            if effect.is_written() || scan.is_some_and(|scan| is_of_before(scan, rows.get((kind, id)))) {
                decisions.written.insert((kind, id));
            }
            if kind == Kind::User && effect == Effect::Deleted {
                decisions.erased.push(id.to_owned());
            }
            if effect == Effect::Created {
                decisions.organizations.extend(observation.organization_id());
            }
        }
        let is_user_deleted = rows.is_deleted_user(observation.user_id());
        decisions.applied.push(Applied { effect, is_duplicate: false, is_user_deleted });
    }
    if refused.is_none() {
        decisions.add_notes(observations, rows);
        decisions.add_sign_ins(observations, rows);
    }
    decisions
}

impl<'a> Decisions<'a> {
    /// Adds the reads and revoked sessions that events request without describing an object. The sessions of a deleted user need no
    /// row.
    fn add_notes(&mut self, observations: &'a [Observation], rows: &BatchRows) {
        for observation in observations {
            let Observation::Event(Event { content, user_id, .. }) = observation else { continue };
            match content {
                Content::SessionRevoked(id) if !rows.is_deleted_user(user_id.as_deref()) => {
                    self.revoked.push((id, user_id.as_deref()));
                }
                Content::Changed(refresh) => {
                    self.refreshes.insert(refresh);
                }
                _ => {}
            }
        }
    }

    /// Adds the sign-ins from session events, except those of deleted users. Every live row shows the latest stored sign-in, in
    /// any order of arrival: a row that shows an earlier one is written.
    fn add_sign_ins(&mut self, observations: &'a [Observation], rows: &mut BatchRows) {
        for (id, at) in observations.iter().filter_map(sign_in) {
            let Some(user) = rows.get_mut((Kind::User, id)) else { continue };
            if !user.stored.is_tombstone() {
                user.signed_in_at = user.signed_in_at.max(Some(at));
                self.sign_ins.push((id, at));
            }
        }
        for id in observations.iter().filter_map(Observation::user_id) {
            let Some(Found { stored: Stored::Live { object, .. }, signed_in_at, .. }) = rows.get_mut((Kind::User, id))
            else {
                continue;
            };
            if object.last_sign_in_at() < *signed_in_at {
                object.set_last_sign_in_at(*signed_in_at);
                self.written.insert((Kind::User, id));
            }
        }
    }

    /// Returns the live users to write, in ID order.
    pub(super) fn live_users<'r>(&self, rows: &'r BatchRows) -> Vec<LiveUser<'r>> {
        let live = self.live(Kind::User, rows).into_iter().filter_map(|row| match row.object {
            Object::User(user) => Some(LiveUser { user, version: row.version, is_new: row.is_new }),
            _ => None,
        });
        live.collect()
    }

    /// Returns the live objects of a kind to write, in ID order.
    pub(super) fn live<'r>(&self, kind: Kind, rows: &'r BatchRows) -> Vec<LiveRow<'r>> {
        let live = self.written_of(kind).filter_map(|id| match rows.get((kind, id))? {
            Found { stored: Stored::Live { object, version }, revision, .. } => {
                Some(LiveRow { object, version, is_new: revision.is_none() })
            }
            _ => None,
        });
        live.collect()
    }

    /// Returns the tombstones of a kind to write, in ID order.
    pub(super) fn tombstones<'r>(&self, kind: Kind, rows: &'r BatchRows) -> Vec<TombstoneRow<'r>>
    where
        'a: 'r,
    {
        let tombstones = self.written_of(kind).filter_map(|id| match &rows.get((kind, id))?.stored {
            Stored::Tombstone { deleted_at, of } => Some(TombstoneRow { id, deleted_at: *deleted_at, of: of.as_ref() }),
            _ => None,
        });
        tombstones.collect()
    }

    fn written_of(&self, kind: Kind) -> impl Iterator<Item = &'a str> {
        self.written.iter().filter(move |(written, _)| *written == kind).map(|(_, id)| *id)
    }
}

/// Returns whether the object needs a row to lock, because it is absent and stays absent or becomes a tombstone. Without a locked
/// row, another transaction could delete the user at the same time, and would not erase the payloads of this batch.
pub(super) fn needs_placeholder(row: &Found) -> bool {
    row.revision.is_none() && !matches!(row.stored, Stored::Live { .. })
}

/// Returns the state that a write without locks was decided from: each user of the batch as it was read.
pub(super) fn decided_from<'a>(rows: &BatchRows, client_id: &'a str) -> DecidedFrom<'a> {
    let users = rows.of(Kind::User);
    DecidedFrom {
        client_id,
        ids: users.keys().cloned().collect(),
        revisions: users.values().map(|user| user.revision.clone()).collect(),
    }
}

/// Returns whether the observation would replace a version with the same `updated_at`.
pub(super) fn is_between_equals(observation: &Observation, rows: &BatchRows) -> bool {
    let seen = match observation {
        Observation::Event(Event { content: Content::Live { version, .. }, .. }) => version,
        Observation::Snapshot(snapshot) => &snapshot.version,
        _ => return false,
    };
    let row = observation.object().and_then(|object| rows.get(object));
    let Some(Found { stored: Stored::Live { version, .. }, .. }) = row else { return false };
    seen.updated_at == version.updated_at && seen > version
}

/// Returns whether the row's version was observed before the scan. The scan listed the object and did not confirm its row. So the
/// row is written, and the time of its version excludes it from the rows that the scan confirms.
fn is_of_before(scan: &ScanStart, row: Option<&Found>) -> bool {
    let Some(Found { stored: Stored::Live { version, .. }, .. }) = row else { return false };
    version.observed_at < scan.started_at
}
