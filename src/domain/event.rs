//! Observations: events and snapshots of objects, as received from WorkOS.

use std::fmt;

use bytes::Bytes;

use super::membership::Sides;
use super::object::{Kind, Object};
use super::role::Refresh;
use super::timestamp::Timestamp;
use super::version::Version;

/// A WorkOS event. It has the same form in a webhook and in the Events API.
#[derive(Clone)]
pub struct Event {
    /// WorkOS's ID of the event. Opaque. It is the same in a webhook and in the Events API, so it identifies duplicates.
    pub id: String,
    /// For example `user.updated`. WorkOS adds types without notice.
    pub event_type: String,
    /// When WorkOS created the event.
    pub created_at: Option<Timestamp>,
    /// The user whom the event is about. Deleting the user erases the payload.
    pub user_id: Option<String>,
    /// The content of the event.
    pub content: Content,
    /// The event as received, byte for byte, except that secrets of WorkOS in it are null.
    pub payload: Bytes,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("type", &self.event_type).finish_non_exhaustive()
    }
}

/// What an event says about its object.
#[derive(Clone, Debug)]
pub enum Content {
    /// The type ends in `.created` or `.updated`: all fields of the object.
    Live {
        /// The object at the time of the event.
        object: Box<Object>,
        /// Orders the event among the observations of the object.
        version: Version,
    },
    /// The type ends in `.deleted`. Only the ID is used, and the sides of a membership where they are given.
    Deleted(Box<Deletion>),
    /// `session.created` without impersonation: the user signed in at this time.
    SignedIn(Timestamp),
    /// `session.revoked`: tokens of the session with this ID must be refused.
    SessionRevoked(String),
    /// Something has changed at WorkOS, and the event does not contain the new state. It must be read from WorkOS.
    Changed(Refresh),
    /// An event of a type that changes nothing here.
    Other,
    /// The event cannot be applied, for this reason. The reason contains nothing of the payload.
    Unusable(&'static str),
}

/// The deletion of an object.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// The kind of the object.
    pub kind: Kind,
    /// WorkOS's ID.
    pub id: String,
    /// The user and the organization of a membership, if they are known.
    pub of: Option<Sides>,
}

/// An object read from WorkOS's REST API.
#[derive(Clone)]
pub struct Snapshot {
    /// The object.
    pub object: Object,
    /// The version. `observed_at` is WorkOS's `Date` header minus the duration of the request. The ID is `snapshot:` and a hash.
    pub version: Version,
    /// The object as received, byte for byte, except that secrets of WorkOS in it are null. It is stored only if it cannot be
    /// applied.
    pub payload: Bytes,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("object", &self.object).finish_non_exhaustive()
    }
}

/// All fields of an object at one time, or its deletion.
#[derive(Clone, Debug)]
pub enum Observation {
    /// An event. It is stored in the inbox too.
    Event(Event),
    /// A snapshot. Only the row is stored, unless the snapshot cannot be applied.
    Snapshot(Snapshot),
    /// WorkOS answered a read by ID with 404: the object was deleted, and no delete event has arrived.
    Gone {
        /// The object.
        object: Deletion,
        /// When WorkOS answered, by its clock.
        confirmed_at: Timestamp,
    },
}

impl Observation {
    /// Returns the kind and the ID of the object that the observation describes.
    #[must_use]
    pub fn object(&self) -> Option<(Kind, &str)> {
        match self {
            Self::Event(Event { content: Content::Live { object, .. }, .. }) => Some((object.kind(), object.id())),
            Self::Event(Event { content: Content::Deleted(deleted), .. }) => Some((deleted.kind, &deleted.id)),
            Self::Event(_) => None,
            Self::Snapshot(snapshot) => Some((snapshot.object.kind(), snapshot.object.id())),
            Self::Gone { object, .. } => Some((object.kind, &object.id)),
        }
    }

    /// Returns the ID of the user whose deletion erases the observation.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.user_id.as_deref(),
            Self::Snapshot(snapshot) => snapshot.object.user_id(),
            Self::Gone { object: Deletion { kind: Kind::User, id, .. }, .. } => Some(id),
            Self::Gone { object, .. } => object.of.as_ref().map(|of| &*of.user_id),
        }
    }

    /// Returns the ID of the organization of a live membership.
    #[must_use]
    pub fn organization_id(&self) -> Option<&str> {
        let object = match self {
            Self::Event(Event { content: Content::Live { object, .. }, .. }) => &**object,
            Self::Snapshot(snapshot) => &snapshot.object,
            Self::Event(_) | Self::Gone { .. } => return None,
        };
        if let Object::Membership(membership) = object { Some(&membership.of.organization_id) } else { None }
    }

    /// Returns whether the observation needs a transaction, because it writes more than the row of a live user: another kind of
    /// object, a tombstone, an ended session or a requested read.
    #[must_use]
    pub fn needs_transaction(&self) -> bool {
        match self {
            Self::Event(event) => match &event.content {
                Content::Live { object, .. } => object.kind() != Kind::User,
                Content::Deleted(_) | Content::SignedIn(_) | Content::SessionRevoked(_) | Content::Changed(_) => true,
                Content::Other | Content::Unusable(_) => false,
            },
            Self::Snapshot(snapshot) => snapshot.object.kind() != Kind::User,
            Self::Gone { .. } => true,
        }
    }

    /// Returns the objects whose rows must be locked: the described one, and the user.
    pub fn locked(&self) -> impl Iterator<Item = (Kind, &str)> {
        let object = self.object();
        let user = self.user_id().map(|id| (Kind::User, id)).filter(|user| Some(*user) != object);
        user.into_iter().chain(object)
    }
}

/// How an observation reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// WorkOS sent it to the webhook endpoint.
    Webhook,
    /// Catch-up read it from the Events API.
    CatchUp,
    /// Backfill read it from a list.
    Backfill,
    /// Reconcile read it from a list, or by ID.
    Reconcile,
    /// Read for a caller, before an event delivered the object.
    ReadThrough,
}

impl Origin {
    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::CatchUp => "catch_up",
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::ReadThrough => "read_through",
        }
    }

    /// Parses the word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        let all = [Self::Webhook, Self::CatchUp, Self::Backfill, Self::Reconcile, Self::ReadThrough];
        all.into_iter().find(|origin| origin.as_str() == word)
    }

    /// Returns whether the change has just happened. What backfill and reconcile find can be years old, so handlers should not
    /// send welcome mails for it.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Backfill | Self::Reconcile)
    }
}

/// The result of applying an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It changed what is stored.
    Applied,
    /// The stored object already contains this observation or a later one.
    Stale,
    /// Events of this type change nothing here.
    Ignored,
    /// It cannot be applied. It is stored until a retry succeeds.
    Quarantined,
}

impl Outcome {
    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
            Self::Quarantined => "quarantined",
        }
    }
}
