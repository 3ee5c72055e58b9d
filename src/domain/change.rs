//! Changes of users, and their positions in the change feed.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::value::RawValue;

use super::event::Origin;
use super::timestamp::Timestamp;
use super::user::User;

/// How a user changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The user is new.
    Created,
    /// Fields of the user changed.
    Updated,
    /// The user was deleted.
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
}

/// The kind of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A user changed.
    User(Difference),
    /// An event of a type that changes no user, for example `session.created`.
    Event(String),
}

impl ChangeKind {
    /// Parses the columns of the feed. For an event that changes no user, `kind` equals its type.
    #[must_use]
    pub fn read(kind: &str, event_type: Option<&str>) -> Option<Self> {
        match (kind, event_type) {
            (kind, Some(event_type)) if kind == event_type => Some(Self::Event(kind.to_owned())),
            ("created", _) => Some(Self::User(Difference::Created)),
            ("updated", _) => Some(Self::User(Difference::Updated)),
            ("deleted", _) => Some(Self::User(Difference::Deleted)),
            _ => None,
        }
    }

    /// Returns the word for the feed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::User(difference) => difference.as_str(),
            Self::Event(event_type) => event_type,
        }
    }

    /// Returns the event type by which handlers select the change, also if no event brought it.
    #[must_use]
    pub fn event_type(&self) -> &str {
        match self {
            Self::User(Difference::Created) => "user.created",
            Self::User(Difference::Updated) => "user.updated",
            Self::User(Difference::Deleted) => "user.deleted",
            Self::Event(event_type) => event_type,
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

/// A committed change of a user, or an event of another type.
///
/// It serializes to the JSON of the feed: `position`, `kind`, `user_id`, `changed`, `event_id`, `event_type`, `origin`, `at`, and
/// `user`, or `data` for an event that changes no user.
#[derive(Clone, Debug)]
pub struct Change {
    /// The position in the feed.
    pub position: Position,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The user's ID.
    pub user_id: Option<String>,
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
    /// The `data` of an event of another type. `None` after the retention period, and for changes of users.
    pub data: Option<Box<RawValue>>,
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut change = serializer.serialize_struct("Change", 9)?;
        change.serialize_field("position", &self.position)?;
        change.serialize_field("kind", self.kind.as_str())?;
        change.serialize_field("user_id", &self.user_id)?;
        change.serialize_field("changed", &self.changed)?;
        change.serialize_field("event_id", &self.event.as_ref().map(|event| &event.id))?;
        change.serialize_field("event_type", &self.event.as_ref().map(|event| &event.event_type))?;
        change.serialize_field("origin", self.origin.as_str())?;
        change.serialize_field("at", &self.at)?;
        match self.kind {
            ChangeKind::User(_) => change.serialize_field("user", &self.user)?,
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
        assert_eq!(ChangeKind::read("created", Some("user.updated")), Some(ChangeKind::User(Difference::Created)));
        assert_eq!(ChangeKind::read("created", None), Some(ChangeKind::User(Difference::Created)));
        assert_eq!(ChangeKind::read("created", Some("created")), Some(ChangeKind::Event("created".into())));
        assert_eq!(ChangeKind::read("session.created", None), None);
    }
}
