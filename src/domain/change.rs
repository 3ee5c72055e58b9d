//! Changes of objects, and their positions in the change feed.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::value::RawValue;

use super::event::Origin;
use super::membership::Membership;
pub use super::object::Difference;
use super::object::Kind;
use super::organization::Organization;
use super::role::ListKind;
use super::timestamp::Timestamp;
use super::user::User;

/// The kind of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A user changed.
    User(Difference),
    /// An organization changed.
    Organization(Difference),
    /// A membership changed.
    Membership(Difference),
    /// A role or a permission changed. It has no object in the feed.
    Listed(ListKind, Difference),
    /// An event of a type that describes no object, for example `session.created`.
    Event(String),
}

impl ChangeKind {
    /// Returns the change of an object of this kind.
    #[must_use]
    pub fn of_object(kind: Kind, difference: Difference) -> Self {
        match kind {
            Kind::User => Self::User(difference),
            Kind::Organization => Self::Organization(difference),
            Kind::Membership => Self::Membership(difference),
        }
    }

    /// Parses the columns of the feed. For an event that describes no object, `kind` equals its type. Only a change of an object
    /// other than a user has an object ID (`has_object_id`).
    #[must_use]
    pub fn read(kind: &str, event_type: Option<&str>, has_object_id: bool) -> Option<Self> {
        if has_object_id {
            let object = Kind::of_event_type(kind).map(|(kind, difference)| Self::of_object(kind, difference));
            return object
                .or_else(|| ListKind::of_event_type(kind).map(|(kind, difference)| Self::Listed(kind, difference)));
        }
        if event_type == Some(kind) {
            return Some(Self::Event(kind.to_owned()));
        }
        Difference::read(kind).map(Self::User)
    }

    /// Returns the kind of the changed object, and how it changed. `None` for an event that describes no object.
    #[must_use]
    pub fn object(&self) -> Option<(Kind, Difference)> {
        match self {
            Self::User(difference) => Some((Kind::User, *difference)),
            Self::Organization(difference) => Some((Kind::Organization, *difference)),
            Self::Membership(difference) => Some((Kind::Membership, *difference)),
            Self::Listed(..) | Self::Event(_) => None,
        }
    }

    /// Returns the word for the feed: `created`, `updated` or `deleted` for a user, the event type for anything else.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::User(difference) => difference.as_str(),
            other => other.event_type(),
        }
    }

    /// Returns the event type by which handlers select the change, also if no event caused it.
    #[must_use]
    pub fn event_type(&self) -> &str {
        match (self, self.object()) {
            (_, Some((kind, difference))) => kind.event_type(difference),
            (Self::Listed(kind, difference), _) => kind.event_type(*difference),
            (Self::Event(event_type), _) => event_type,
            _ => "",
        }
    }
}

/// A position in the change feed. Its text is opaque. It expires when the epoch changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The epoch of the database. It changes when positions become invalid.
    pub epoch: String,
    /// The number within the epoch.
    pub number: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// The text is not a position of the change feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a position of the change feed; use the `position` of an earlier page")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (epoch, number) = text.split_once('-').ok_or(NotAPosition)?;
        let plain = !epoch.is_empty() && epoch.len() <= 16 && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let number = number.parse().ok().filter(|number| plain && *number >= 0).ok_or(NotAPosition)?;
        Ok(Self { epoch: epoch.to_owned(), number })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The event that caused a change.
#[derive(Clone, Debug)]
pub struct Cause {
    /// WorkOS's ID of the event.
    pub id: String,
    /// For example `user.updated`.
    pub event_type: String,
}

/// A committed change of an object, or an event of another type.
///
/// It serializes to the JSON of the feed: `position`, `kind`, `user_id`, `object_id` (unless it is a user), `changed`, `event_id`,
/// `event_type`, `origin`, `at`, and the current object under the name of its kind (`user`, `organization`,
/// `organization_membership`), or `data` for an event that describes no object. The `object_id` of a role or of a permission is its
/// slug, and that of an organization's role is `organization_id/slug`.
#[derive(Clone, Debug)]
pub struct Change {
    /// The position in the feed.
    pub position: Position,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The ID of the user whom the change is about. For a membership, the member.
    pub user_id: Option<String>,
    /// The ID of the changed object, unless it is a user.
    pub object_id: Option<String>,
    /// The names of the fields that an update changed. Empty for other kinds.
    pub changed: Vec<String>,
    /// The event that caused it. `None` if the change was found by reading WorkOS's API.
    pub event: Option<Cause>,
    /// How the change reached us. [`Origin::is_live`] tells whether it has just happened.
    pub origin: Origin,
    /// When the change was committed here.
    pub at: Timestamp,
    /// The current user, which can be newer than the change. `None` if it has been deleted, and for other events.
    pub user: Option<User>,
    /// The current organization of a change of an organization. `None` if it has been deleted.
    pub organization: Option<Organization>,
    /// The current membership of a change of a membership. `None` if it has ended.
    pub membership: Option<Membership>,
    /// The `data` of an event of another type. `None` after the retention period, and for changes of users.
    pub data: Option<Box<RawValue>>,
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut change = serializer.serialize_struct("Change", 10)?;
        change.serialize_field("position", &self.position)?;
        change.serialize_field("kind", self.kind.as_str())?;
        change.serialize_field("user_id", &self.user_id)?;
        if let Some(id) = &self.object_id {
            change.serialize_field("object_id", id)?;
        }
        change.serialize_field("changed", &self.changed)?;
        change.serialize_field("event_id", &self.event.as_ref().map(|event| &event.id))?;
        change.serialize_field("event_type", &self.event.as_ref().map(|event| &event.event_type))?;
        change.serialize_field("origin", self.origin.as_str())?;
        change.serialize_field("at", &self.at)?;
        match self.kind {
            ChangeKind::User(_) => change.serialize_field("user", &self.user)?,
            ChangeKind::Organization(_) => change.serialize_field("organization", &self.organization)?,
            ChangeKind::Membership(_) => change.serialize_field("organization_membership", &self.membership)?,
            ChangeKind::Listed(..) => {}
            ChangeKind::Event(_) => change.serialize_field("data", &self.data)?,
        }
        change.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_parses_its_own_text_and_nothing_else() {
        let position = Position { epoch: "7f3a9c21".into(), number: 1_042 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "7", "-7", "7f3a-", "7f3a--1", "7f 3a-1", "7f3a-99999999999999999999", "a-1-2", "ü-1"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn an_event_whose_type_is_a_kind_of_change_is_still_an_event() {
        for (kind, event_type, has_object_id, expected) in [
            ("created", Some("user.updated"), false, Some(ChangeKind::User(Difference::Created))),
            ("created", None, false, Some(ChangeKind::User(Difference::Created))),
            ("created", Some("created"), false, Some(ChangeKind::Event("created".into()))),
            ("session.created", None, false, None),
            (
                "organization.updated",
                Some("organization.updated"),
                true,
                Some(ChangeKind::Organization(Difference::Updated)),
            ),
            (
                "organization.updated",
                Some("organization.updated"),
                false,
                Some(ChangeKind::Event("organization.updated".into())),
            ),
            ("role.updated", None, true, Some(ChangeKind::Listed(ListKind::Role, Difference::Updated))),
            ("role.updated", Some("role.updated"), false, Some(ChangeKind::Event("role.updated".into()))),
            ("organization_membership.deleted", None, true, Some(ChangeKind::Membership(Difference::Deleted))),
        ] {
            assert_eq!(ChangeKind::read(kind, event_type, has_object_id), expected, "{kind}");
        }
    }
}
