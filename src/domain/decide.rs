//! Decides what an observation does to a stored object.
//!
//! The stored state is a join of the object's observations: a tombstone replaces a live row, a higher version replaces a lower
//! one, `last_sign_in_at` keeps its maximum, and the time of deletion its minimum. So the same observations end in the same
//! state in any order and with any duplicates (promise 3), and a deleted object stays deleted (promise 4).
//!
//! The deletion of a user ends the user's memberships: each of them becomes a tombstone, whether it was stored before or is
//! seen later.

use std::borrow::Cow;

use super::change::Difference;
use super::event::{Content, Deletion, Observation, Outcome};
use super::membership::Sides;
use super::object::Object;
use super::timestamp::Timestamp;
use super::user::LAST_SIGN_IN_AT;
use super::version::Version;

/// An object as its table holds it: of any kind, or of the kind `T`.
#[derive(Clone, Debug)]
pub enum Stored<T = Object> {
    /// The table has no row for the object.
    Absent,
    /// The object exists.
    Live {
        /// The row.
        object: Box<T>,
        /// The version of the observation that the row was written from.
        version: Version,
    },
    /// The object is deleted, permanently.
    Tombstone {
        /// The earliest time in any of its delete events.
        deleted_at: Option<Timestamp>,
        /// The user and the organization of a membership, if they are known.
        of: Option<Sides>,
    },
}

impl<T> Stored<T> {
    /// Returns whether the object is deleted.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        matches!(self, Self::Tombstone { .. })
    }

    /// Returns the live object.
    #[must_use]
    pub fn into_live(self) -> Option<T> {
        if let Self::Live { object, .. } = self { Some(*object) } else { None }
    }

    /// Returns `None` for [`Stored::Absent`], otherwise the live object or tombstone.
    #[must_use]
    pub fn present(self) -> Option<Self> {
        if let Self::Absent = self { None } else { Some(self) }
    }

    /// Converts the live object.
    #[must_use]
    pub fn map<U>(self, into: impl FnOnce(T) -> U) -> Stored<U> {
        match self {
            Self::Absent => Stored::Absent,
            Self::Live { object, version } => Stored::Live { object: Box::new(into(*object)), version },
            Self::Tombstone { deleted_at, of } => Stored::Tombstone { deleted_at, of },
        }
    }
}

impl Stored {
    /// Returns the user and the organization of a membership, if they are known.
    #[must_use]
    pub fn sides(&self) -> Option<&Sides> {
        match self {
            Self::Live { object, .. } => match &**object {
                Object::Membership(membership) => Some(&membership.of),
                _ => None,
            },
            Self::Tombstone { of, .. } => of.as_ref(),
            Self::Absent => None,
        }
    }
}

/// What an observation did to the stored object. The inbox's outcome, the change in the feed and the counters derive from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The object was not stored before.
    Created,
    /// A live object was stored before and differs now.
    Updated {
        /// The names of the fields that differ.
        fields: Vec<String>,
    },
    /// The object was live or not stored, and is deleted now.
    Deleted,
    /// The object was deleted before. Its tombstone has more information now: an earlier time of deletion, or the sides of a
    /// membership.
    DeletedEarlier,
    /// The row's content is the same; its version is higher now.
    Confirmed,
    /// The row was written from this observation or a later one.
    Stale,
    /// The object was deleted before, and stays deleted.
    AlreadyDeleted {
        /// Whether the tombstone must be written: it is new, because the user of this membership was deleted before the membership
        /// was seen, or it has more information now.
        is_written: bool,
    },
    /// The observation requests a read from WorkOS, or ends a session.
    Noted,
    /// The observation changes nothing.
    Ignored,
    /// The observation cannot be applied, for this reason. The reason contains nothing of the payload.
    Quarantined(Cow<'static, str>),
}

