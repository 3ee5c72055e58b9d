//! What an observation does to a stored user.
//!
//! The stored state is a join of the user's observations: a tombstone over a live row, a higher version over a lower,
//! `last_sign_in_at` by maximum on its own, the instant of deletion by minimum. So any order and any duplication of the
//! same observations ends in the same state (promise 3), and a deleted user stays deleted (promise 4).

use super::timestamp::Timestamp;
use super::user::{LAST_SIGN_IN_AT, User};
use super::version::Version;

/// A user as the table holds it.
#[derive(Clone, Debug)]
pub enum Stored {
    /// Never heard of.
    Absent,
    /// Alive, as of a version.
    Live {
        /// The row.
        user: Box<User>,
        /// The observation the row stands on.
        version: Version,
    },
    /// Deleted, for good.
    Tombstone {
        /// The least instant any of its delete events carries.
        deleted_at: Option<Timestamp>,
    },
}

/// What an observation says.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A full picture of the user.
    Live(&'a User, &'a Version),
    /// Word of its deletion, with the delete event's `created_at`.
    Deleted(Option<Timestamp>),
}

/// Whether the observation changed the stored state, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The state changed.
    Applied {
        /// The names of the fields in which a live user differs; empty when it was not one before, or is none now.
        changed: Vec<String>,
    },
    /// The row says what it said, as of a later observation.
    Confirmed,
    /// The row stands on this observation already or on a later one.
    Older,
    /// The user is deleted.
    Deleted,
}

impl Decision {
    /// What cannot be said field by field.
    fn applied() -> Self {
        Self::Applied { changed: Vec::new() }
    }
}

/// Joins an observation into the stored state.
pub fn decide(stored: &mut Stored, seen: Seen<'_>) -> Decision {
    match (&mut *stored, seen) {
        (Stored::Tombstone { .. }, Seen::Live(..)) => Decision::Deleted,
        (Stored::Tombstone { deleted_at }, Seen::Deleted(at)) => {
            if earlier(at, *deleted_at) {
                *deleted_at = at;
                Decision::applied()
            } else {
                Decision::Deleted
            }
        }
        (_, Seen::Deleted(deleted_at)) => {
            *stored = Stored::Tombstone { deleted_at };
            Decision::applied()
        }
        (Stored::Absent, Seen::Live(user, version)) => {
            *stored = Stored::Live { user: Box::new(user.clone()), version: version.clone() };
            Decision::applied()
        }
        (Stored::Live { user: row, version: standing }, Seen::Live(user, version)) => {
            let signed_in = row.last_sign_in_at.max(user.last_sign_in_at);
            let decision = if *version > *standing {
                let before = std::mem::replace(&mut **row, User { last_sign_in_at: signed_in, ..user.clone() });
                *standing = version.clone();
                let changed = before.differences(row);
                if changed.is_empty() { Decision::Confirmed } else { Decision::Applied { changed } }
            } else if signed_in > row.last_sign_in_at {
                Decision::Applied { changed: vec![LAST_SIGN_IN_AT.to_owned()] }
            } else {
                Decision::Older
            };
            row.last_sign_in_at = signed_in;
            decision
        }
    }
}

/// Whether `at` is a better instant of deletion than the one known: an earlier one, or the first.
fn earlier(at: Option<Timestamp>, known: Option<Timestamp>) -> bool {
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

    fn changed(field: &str) -> Decision {
        Decision::Applied { changed: vec![field.to_owned()] }
    }

    fn name_of(stored: &Stored) -> Option<&str> {
        match stored {
            Stored::Live { user, .. } => user.first_name.as_deref(),
            _ => None,
        }
    }

    #[test]
    fn a_higher_version_replaces_and_a_lower_or_equal_one_does_not() {
        let standing = version(10, 10, "event_5");
        for (seen, decision, name) in [
            (version(11, 1, "event_1"), changed("first_name"), "new"),
            (version(10, 11, "event_1"), changed("first_name"), "new"),
            (version(10, 10, "event_6"), changed("first_name"), "new"),
            (version(10, 10, "event_5"), Decision::Older, "old"),
            (version(10, 10, "event_4"), Decision::Older, "old"),
            (version(10, 9, "event_9"), Decision::Older, "old"),
            (version(9, 99, "event_9"), Decision::Older, "old"),
        ] {
            let mut stored = live("old", &standing);
            assert_eq!(decide(&mut stored, Seen::Live(&user("new", None), &seen)), decision, "{seen:?}");
            assert_eq!(name_of(&stored), Some(name), "{seen:?}");
        }
    }

    #[test]
    fn the_same_picture_as_of_later_moves_the_version_and_is_no_change() {
        let mut stored = live("old", &version(10, 10, "event_5"));
        let later = version(10, 11, "snapshot:1");
        assert_eq!(decide(&mut stored, Seen::Live(&user("old", None), &later)), Decision::Confirmed);
        assert!(matches!(stored, Stored::Live { version, .. } if version == later));
    }

    #[test]
    fn last_sign_in_is_the_maximum_whatever_the_version() {
        for (updated, signed_in, expected, decision) in [
            (11, None, 5, changed("first_name")),
            (11, Some(3), 5, changed("first_name")),
            (9, Some(7), 7, changed("last_sign_in_at")),
            (9, Some(4), 5, Decision::Older),
        ] {
            let mut stored = live("old", &version(10, 10, "e"));
            let seen = version(updated, 10, "e");
            assert_eq!(decide(&mut stored, Seen::Live(&user("new", signed_in), &seen)), decision);
            let Stored::Live { user, .. } = stored else { panic!("still alive") };
            assert_eq!(user.last_sign_in_at, Some(at(expected)));
        }
    }

    #[test]
    fn nothing_revives_the_deleted_and_the_earliest_instant_stays() {
        let mut stored = live("old", &version(10, 10, "e"));
        assert_eq!(decide(&mut stored, Seen::Deleted(None)), Decision::applied());
        assert_eq!(decide(&mut stored, Seen::Live(&user("new", Some(99)), &version(99, 99, "z"))), Decision::Deleted);
        assert_eq!(decide(&mut stored, Seen::Deleted(Some(at(8)))), Decision::applied());
        assert_eq!(decide(&mut stored, Seen::Deleted(Some(at(9)))), Decision::Deleted);
        assert_eq!(decide(&mut stored, Seen::Deleted(Some(at(7)))), Decision::applied());
        assert_eq!(decide(&mut stored, Seen::Deleted(None)), Decision::Deleted);
        assert!(matches!(stored, Stored::Tombstone { deleted_at: Some(t) } if t == at(7)));
    }

    #[test]
    fn a_delete_before_the_create_leaves_a_tombstone() {
        let mut stored = Stored::Absent;
        assert_eq!(decide(&mut stored, Seen::Deleted(Some(at(3)))), Decision::applied());
        assert_eq!(decide(&mut stored, Seen::Live(&user("new", None), &version(1, 1, "e"))), Decision::Deleted);
        assert!(matches!(stored, Stored::Tombstone { .. }));
    }
}
