//! The kinds of objects that are synced: users, organizations and memberships. What is specific to a kind is in the file of the
//! kind; the rest of the core knows only [`Object`].
//!
//! Roles are not objects in this sense: WorkOS keys them by a reusable slug. See [`super::role`].

use serde::ser::{Serialize, Serializer};

use super::membership::Membership;
use super::organization::Organization;
use super::timestamp::Timestamp;
use super::user::User;

/// How an object changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The object is new.
    Created,
    /// Fields of the object changed.
    Updated,
    /// The object was deleted.
    Deleted,
}

impl Difference {
    /// Returns the word for the database and the feed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }

    /// Parses the word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        [Self::Created, Self::Updated, Self::Deleted].into_iter().find(|difference| difference.as_str() == word)
    }
}

/// A kind of objects, each with an ID that WorkOS never reuses, an `updated_at` and a tombstone. The order is the order in which a
/// transaction locks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`User`]
    User,
    /// [`Organization`]
    Organization,
    /// [`Membership`]
    Membership,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Self; 3] = [Self::User, Self::Organization, Self::Membership];

    /// Returns WorkOS's word for the kind: the `object` of its JSON, and the first part of its event types.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Organization => "organization",
            Self::Membership => "organization_membership",
        }
    }

    /// Returns the word for several objects of the kind, for messages.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::User => "users",
            Self::Organization => "organizations",
            Self::Membership => "memberships",
        }
    }

    /// Returns the kind of object that an event of this type describes, and what happened to it. `None` for other types.
    #[must_use]
    pub fn of_event_type(event_type: &str) -> Option<(Self, Difference)> {
        let (word, verb) = event_type.split_once('.')?;
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == word)?;
        match verb {
            // Until April 2024 WorkOS sent this type for the deletion of a membership.
            "removed" if kind == Self::Membership => Some((kind, Difference::Deleted)),
            verb => Some((kind, Difference::read(verb)?)),
        }
    }

    /// Returns the word for a change of an object of this kind in the feed: `created`, `updated` or `deleted` for a user, the event
    /// type for other kinds.
    #[must_use]
    pub fn word_of_change(self, difference: Difference) -> &'static str {
        if self == Self::User { difference.as_str() } else { self.event_type(difference) }
    }

    /// Returns the event type of a change of an object of this kind.
    #[must_use]
    pub fn event_type(self, difference: Difference) -> &'static str {
        match (self, difference) {
            (Self::User, Difference::Created) => "user.created",
            (Self::User, Difference::Updated) => "user.updated",
            (Self::User, Difference::Deleted) => "user.deleted",
            (Self::Organization, Difference::Created) => "organization.created",
            (Self::Organization, Difference::Updated) => "organization.updated",
            (Self::Organization, Difference::Deleted) => "organization.deleted",
            (Self::Membership, Difference::Created) => "organization_membership.created",
            (Self::Membership, Difference::Updated) => "organization_membership.updated",
            (Self::Membership, Difference::Deleted) => "organization_membership.deleted",
        }
    }
}

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// WorkOS's ID. Opaque.
    pub id: String,
}

impl ObjectKey {
    /// Names the object of this kind with this ID.
    #[must_use]
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

/// A live object of any kind, as WorkOS describes it. It serializes to WorkOS's JSON.
#[derive(Clone, Debug)]
pub enum Object {
    /// A user.
    User(User),
    /// An organization.
    Organization(Organization),
    /// A membership.
    Membership(Membership),
}

impl Object {
    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::User(_) => Kind::User,
            Self::Organization(_) => Kind::Organization,
            Self::Membership(_) => Kind::Membership,
        }
    }

    /// Returns WorkOS's ID.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::User(user) => &user.id,
            Self::Organization(organization) => &organization.id,
            Self::Membership(membership) => &membership.id,
        }
    }

    /// Returns when WorkOS last updated the object.
    #[must_use]
    pub fn updated_at(&self) -> Timestamp {
        match self {
            Self::User(user) => user.updated_at,
            Self::Organization(organization) => organization.updated_at,
            Self::Membership(membership) => membership.updated_at,
        }
    }

    /// Returns when WorkOS created the object.
    #[must_use]
    pub fn created_at(&self) -> Option<Timestamp> {
        match self {
            Self::User(user) => user.created_at,
            Self::Organization(organization) => organization.created_at,
            Self::Membership(membership) => membership.created_at,
        }
    }

    /// Returns the ID of the user whom the object describes, if it describes one.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::User(user) => Some(&user.id),
            Self::Membership(membership) => Some(&membership.of.user_id),
            Self::Organization(_) => None,
        }
    }

    /// Returns the names of the fields that differ between two objects of one kind.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        match (self, other) {
            (Self::User(one), Self::User(other)) => one.differences(other),
            (Self::Organization(one), Self::Organization(other)) => one.differences(other),
            (Self::Membership(one), Self::Membership(other)) => one.differences(other),
            _ => Vec::new(),
        }
    }

    /// Returns the field that keeps its maximum, independent of the version: the last sign-in of a user.
    #[must_use]
    pub fn last_sign_in_at(&self) -> Option<Timestamp> {
        if let Self::User(user) = self { user.last_sign_in_at } else { None }
    }

    /// Sets the last sign-in of a user. Other kinds have none.
    pub fn set_last_sign_in_at(&mut self, at: Option<Timestamp>) {
        if let Self::User(user) = self {
            user.last_sign_in_at = at;
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::User(user) => user.serialize(serializer),
            Self::Organization(organization) => organization.serialize(serializer),
            Self::Membership(membership) => membership.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_type_names_a_kind_and_what_happened() {
        for kind in Kind::ALL {
            for difference in [Difference::Created, Difference::Updated, Difference::Deleted] {
                assert_eq!(Kind::of_event_type(kind.event_type(difference)), Some((kind, difference)));
            }
        }
        for other in ["user", "user.renamed", "organization_domain.created", "role.updated", "organization.", ""] {
            assert_eq!(Kind::of_event_type(other), None, "{other}");
        }
    }
}