impl Effect {
    /// Returns the outcome that the inbox stores.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Created
            | Self::Updated { .. }
            | Self::Deleted
            | Self::DeletedEarlier
            | Self::Confirmed
            | Self::Noted => Outcome::Applied,
            Self::Stale | Self::AlreadyDeleted { .. } => Outcome::Stale,
            Self::Ignored => Outcome::Ignored,
            Self::Quarantined(_) => Outcome::Quarantined,
        }
    }

    /// Returns whether the object's row must be written.
    #[must_use]
    pub fn is_written(&self) -> bool {
        match self {
            Self::Created | Self::Updated { .. } | Self::Deleted | Self::DeletedEarlier | Self::Confirmed => true,
            Self::AlreadyDeleted { is_written } => *is_written,
            Self::Stale | Self::Noted | Self::Ignored | Self::Quarantined(_) => false,
        }
    }

    /// Returns why the observation was not applied.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Stale => Some("the row has this observation or a later one"),
            Self::AlreadyDeleted { .. } => Some("it is deleted, or its user is"),
            Self::Quarantined(reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns the change for the feed, or `None` if the object has not changed.
    #[must_use]
    pub fn difference(&self) -> Option<Difference> {
        match self {
            Self::Created => Some(Difference::Created),
            Self::Updated { .. } => Some(Difference::Updated),
            Self::Deleted => Some(Difference::Deleted),
            _ => None,
        }
    }

    /// Returns the names of the fields that an update changed. Empty for other effects.
    #[must_use]
    pub fn changed_fields(&self) -> &[String] {
        if let Self::Updated { fields } = self { fields } else { &[] }
    }
}

/// What an observation says about an object.
#[derive(Clone, Copy, Debug)]
enum Seen<'a> {
    /// All fields of a live object.
    Live(&'a Object, &'a Version),
    /// The object is deleted. The time is the one in the delete event.
    Deleted(&'a Deletion, Option<Timestamp>),
}

impl Seen<'_> {
    /// The sides of a membership, if the observation gives them.
    fn sides(&self) -> Option<&Sides> {
        match self {
            Self::Live(Object::Membership(membership), _) => Some(&membership.of),
            Self::Live(..) => None,
            Self::Deleted(deletion, _) => deletion.of.as_ref(),
        }
    }
}

/// Applies an observation to the stored state of its object, and returns the effect. `object` is `None` if the observation
/// describes none. `is_user_deleted`: the user of the observation has a tombstone.
pub fn decide(object: Option<&mut Stored>, is_user_deleted: bool, observation: &Observation) -> Effect {
    let seen = match observation {
        Observation::Snapshot(snapshot) => Seen::Live(&snapshot.object, &snapshot.version),
        Observation::Gone { object, confirmed_at } => Seen::Deleted(object, Some(*confirmed_at)),
        Observation::Event(event) => match &event.content {
            Content::Live { object, version } => Seen::Live(object, version),
            Content::Deleted(deletion) => Seen::Deleted(deletion, event.created_at),
            Content::Changed(_) | Content::SessionRevoked(_) => return Effect::Noted,
            Content::SignedIn(_) | Content::Other => return Effect::Ignored,
            Content::Unusable(reason) => return Effect::Quarantined(Cow::Borrowed(reason)),
        },
    };
    let Some(stored) = object else { return Effect::Quarantined(Cow::Borrowed("it has no ID")) };
    match (seen, &stored) {
        (Seen::Live(Object::Membership(membership), _), Stored::Absent | Stored::Live { .. }) if is_user_deleted => {
            let is_new = matches!(stored, Stored::Absent);
            *stored = Stored::Tombstone { deleted_at: None, of: Some(membership.of.clone()) };
            if is_new { Effect::AlreadyDeleted { is_written: true } } else { Effect::Deleted }
        }
        _ => join(stored, seen),
    }
}

fn join(stored: &mut Stored, seen: Seen<'_>) -> Effect {
    match (&mut *stored, seen) {
        (Stored::Tombstone { deleted_at, of }, seen) => refine(deleted_at, of, seen),
        (row, Seen::Deleted(deletion, deleted_at)) => {
            let of = row.sides().or(deletion.of.as_ref()).cloned();
            *stored = Stored::Tombstone { deleted_at, of };
            Effect::Deleted
        }
        (Stored::Absent, Seen::Live(object, version)) => {
            *stored = Stored::Live { object: Box::new(object.clone()), version: version.clone() };
            Effect::Created
        }
        (Stored::Live { object: row, version: row_version }, Seen::Live(object, version)) => {
            let signed_in = row.last_sign_in_at().max(object.last_sign_in_at());
            let effect = if *version > *row_version {
                let before = std::mem::replace(&mut **row, object.clone());
                row.set_last_sign_in_at(signed_in);
                *row_version = version.clone();
                let fields = before.differences(row);
                if fields.is_empty() { Effect::Confirmed } else { Effect::Updated { fields } }
            } else if signed_in > row.last_sign_in_at() {
                Effect::Updated { fields: vec![LAST_SIGN_IN_AT.to_owned()] }
            } else {
                Effect::Stale
            };
            row.set_last_sign_in_at(signed_in);
            effect
        }
    }
}

