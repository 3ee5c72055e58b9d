//! Decides what an observation does to a stored user.
//!
//! The stored state is a join of the user's observations: a tombstone replaces a live row, a higher version replaces a lower
//! one, `last_sign_in_at` is a maximum of its own, the time of deletion a minimum. So the same observations end in the same
//! state in any order and with any duplicates (promise 3), and a deleted user stays deleted (promise 4).

use std::borrow::Cow;

use super::change::Difference;
use super::event::{Content, Observation, Outcome};
use super::timestamp::Timestamp;
use super::user::{LAST_SIGN_IN_AT, User};
use super::version::Version;

/// A user as the table holds it.
#[derive(Clone, Debug)]
pub enum Stored {
    /// The table has no row for the user.
    Absent,
    /// The user exists.
    Live {
        /// The row.
        user: Box<User>,
        /// The version of the observation that the row was written from.
        version: Version,
    },
    /// The user is deleted, permanently.
    Tombstone {
        /// The earliest time in any of its delete events.
        deleted_at: Option<Timestamp>,
    },
}

/// What an observation did to the stored user. The inbox's outcome, the change and the counters are read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The user was not stored before.
    Created,
    /// A live user was stored before and differs now.
    Updated {
        /// The names of the fields that differ.
        fields: Vec<String>,
    },
    /// The user was live or not stored, and is deleted now.
    Deleted,
    /// The user was deleted before, and the time of its deletion is an earlier one now.
    DeletedEarlier,
    /// The row's content is the same; its version is higher now.
    Confirmed,
    /// The row was written from this observation or a later one.
    Stale,
    /// The user was deleted before; the observation changes nothing.
    AlreadyDeleted,
    /// The observation changes no user.
    Ignored,
    /// The observation cannot be applied, for this reason. The reason contains nothing of the payload.
    Quarantined(Cow<'static, str>),
}

impl Effect {
    /// Returns the outcome that the inbox stores.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Created | Self::Updated { .. } | Self::Deleted | Self::DeletedEarlier | Self::Confirmed => {
                Outcome::Applied
            }
            Self::Stale | Self::AlreadyDeleted => Outcome::Stale,
            Self::Ignored => Outcome::Ignored,
            Self::Quarantined(_) => Outcome::Quarantined,
        }
    }

    /// Returns why the observation was not applied.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Stale => Some("the row has this observation or a later one"),
            Self::AlreadyDeleted => Some("the user is deleted"),
            Self::Quarantined(reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns the change for the feed, or `None` if the user has not changed.
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

/// What an observation says about a user.
#[derive(Clone, Copy, Debug)]
enum Seen<'a> {
    /// All fields of a live user.
    Live(&'a User, &'a Version),
    /// The user is deleted. The time is the one in the delete event.
    Deleted(Option<Timestamp>),
}

/// Applies an observation to the stored state of its user, and returns the effect. `user` is `None` if the observation has no
/// user ID.
pub fn decide(user: Option<&mut Stored>, observation: &Observation) -> Effect {
    let seen = match observation {
        Observation::Snapshot(snapshot) => Seen::Live(&snapshot.user, &snapshot.version),
        Observation::Gone { confirmed_at, .. } => Seen::Deleted(Some(*confirmed_at)),
        Observation::Event(event) => match &event.content {
            Content::Live { user, version } => Seen::Live(user, version),
            Content::Deleted => Seen::Deleted(event.created_at),
            Content::SignedIn(_) | Content::Other => return Effect::Ignored,
            Content::Unusable(reason) => return Effect::Quarantined(Cow::Borrowed(reason)),
        },
    };
    user.map_or(Effect::Quarantined(Cow::Borrowed("it has no user ID")), |stored| join(stored, seen))
}

fn join(stored: &mut Stored, seen: Seen<'_>) -> Effect {
    match (&mut *stored, seen) {
        (Stored::Tombstone { .. }, Seen::Live(..)) => Effect::AlreadyDeleted,
        (Stored::Tombstone { deleted_at }, Seen::Deleted(at)) => {
            if !is_earlier(at, *deleted_at) {
                return Effect::AlreadyDeleted;
            }
            *deleted_at = at;
            Effect::DeletedEarlier
        }
        (_, Seen::Deleted(deleted_at)) => {
            *stored = Stored::Tombstone { deleted_at };
            Effect::Deleted
        }
        (Stored::Absent, Seen::Live(user, version)) => {
            *stored = Stored::Live { user: Box::new(user.clone()), version: version.clone() };
            Effect::Created
        }
        (Stored::Live { user: row, version: row_version }, Seen::Live(user, version)) => {
            let signed_in = row.last_sign_in_at.max(user.last_sign_in_at);
            let effect = if *version > *row_version {
                let before = std::mem::replace(&mut **row, User { last_sign_in_at: signed_in, ..user.clone() });
                *row_version = version.clone();
                let fields = before.differences(row);
                if fields.is_empty() { Effect::Confirmed } else { Effect::Updated { fields } }
            } else if signed_in > row.last_sign_in_at {
                Effect::Updated { fields: vec![LAST_SIGN_IN_AT.to_owned()] }
            } else {
                Effect::Stale
            };
            row.last_sign_in_at = signed_in;
            effect
        }
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

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_micros(seconds * 1_000_000)
    }

    fn user(name: &str, signed_in: Option<i64>) -> User {
        User {
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
        }
    }

    fn version(updated: i64, observed: i64, id: &str) -> Version {
        Version { updated_at: at(updated), observed_at: at(observed), id: id.into() }
    }

    fn live(name: &str, version: &Version) -> Stored {
        Stored::Live { user: Box::new(user(name, Some(5))), version: version.clone() }
    }

    fn changed(field: &str) -> Effect {
        Effect::Updated { fields: vec![field.to_owned()] }
    }

    fn name_of(stored: &Stored) -> Option<&str> {
        match stored {
            Stored::Live { user, .. } => user.first_name.as_deref(),
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
            let Stored::Live { user, .. } = stored else { panic!("still alive") };
            assert_eq!(user.last_sign_in_at, Some(at(expected)));
        }
    }

    #[test]
    fn a_deleted_user_is_never_revived_and_the_earliest_time_of_deletion_stays() {
        let mut stored = live("old", &version(10, 10, "e"));
        assert_eq!(join(&mut stored, Seen::Deleted(None)), Effect::Deleted);
        assert_eq!(
            join(&mut stored, Seen::Live(&user("new", Some(99)), &version(99, 99, "z"))),
            Effect::AlreadyDeleted
        );
        assert_eq!(join(&mut stored, Seen::Deleted(Some(at(8)))), Effect::DeletedEarlier);
        assert_eq!(join(&mut stored, Seen::Deleted(Some(at(9)))), Effect::AlreadyDeleted);
        assert_eq!(join(&mut stored, Seen::Deleted(Some(at(7)))), Effect::DeletedEarlier);
        assert_eq!(join(&mut stored, Seen::Deleted(None)), Effect::AlreadyDeleted);
        assert!(matches!(stored, Stored::Tombstone { deleted_at: Some(t) } if t == at(7)));
    }

    #[test]
    fn a_delete_before_the_create_leaves_a_tombstone() {
        let mut stored = Stored::Absent;
        assert_eq!(join(&mut stored, Seen::Deleted(Some(at(3)))), Effect::Deleted);
        assert_eq!(join(&mut stored, Seen::Live(&user("new", None), &version(1, 1, "e"))), Effect::AlreadyDeleted);
        assert!(matches!(stored, Stored::Tombstone { .. }));
    }
}
