//! Decides a batch in memory: what each observation does, and what has to be written for it.

use std::collections::{BTreeMap, BTreeSet};

use super::Applied;
use super::records::sign_in;
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::{Content, Event, Observation, Outcome};
use crate::domain::timestamp::Timestamp;
use crate::store::batch::{DecidedFrom, LiveUser};
use crate::store::scans::ScanStart;
use crate::store::users::FoundUser;

/// The users that a batch names, as the database holds them, and after [`decide_all`] as it will hold them.
pub(super) type Users = BTreeMap<String, FoundUser>;

/// What a batch does.
pub(super) struct Decisions<'a> {
    /// For each observation, in order. `is_duplicate` is not known yet.
    pub(super) applied: Vec<Applied>,
    /// Users to write.
    written: BTreeSet<&'a str>,
    /// Users whose data the batch erases.
    pub(super) erased: Vec<String>,
    /// Sign-ins to store.
    pub(super) sign_ins: Vec<(&'a str, Timestamp)>,
}

/// The IDs of the users that the observations name, in order, each once.
pub(super) fn named(observations: &[Observation]) -> Vec<String> {
    let named: BTreeSet<&str> = observations.iter().filter_map(Observation::user_id).collect();
    named.into_iter().map(str::to_owned).collect()
}

/// Decides the observations in order and changes `users` accordingly. With `refused`, it quarantines all of them for that
/// reason instead.
pub(super) fn decide_all<'a>(
    observations: &'a [Observation],
    users: &mut Users,
    scan: Option<&ScanStart>,
    refused: Option<&str>,
) -> Decisions<'a> {
    let mut decisions = Decisions {
        applied: Vec::with_capacity(observations.len()),
        written: BTreeSet::new(),
        erased: Vec::new(),
        sign_ins: Vec::new(),
    };
    for observation in observations {
        let id = observation.user_id();
        let effect = match refused {
            Some(reason) => Effect::Quarantined(reason.to_owned().into()),
            None => decide(id.and_then(|id| users.get_mut(id)).map(|user| &mut user.stored), observation),
        };
        let user = id.and_then(|id| users.get(id));
        if let Some(id) = id {
            if effect.outcome() == Outcome::Applied || scan.is_some_and(|scan| is_of_before(scan, user)) {
                decisions.written.insert(id);
            }
            if effect == Effect::Deleted {
                decisions.erased.push(id.to_owned());
            }
        }
        let is_user_deleted = user.is_some_and(|user| matches!(user.stored, Stored::Tombstone { .. }));
        decisions.applied.push(Applied { effect, is_duplicate: false, is_user_deleted });
    }
    if refused.is_none() {
        decisions.add_sign_ins(observations, users);
    }
    decisions
}

impl<'a> Decisions<'a> {
    /// Adds the sign-ins from session events, except those of deleted users. Every live row shows the latest stored sign-in, in
    /// any order of arrival: a row that shows an earlier one is written.
    fn add_sign_ins(&mut self, observations: &'a [Observation], users: &mut Users) {
        for (id, at) in observations.iter().filter_map(sign_in) {
            let Some(user) = users.get_mut(id) else { continue };
            if !matches!(user.stored, Stored::Tombstone { .. }) {
                user.signed_in_at = user.signed_in_at.max(Some(at));
                self.sign_ins.push((id, at));
            }
        }
        for id in observations.iter().filter_map(Observation::user_id) {
            let Some(FoundUser { stored: Stored::Live { user, .. }, signed_in_at, .. }) = users.get_mut(id) else {
                continue;
            };
            if user.last_sign_in_at < *signed_in_at {
                user.last_sign_in_at = *signed_in_at;
                self.written.insert(id);
            }
        }
    }

    /// The live users to write, in ID order.
    pub(super) fn live<'u>(&self, users: &'u Users) -> Vec<LiveUser<'u>> {
        let live = self.written.iter().filter_map(|id| match users.get(*id)? {
            FoundUser { stored: Stored::Live { user, version }, revision, .. } => {
                Some(LiveUser { user, version, is_new: revision.is_none() })
            }
            _ => None,
        });
        live.collect()
    }

    /// The tombstones to write, in ID order.
    pub(super) fn tombstones(&self, users: &Users) -> Vec<(&'a str, Option<Timestamp>)> {
        let tombstones = self.written.iter().filter_map(|id| match users.get(*id)?.stored {
            Stored::Tombstone { deleted_at } => Some((*id, deleted_at)),
            _ => None,
        });
        tombstones.collect()
    }

    /// Returns the users that need a transaction, because [`batch::write`](crate::store::batch::write) alone is not enough for them.
    pub(super) fn need_transaction(&self, users: &Users) -> BTreeSet<String> {
        let tombstones = self.tombstones(users).into_iter().map(|(id, _)| id);
        let sign_ins = self.sign_ins.iter().map(|(id, _)| *id);
        let absent = users.iter().filter(|(_, user)| needs_placeholder(user)).map(|(id, _)| &**id);
        tombstones.chain(sign_ins).chain(absent).map(str::to_owned).collect()
    }
}

/// The user is absent and stays so, or becomes a tombstone. Without a row nothing keeps another transaction from deleting the user,
/// and that deletion would miss the payloads of this batch.
pub(super) fn needs_placeholder(user: &FoundUser) -> bool {
    user.revision.is_none() && !matches!(user.stored, Stored::Live { .. })
}

/// What a write without locks was decided from: each user of the batch as it was found.
pub(super) fn decided_from<'a>(users: &Users, client_id: &'a str) -> DecidedFrom<'a> {
    DecidedFrom {
        client_id,
        ids: users.keys().cloned().collect(),
        revisions: users.values().map(|user| user.revision.clone()).collect(),
    }
}

/// The observation would replace a version of the same `updated_at`.
pub(super) fn is_between_equals(observation: &Observation, users: &Users) -> bool {
    let seen = match observation {
        Observation::Event(Event { content: Content::Live { version, .. }, .. }) => version,
        Observation::Snapshot(snapshot) => &snapshot.version,
        _ => return false,
    };
    let user = observation.user_id().and_then(|id| users.get(id));
    let Some(FoundUser { stored: Stored::Live { version, .. }, .. }) = user else { return false };
    seen.updated_at == version.updated_at && seen > version
}

/// The row's version is from before the scan, which listed the user and did not confirm it: the row is written, so that the
/// time of its version excludes it from what the scan confirms.
fn is_of_before(scan: &ScanStart, user: Option<&FoundUser>) -> bool {
    let Some(FoundUser { stored: Stored::Live { version, .. }, .. }) = user else { return false };
    version.observed_at < scan.started_at
}