/// Adds to a tombstone what an observation knows: an earlier time of deletion, the sides of a membership.
fn refine(deleted_at: &mut Option<Timestamp>, of: &mut Option<Sides>, seen: Seen<'_>) -> Effect {
    let says_sides = of.is_none() && seen.sides().is_some();
    if says_sides {
        *of = seen.sides().cloned();
    }
    match seen {
        Seen::Deleted(_, at) if is_earlier(at, *deleted_at) => {
            *deleted_at = at;
            Effect::DeletedEarlier
        }
        _ => Effect::AlreadyDeleted { is_written: says_sides },
    }
}

/// Returns whether `at` is earlier than the known time of deletion, or is the first one.
fn is_earlier(at: Option<Timestamp>, known: Option<Timestamp>) -> bool {
    match (at, known) {
        (Some(at), Some(known)) => at < known,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::membership::Membership;
    use crate::domain::object::Kind;
    use crate::domain::user::User;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_micros(seconds * 1_000_000)
    }

    fn user(name: &str, signed_in: Option<i64>) -> Object {
        Object::User(User {
            id: "user_1".into(),
            email: "a@example.test".into(),
            email_verified: true,
            first_name: Some(name.into()),
            last_name: None,
            name: None,
            profile_picture_url: None,
            external_id: None,
            metadata: std::collections::BTreeMap::new(),
            last_sign_in_at: signed_in.map(at),
            locale: None,
            created_at: None,
            updated_at: at(1),
            extra: std::collections::BTreeMap::new(),
        })
    }

    fn membership(status: &str) -> Object {
        Object::Membership(Membership {
            id: "om_1".into(),
            of: sides(),
            status: status.into(),
            role: None,
            roles: Vec::new(),
            custom_attributes: std::collections::BTreeMap::new(),
            directory_managed: false,
            created_at: None,
            updated_at: at(1),
            extra: std::collections::BTreeMap::new(),
        })
    }

    fn sides() -> Sides {
        Sides { user_id: "user_1".into(), organization_id: "org_1".into() }
    }

    fn deletion(of: Option<Sides>) -> Deletion {
        Deletion { kind: Kind::Membership, id: "om_1".into(), of }
    }

    fn version(updated: i64, observed: i64, id: &str) -> Version {
        Version { updated_at: at(updated), observed_at: at(observed), id: id.into() }
    }

    fn live(name: &str, version: &Version) -> Stored {
        Stored::Live { object: Box::new(user(name, Some(5))), version: version.clone() }
    }

    fn changed(field: &str) -> Effect {
        Effect::Updated { fields: vec![field.to_owned()] }
    }

    fn name_of(stored: &Stored) -> Option<&str> {
        match stored {
            Stored::Live { object, .. } => match &**object {
                Object::User(user) => user.first_name.as_deref(),
                _ => None,
            },
            _ => None,
        }
    }

    #[test]
    fn a_higher_version_replaces_and_a_lower_or_equal_one_does_not() {
        let row_version = version(10, 10, "event_5");
        for (seen, effect, name) in [
            (version(11, 1, "event_1"), changed("first_name"), "new"),
            (version(10, 11, "event_1"), changed("first_name"), "new"),
            (version(10, 10, "event_6"), changed("first_name"), "new"),
            (version(10, 10, "event_5"), Effect::Stale, "old"),
            (version(10, 10, "event_4"), Effect::Stale, "old"),
            (version(10, 9, "event_9"), Effect::Stale, "old"),
            (version(9, 99, "event_9"), Effect::Stale, "old"),
        ] {
            let mut stored = live("old", &row_version);
            assert_eq!(join(&mut stored, Seen::Live(&user("new", None), &seen)), effect, "{seen:?}");
            assert_eq!(name_of(&stored), Some(name), "{seen:?}");
        }
    }

    #[test]
    fn the_same_content_in_a_later_version_is_no_change() {
        let mut stored = live("old", &version(10, 10, "event_5"));
        let later = version(10, 11, "snapshot:1");
        assert_eq!(join(&mut stored, Seen::Live(&user("old", None), &later)), Effect::Confirmed);
        assert!(matches!(stored, Stored::Live { version, .. } if version == later));
    }

    #[test]
    fn last_sign_in_is_the_maximum_of_all_versions() {
        for (updated, signed_in, expected, effect) in [
            (11, None, 5, changed("first_name")),
            (11, Some(3), 5, changed("first_name")),
            (9, Some(7), 7, changed("last_sign_in_at")),
            (9, Some(4), 5, Effect::Stale),
        ] {
            let mut stored = live("old", &version(10, 10, "e"));
            let seen = version(updated, 10, "e");
            assert_eq!(join(&mut stored, Seen::Live(&user("new", signed_in), &seen)), effect);
            let Stored::Live { object, .. } = stored else { panic!("still alive") };
            assert_eq!(object.last_sign_in_at(), Some(at(expected)));
        }
    }

    #[test]
    fn a_deleted_user_is_never_revived_and_the_earliest_time_of_deletion_stays() {
        let mut stored = live("old", &version(10, 10, "e"));
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), None)), Effect::Deleted);
        assert_eq!(
            join(&mut stored, Seen::Live(&user("new", Some(99)), &version(99, 99, "z"))),
            Effect::AlreadyDeleted { is_written: false }
        );
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), Some(at(8)))), Effect::DeletedEarlier);
        assert_eq!(
            join(&mut stored, Seen::Deleted(&deletion(None), Some(at(9)))),
            Effect::AlreadyDeleted { is_written: false }
        );
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), Some(at(7)))), Effect::DeletedEarlier);
        assert_eq!(
            join(&mut stored, Seen::Deleted(&deletion(None), None)),
            Effect::AlreadyDeleted { is_written: false }
        );
        assert!(matches!(stored, Stored::Tombstone { deleted_at: Some(t), .. } if t == at(7)));
    }

    #[test]
    fn a_delete_before_the_create_leaves_a_tombstone() {
        let mut stored = Stored::Absent;
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), Some(at(3)))), Effect::Deleted);
        assert_eq!(
            join(&mut stored, Seen::Live(&user("new", None), &version(1, 1, "e"))),
            Effect::AlreadyDeleted { is_written: false }
        );
        assert!(matches!(stored, Stored::Tombstone { .. }));
    }

    fn observed(object: Object, version: Version) -> Observation {
        Observation::Snapshot(crate::domain::event::Snapshot { object, version, payload: bytes::Bytes::new() })
    }

    #[test]
    fn a_membership_of_a_deleted_user_becomes_a_tombstone_in_any_order() {
        let seen = observed(membership("active"), version(1, 1, "e"));
        let mut before = Stored::Absent;
        assert_eq!(decide(Some(&mut before), false, &seen), Effect::Created);
        let mut after = Stored::Absent;
        assert_eq!(decide(Some(&mut after), true, &seen), Effect::AlreadyDeleted { is_written: true });
        assert_eq!(after.sides(), Some(&sides()));
        assert_eq!(decide(Some(&mut before), true, &seen), Effect::Deleted);
        assert!(matches!(before, Stored::Tombstone { deleted_at: None, of: Some(_) }));
        assert_eq!(decide(Some(&mut before), true, &seen), Effect::AlreadyDeleted { is_written: false });
        assert_eq!(join(&mut before, Seen::Deleted(&deletion(None), Some(at(9)))), Effect::DeletedEarlier);
    }

    #[test]
    fn the_tombstone_of_a_membership_learns_its_sides_from_any_observation() {
        let mut stored = Stored::Absent;
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), Some(at(3)))), Effect::Deleted);
        assert_eq!(stored.sides(), None);
        let seen = observed(membership("active"), version(1, 1, "e"));
        assert_eq!(decide(Some(&mut stored), false, &seen), Effect::AlreadyDeleted { is_written: true });
        assert_eq!(stored.sides(), Some(&sides()));
        let mut stored = Stored::Live { object: Box::new(membership("active")), version: version(1, 1, "e") };
        assert_eq!(join(&mut stored, Seen::Deleted(&deletion(None), None)), Effect::Deleted);
        assert_eq!(stored.sides(), Some(&sides()));
    }
}
